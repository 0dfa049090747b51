"""choice.py, select.py, check_trace.py: layers by class or module, zeros that stay, large numbers, other graphs."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, chosen, plan, random_images, random_mask, reasons, small_resnet, torch_attention

from snows_core.errors import SnowsError
from snows_core.masks.patterns import NM, Unstructured
from snows_core.network.check_trace import check_trace
from snows_core.network.graph import Network
from snows_core.sweep.choose_masks import choose_masks, read_masks
from snows_core.sweep.select import select_layers

DEFAULT = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.downsample.0"]


@pytest.mark.parametrize(
    "choice, expected",
    [
        (lambda m: nn.Linear, ["fc"]),
        (lambda m: [nn.Linear], ["fc"]),
        (lambda m: m.fc, ["fc"]),
        (lambda m: m.layer1, DEFAULT[:2]),
        (lambda m: type(m.layer1), DEFAULT),  # a class of modules that hold layers
        (lambda m: [m.fc, "layer1.*"], [*DEFAULT[:2], "fc"]),
        (lambda m: (m.layer2.downsample, nn.Linear), ["layer2.downsample.0", "fc"]),
        (lambda m: m, ["conv1", *DEFAULT, "fc"]),
        (lambda m: {m.conv1, "fc"}, ["conv1", "fc"]),
        (lambda m: lambda name, module: module is m.fc, ["fc"]),
    ],
)
def test_layers_and_exclude_take_classes_modules_and_mixtures(choice, expected):
    model = small_resnet()
    assert chosen(plan(model, layers=choice(model))) == expected
    if set(DEFAULT) - set(expected):
        left = [name for name in DEFAULT if name not in expected]
        assert chosen(plan(model, exclude=choice(model))) == left


def test_a_module_means_weights_used_without_one_too():
    model = torch_attention()
    both = ["attn.in_proj_weight", "attn.out_proj"]
    assert chosen(plan(model, layers=model.attn)) == both
    assert chosen(plan(model, layers=nn.MultiheadAttention)) == both
    assert chosen(plan(model, exclude=[nn.MultiheadAttention])) == ["mlp.0", "mlp.2"]


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_modules_of_a_wrapped_model_are_found(wrap):
    inner = small_resnet()
    model = wrap(inner).eval()
    assert chosen(plan(model, layers=inner.fc)) == ["fc"]
    assert chosen(plan(model, layers=model)) == ["conv1", *DEFAULT, "fc"]


@pytest.mark.parametrize(
    "choice, message",
    [
        (lambda m: nn.Conv1d, r"layers: got the class Conv1d; expected what holds at least one .* 7 layers\. Layers"),
        (lambda m: m.bn1, r"layers: got the module 'bn1'; expected what holds"),
        (lambda m: nn.Linear(2, 2), r"layers: got a Linear that is no part of the model"),
        (lambda m: copy.deepcopy(m).fc, r"layers: got a Linear that is no part of the model"),
        (lambda m: [5], r"layers: got a int in a list; expected names, globs, classes, modules"),
        (lambda m: [nn.Linear, "fcc"], r"layers: got 'fcc'.*Nearest: fc"),
        (lambda m: 5, r"layers: got int; expected names, globs, classes"),
    ],
)
def test_what_means_no_layer_is_refused(choice, message):
    model = small_resnet()
    with pytest.raises(SnowsError, match=message):
        plan(model, layers=choice(model))


# --- zeros that are there already


def masks_of(model, pattern, **options):
    network = Network(model)
    planned = select_layers(network, model, random_images(2))
    return choose_masks(network, planned, pattern, **options)


def sparse(fraction=0.7):
    model = small_resnet()
    with torch.no_grad():
        for name in DEFAULT:
            weight = model.get_submodule(name).weight
            threshold = weight.abs().flatten().kthvalue(int(fraction * weight.numel())).values
            weight.mul_(weight.abs() > threshold)
    return model


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(3, 4), Unstructured(0.5), Unstructured(0.5, "global")])
def test_a_pattern_never_fills_zeros(pattern):
    model = sparse()
    with pytest.warns(UserWarning, match=r"model: \d+ weights that the pattern would keep are zero already.* 5 layers"):
        _, masks = masks_of(model, pattern)
    for name, mask in masks.items():
        assert not (mask & (model.get_submodule(name).weight == 0)).any()


@pytest.mark.filterwarnings("error")
def test_no_warning_where_no_zero_is_kept_and_given_masks_are_taken_as_they_are():
    _, masks = masks_of(sparse(0.5), Unstructured(0.8))
    assert abs(float(masks["layer1.conv1"].double().mean()) - 0.2) < 0.01
    _, masks = masks_of(small_resnet(), NM(2, 4))
    assert float(masks["layer1.conv1"].double().mean()) == 0.5
    given = {"layer1.conv1": random_mask((4, 4, 3, 3))}
    model = sparse()
    network = Network(model)
    planned = select_layers(network, model, random_images(2))
    _, masks = read_masks(network, planned, NM(2, 4), given)
    assert torch.equal(masks["layer1.conv1"], given["layer1.conv1"])


def test_layers_of_zeros_alone_are_left_out():
    model = small_resnet()
    model.layer1.conv1.weight.data.zero_()
    planned, masks = masks_of(model, NM(2, 4))
    assert "layer1.conv1" not in masks and len(masks) == 4
    assert reasons(planned)["layer1.conv1"] == "all of its weights are zero already"
    model.layer1.conv2.weight.data[:, :2] = 0
    with pytest.warns(UserWarning, match="zero already and stay zero"):  # a score that prefers zeros
        planned, masks = masks_of(model, NM(2, 4), saliency=lambda name, weight: 1 / (1 + weight.abs()))
    assert reasons(planned)["layer1.conv2"] == "the pattern would keep only weights that are zero already"


def test_a_mask_for_what_cannot_be_pruned_is_refused_with_its_reason():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.up = small_resnet(), nn.ConvTranspose2d(3, 3, 1)

        def forward(self, x):
            return self.net(self.up(x))

    model = awake(Hidden())
    network = Network(model)
    selection = select_layers(network, model, random_images(2))
    for name in ("up", "up.weight"):
        with pytest.raises(SnowsError, match=r"masks: .*'up(\.weight)?'.*transposed convolution"):
            read_masks(network, selection, NM(2, 4), {name: random_mask((3, 3, 1, 1))})


def test_ties_follow_the_seed():
    model = small_resnet()
    with torch.no_grad():
        for name in DEFAULT:
            model.get_submodule(name).weight.fill_(1.0)
    first, again, other = (masks_of(model, Unstructured(0.5), seed=seed)[1] for seed in (0, 0, 1))
    usual = masks_of(model, Unstructured(0.5))[1]
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], usual[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


# --- numbers


@pytest.mark.parametrize("scale", [1e18, 1e30, float("inf")])
def test_images_that_are_far_too_large_are_refused_with_the_layer(scale):
    model = small_resnet().float()
    images = random_images(2, dtype=torch.float32)
    images = images * scale if scale < float("inf") else images.fill_(3e38)
    with pytest.raises(SnowsError, match=r"images: got values up to .*e\+\d\d at the input of layer 'conv1'.*Norm"):
        plan(model, images)


def test_the_first_layer_whose_output_is_not_finite_is_named():
    model = small_resnet()
    with torch.no_grad():
        model.layer1.bn1.weight.fill_(1e200)
    with pytest.raises(SnowsError, match=r"at the input of layer 'layer1\.conv2'; expected finite values below"):
        plan(model)
    model = small_resnet()
    with torch.no_grad():
        model.layer1.conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(SnowsError, match=r"model: got NaN or infinite weights in layer 'layer1\.conv1'"):
        plan(model)
    plan(small_resnet(), random_images(2) * 1e18)  # double precision holds that


@pytest.mark.parametrize("dtype, small, large", [(torch.float32, 1e-5, 3e-3), (torch.float64, 1e-10, 1e-6)])
def test_the_graph_may_differ_by_half_the_digits_of_its_type(dtype, small, large):
    model = small_resnet().to(dtype)
    network, images = Network(model), random_images(2, dtype=dtype)
    for amount, fits in ((small, True), (large, False)):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.fc.weight.mul_(1 + amount)
            other.fc.bias.mul_(1 + amount)
        if fits:
            check_trace(network, other, images)
            continue
        with pytest.raises(SnowsError, match=r"its traced graph differs from the model by .*\(up to "):
            check_trace(network, other, images)


def test_the_callers_images_stay_as_they_are():
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            x.sub_(0.5).div_(2)
            return self.net(x)

    images = random_images(2)
    before = images.clone()
    assert chosen(plan(Normalising().eval(), images)) == [f"net.{name}" for name in DEFAULT]
    assert torch.equal(images, before)


def test_planning_works_inside_inference_mode_and_autocast():
    images = random_images(2, dtype=torch.float32)
    model = small_resnet().float()
    with torch.inference_mode():
        assert chosen(plan(model, images)) == DEFAULT
        assert chosen(plan(model, images.clone())) == DEFAULT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert chosen(plan(model, images)) == DEFAULT


def test_kernels_of_odd_dimensions_crash_nothing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.volume, self.row = nn.Conv2d(3, 4, 1), nn.Conv3d(4, 4, 1), nn.Parameter(torch.randn(4))
            self.mid, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

        def forward(self, x):
            x = self.mid(self.volume(self.stem(x)[:, :, None])[:, :, 0]).mean((2, 3))
            return self.fc(x * F.linear(x, self.row)[:, None])

    model = awake(Odd())
    planned = plan(model)
    assert chosen(planned) == ["mid"]
    assert reasons(planned)["row"] == "a weight of 1 axes"
    assert reasons(planned)["volume"] == "3-dimensional convolution"
