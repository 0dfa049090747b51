"""to_semi_structured: which layers are converted and why others are not, 1x1 convolutions, failing kernels, no GPU."""

import pytest
import timm
import torch
from torch import nn
from torch.sparse import SparseSemiStructuredTensorCUTLASS as Packed
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export.kernels import sparse_kernels
from snows_core.export.kernels.pointwise import PointwiseLinear, pointwise_as_linear
from snows_core.export.kernels.semi_structured import convert
from snows_core.export.kernels.sparse_kernels import Kernel, kernels

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
CPU = torch.device("cpu")
HAS_KERNELS = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def same(weight):
    return weight.clone()


def two_of_four(model):
    """Set all but two of four inputs to zero where that is possible, in place."""
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.Linear | nn.Conv2d) and part.weight.shape[1] % 4 == 0:
                part.weight[:, ::4] = 0
                part.weight[:, 3::4] = 0
    return model.eval()


class Net(nn.Module):
    """Linear layers of every kind that is met, and a strided 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.down = nn.Conv2d(32, 64, 1, stride=2)
        self.good, self.dense, self.narrow, self.odd = (nn.Linear(64, n) for n in (64, 64, 24, 32))
        self.attention = nn.MultiheadAttention(32, 2, batch_first=True)
        self.idle = nn.Linear(64, 64)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Linear(32, 32))
        self.fc = nn.Linear(32, 4)

    def forward(self, x):
        tokens = self.down(self.stem(x)).flatten(2).transpose(1, 2)  # (N, 16, 64)
        tokens = self.dense(self.good(tokens).relu()) + self.narrow(tokens).mean()
        tokens = self.odd(tokens)
        tokens = self.computed(self.attention(tokens, tokens, tokens)[0])
        return self.fc(tokens.mean(1))


def net():
    torch.manual_seed(0)
    model = two_of_four(Net())
    nn.init.normal_(model.dense.weight)
    return model


def reasons(done):
    return done.table.set_index("layer")["reason"].to_dict()


def run(model, images, pack=same, dtype=torch.float64, convolutions=False, shape=(32, 32)):
    chosen = [Kernel("first", pack, shape)] if not isinstance(pack, list) else pack
    return convert(model, images, CPU, dtype, convolutions, chosen)


def test_the_table_says_which_layers_are_converted_and_why_others_are_not():
    model, images = net(), random_images(4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    done = run(model, images)
    rows = done.table.set_index("layer")
    assert rows.index[rows["converted"]].tolist() == ["good", "odd"]
    why = reasons(done)
    assert why["good"] == "" and rows.loc["good", "backend"] == "first" and rows.loc["good", "difference"] == 0
    assert why["dense"] == "1,024 of 1,024 groups of four inputs have more than two weights"
    assert why["narrow"] == "its shape 24x64 is no multiple of 32x32 (first)"
    assert why["attention.out_proj"] == "MultiheadAttention reads its weight itself"
    assert why["idle"].startswith("it was not called on the images")
    assert why["computed"] == "its weight is computed, not stored"
    assert "shape 4x32" in why["fc"] and "down" not in why
    assert done.difference < 1e-12 and done.agreement == 100 and done.images == 4
    assert "2 of 8 layers run on 2:4 kernels (first) in float64 on cpu; outputs differ by" in str(done)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "the model is changed"


def test_one_weight_too_many_keeps_a_layer_dense():
    model = net()
    with torch.no_grad():
        model.good.weight[5, 8] = 0.25  # three of four
    done = run(model, random_images(4))
    assert reasons(done)["good"] == "1 of 1,024 groups of four inputs have more than two weights"
    assert done.table["converted"].sum() == 1


def refuses(weight):
    raise RuntimeError("Supported only on GPUs with\ncompute capability 8.x")


def test_a_layer_whose_kernel_fails_or_errs_stays_dense_and_the_next_kernel_is_tried():
    model, images = net(), random_images(4)

    def wrong(weight):
        return weight * (1.1 if weight.shape[0] == 64 else 1.0)

    done = run(model, images, [Kernel("refuses", refuses, (32, 32)), Kernel("wrong", wrong, (32, 32))])
    refused = "refuses: RuntimeError: Supported only on GPUs with compute capability 8.x; wrong: outputs differ by "
    assert reasons(done)["good"].startswith(refused)
    assert done.table.set_index("layer").loc["odd", "backend"] == "wrong"
    assert torch.equal(done.model.good.weight, model.good.weight.double()) and done.difference < 1e-12
    nan = run(model, images, lambda weight: weight * torch.nan)
    assert not nan.table["converted"].any() and "differ by nan" in reasons(nan)["good"]


def test_without_images_layers_are_tried_on_random_numbers():
    done = run(net(), None)
    assert done.table.set_index("layer").loc["good", "converted"] and done.difference is None and done.images == 0
    assert "outputs differ" not in str(done)


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_a_pointwise_convolution_is_a_linear_layer(stride, memory):
    convolution = nn.Conv2d(6, 8, 1, stride, bias=stride != 2).double()
    images = random_images(3, 7, channels=6).contiguous(memory_format=memory)
    linear = PointwiseLinear(convolution)
    gap = (linear(images) - convolution(images)).abs().max()
    assert linear(images).shape == convolution(images).shape and gap < 1e-14  # sums of six float64 in another order
    assert linear.linear.weight.data_ptr() == convolution.weight.data_ptr()


@pytest.mark.parametrize("name", ["resnet50", "mobilenetv2_035", "convnext_atto", "efficientnet_lite0"])
def test_networks_compute_the_same_with_rewritten_convolutions(name):
    torch.manual_seed(0)
    model, images = timm.create_model(name, num_classes=5).double().eval(), random_images(2, 64)
    with torch.no_grad():
        before = model(images)
        plain = [n for n, m in model.named_modules() if type(m) is nn.Conv2d and m.kernel_size == (1, 1)]
        names = pointwise_as_linear(model)
        gap = (model(images) - before).abs().max() / before.abs().max()
    assert set(names) == set(plain) and gap < 1e-10  # float64 over a hundred layers
    assert names or name == "convnext_atto"


def test_what_is_no_plain_pointwise_convolution_stays():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    shared = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(
        *(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1), nn.Conv2d(4, 4, 3), Scaled(4, 4, 1)),
        *(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1, padding="same")),
        *(shared, shared),
    )
    assert pointwise_as_linear(model) == ["5", "6", "7"] and model[6] is model[7]


def test_rewritten_convolutions_are_converted_under_their_own_names():
    block = timm.models.resnet.Bottleneck
    bottlenecks = timm.models.resnet.ResNet(block, (1, 1, 1, 1), num_classes=5, channels=(8, 32, 32, 32))
    model, images = two_of_four(bottlenecks), random_images(2, 32)
    done = run(model, images, convolutions=True)
    rows = done.table.set_index("layer")
    assert rows.loc["layer2.0.downsample.0", ["kind", "converted"]].tolist() == ["1x1 convolution", True]
    assert rows.loc["layer2.0.conv1", "shape"] == "32x32" and done.difference < 1e-10
    assert rows["converted"].sum() == 10 and not run(model, images).table["converted"].any()


@pytest.fixture
def packed_on_cpu(monkeypatch):
    """Let PyTorch pack 2:4 weights on the CPU, where its own conversion works, and multiply by what was packed."""

    def product(self, other, *, bias=None, should_transpose_dense=False, **_):
        weight = sparse_semi_structured_to_dense_cutlass(self.packed, self.meta)
        if should_transpose_dense:
            return other @ weight.t() + (0 if bias is None else bias)
        return weight @ other + (0 if bias is None else bias[:, None])

    monkeypatch.setattr(Packed, "_validate_device_dim_dtype_shape", classmethod(lambda cls, weight: None))
    monkeypatch.setattr(Packed, "_mm", product)
    return kernels(torch.float16, "cutlass")


def test_pytorchs_own_packed_tensors_go_through_the_whole_way(packed_on_cpu):
    force = torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS
    model = two_of_four(small_vit(depth=2, dim=64, qkv_bias=False).float())
    done = run(model, random_images(8, 4, dtype=torch.float32), packed_on_cpu, torch.float16)
    rows = done.table.set_index("layer")
    assert rows["converted"].sum() == 8 and (rows.loc[rows["converted"], "backend"] == "cutlass").all()
    assert isinstance(done.model.blocks[0].attn.qkv.weight, Packed)
    assert done.difference < 2e-2 and rows["difference"].max() < 8e-3  # of float16, whose unit is 1e-3
    assert torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS == force
    images = random_images(8, 4, dtype=torch.float16)
    with torch.no_grad():
        compiled = torch.compile(done.model, backend="aot_eager", dynamic=False)(images)
        torch.testing.assert_close(compiled, done.model(images), rtol=1e-2, atol=1e-2)  # float16


def test_a_kernel_that_refuses_the_strides_of_the_network_is_noticed(packed_on_cpu):
    done = run(net(), random_images(4, dtype=torch.float32), packed_on_cpu, torch.float16)
    why = reasons(done)  # tokens that were channels reach "good" transposed, and PyTorch's kernels take no such input
    assert why["good"].startswith("cutlass: NotImplementedError: Sparse") and why["odd"] == ""
    assert done.table.set_index("layer").loc["odd", "converted"] and done.difference < 2e-2


def test_a_number_format_in_which_the_network_overflows_is_refused():
    model = net()
    nn.init.constant_(model.fc.bias, 1e6)
    with pytest.raises(SnowsError, match=r"dtype: got float16, in which .* NaN or infinite.*bfloat16"):
        run(model, random_images(2, dtype=torch.float32), dtype=torch.float16)


def test_shapes_are_those_of_this_pytorch():
    by_name = {
        kernel.name: kernel.shape for backend in ("cusparselt", "cutlass") for kernel in kernels(torch.float16, backend)
    }
    assert by_name == {"cusparselt": (16, 16), "cutlass": (32, 64)}


@pytest.mark.skipif(HAS_KERNELS, reason="there is such a GPU")
def test_without_a_gpu_one_clear_error_says_so():
    with pytest.raises(SnowsError, match=r"device: got .*; expected a CUDA GPU of compute capability 8.0 .*T4 has 7.5"):
        snows.to_semi_structured(net(), random_images(2))


@pytest.mark.parametrize(
    ("capability", "name", "device", "words"),
    [
        ((7, 5), "Tesla T4", None, "device: got Tesla T4 of compute capability 7.5; expected a CUDA GPU"),
        ((9, 0), "NVIDIA H100", "cpu", "device: got 'cpu'; expected a CUDA GPU"),
        ((9, 0), "NVIDIA H100", None, ""),
    ],
)
def test_a_gpu_is_taken_by_its_compute_capability(monkeypatch, capability, name, device, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.version, "hip", None)
    if not words:
        assert sparse_kernels.sparse_device(device) == torch.device("cuda:0")
        return
    with pytest.raises(SnowsError, match=words):
        sparse_kernels.sparse_device(device)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": torch.float32}, "dtype: got torch.float32; expected torch.float16 or torch.bfloat16"),
        ({"backend": "cublas"}, "backend: got 'cublas'"),
        ({"convolutions": 1}, "convolutions: got 1"),
        ({"model": None}, "model: got NoneType"),
    ],
)
def test_mistakes_are_named_before_the_gpu_is_looked_for(change, words):
    with pytest.raises(SnowsError, match=words):
        snows.to_semi_structured(**{"model": small_resnet(), "images": random_images(2)} | change)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_KERNELS, reason="no CUDA device with 2:4 hardware")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("convolutions", [False, True])
def test_a_gpu_converts_and_answers_as_the_dense_network(dtype, convolutions):
    torch.manual_seed(0)
    name = "resnet50" if convolutions else "vit_small_patch16_224"
    model = two_of_four(timm.create_model(name, num_classes=16))
    images = random_images(8, 224, dtype=torch.float32)
    done = snows.to_semi_structured(model, images, dtype=dtype, convolutions=convolutions)
    assert done.table["converted"].sum() > 20, done.table.to_string()
    assert done.difference < (0.05 if dtype == torch.float16 else 0.3)
    with torch.no_grad():
        compiled = torch.compile(done.model)(images.cuda().to(dtype))
    assert compiled.shape == (8, 16) and bool(torch.isfinite(compiled).all())
