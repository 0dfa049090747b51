"""eligibility: layers of real modules, patterns that weights really hold, the words that a reader gets."""

from __future__ import annotations

import sys

import pytest
import timm
import torch
from results import made_up
from torch import nn
from toys import torch_attention

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import checklist
from snows_core.export.kernels import rule_file
from snows_core.export.kernels.held_pattern import held_by, held_pattern
from snows_core.export.kernels.weighted_layers import weighted_layers
from snows_core.masks.patterns import NM, Unstructured
from snows_core.network.graph import Network
from snows_core.network.positions import output_positions


def pruned(pattern, shape=(64, 64), seed=0):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return weight * pattern.mask(weight.abs())


def answers(model, **options):
    table = snows.eligibility(model, **options).table
    return {row.layer: (row.cusparselt, row.cutlass, row.tensorrt) for row in table.itertuples()}


@pytest.mark.parametrize(
    ("n", "m", "complies"),
    [
        (2, 4, True),
        (1, 4, True),
        (1, 2, True),
        (2, 8, True),
        (1, 16, True),
        (4, 8, False),
        (3, 4, False),
        (8, 16, False),
    ],
)
@pytest.mark.parametrize("shape", [(64, 64), (32, 64, 3, 3)])
def test_nm_of_weights_and_of_patterns_comply_alike(n, m, complies, shape):
    held, supposed = held_pattern(pruned(NM(n, m), shape)), held_by(NM(n, m), 64)
    assert ("2:4" in held.patterns) == ("2:4" in supposed.patterns) == complies
    n, m = (1, 4) if (n, m) == (2, 8) and held.label == "1:4" else (n, m)
    assert held.label == supposed.label == f"{n}:{m}" and held.zeros == pytest.approx(1 - n / m)
    assert complies == ("no speed" not in held.sentence) == ("no speed" not in supposed.sentence)


def test_patterns_that_are_none():
    assert held_pattern(torch.randn(8, 8)).label == "dense"
    chance = torch.randn(64, 64)
    chance[3, :5] = 0.0
    assert held_pattern(chance).label == "dense" and held_pattern(chance).zeros > 0
    unstructured = held_pattern(pruned(Unstructured(0.7)))
    assert unstructured.label == "unstructured" and not unstructured.patterns and "no speed" in unstructured.sentence
    channels = torch.randn(8, 8, 3, 3)
    channels[::2], channels[:, 5] = 0.0, 0.0
    assert held_pattern(channels).label == "channels" and "compact" in held_pattern(channels).sentence
    thinned = pruned(NM(2, 4)) * (torch.rand(64, 64) > 0.5)
    assert held_pattern(thinned).label == "within 2:4" and "2:4" in held_pattern(thinned).patterns
    assert held_pattern(torch.zeros(4, 8)).patterns == {"2:4", "1:2"}
    assert "groups of four" in held_pattern(pruned(Unstructured(0.5), (8, 6))).sentence


def test_one_weight_moved_is_seen():
    net = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        net[0].weight.copy_(pruned(NM(2, 4)))
        net[1].weight.copy_(pruned(NM(2, 4)))
        group = net[1].weight[5, 8:12]
        group[group == 0] = 0.25
    found = snows.eligibility(net, gpu="a100")
    assert answers(net, gpu="a100") == {"0": ("yes",) * 3, "1": ("no",) * 3}
    assert set(found.table.loc[1, ["cusparselt_rule", "cutlass_rule", "tensorrt_rule"]]) == {"pattern"}


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(64, 64, 3, padding=1)
        self.one = nn.Conv2d(64, 64, 1)
        self.narrow = nn.Conv2d(64, 24, 1)
        self.depthwise = nn.Conv2d(24, 24, 3, groups=24)
        self.up = nn.ConvTranspose2d(24, 16, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.up(self.depthwise(self.narrow(self.one(self.conv(x))))).mean((2, 3)))


def test_kinds_of_layers_and_the_rules_that_decide():
    found = snows.eligibility(Layers(), torch.randn(1, 64, 8, 8), gpu="A100", pattern="2:4").table.set_index("layer")
    assert found["kind"].tolist() == [
        *(
            "convolution",
            "1x1 convolution",
            "1x1 convolution",
            "grouped convolution",
            "transposed convolution",
            "linear",
        ),
    ]
    rules = found[["cusparselt_rule", "cutlass_rule", "tensorrt_rule"]].agg("/".join, axis=1).to_dict()
    assert rules == {
        "conv": "layer/layer/",
        "one": "layer/layer/",
        "narrow": "layer/layer/",
        "depthwise": "layer/layer/channels",
        "up": "layer/layer/layer",
        "head": "shape/shape/",
    }
    assert found.loc["one", "cusparselt_reason"].endswith("(to_semi_structured with convolutions=True): then yes")
    assert "then no, 24 x 64" in found.loc["narrow", "cusparselt_reason"]
    assert found.loc["conv", "multiplications"] == 64 * 64 * 9 * 64
    assert found.loc["depthwise", "multiplications"] == 24 * 9 * 36
    assert found.loc["up", "multiplications"] == 24 * 16 * 4 * 49
    assert found.loc["head", "multiplications"] == 160


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=48, num_heads=3), 32),
        (lambda: timm.create_model("mobilenetv3_small_050", num_classes=5), 64),
        (lambda: torch_attention().float(), 4),
    ],
)
def test_multiplications_are_those_of_the_graph(make, size):
    model, image = make().eval(), torch.randn(1, 3, size, size)
    network = Network(model, example=image)
    counted = output_positions(network, network.layers, image)
    by_weight = {layer.weight_name: counted[layer.name] for layer in network.layers}
    assert {layer.weight_name: layer.positions for layer in weighted_layers(model, image)} == by_weight


def test_a_layer_that_is_called_twice_multiplies_twice():
    layer = nn.Linear(16, 16)
    table = snows.eligibility(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer), torch.randn(1, 1, 4, 4)).table
    assert table["multiplications"].tolist() == [2 * 16 * 16]


def test_matrices_of_pytorchs_attention_are_named():
    table = snows.eligibility(torch_attention(dim=64), gpu="a100", pattern="2:4").table.set_index("layer")
    attention = table[table["kind"] == "attention"]
    assert attention.index.tolist() == ["attn.in_proj_weight", "attn.out_proj"]
    assert set(attention["cusparselt_rule"]) == {"layer"} and set(attention["tensorrt"]) == {"yes"}


def test_what_a_reader_gets():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))
    with torch.no_grad():
        for layer, pattern in zip(net, (NM(1, 4), NM(4, 8), Unstructured(0.9)), strict=False):
            layer.weight.copy_(pruned(pattern))
        net[3].weight[::2] = 0.0
    text = " ".join(str(snows.eligibility(net)).split())
    if not torch.cuda.is_available():
        assert text.startswith("assumed A100: no CUDA GPU is at hand and none was named (compute capability 8.0)")
    assert "1:4 complies with 2:4 and runs as 2:4: its further zeros bring no further speed." in text
    assert "4:8, unstructured: such zeros bring no speed on any of these" in text
    assert "Zeros of whole channels bring speed everywhere once `snows compact`" in text
    assert "TensorRT can take 1 of 4 layers: 25.0% of the weights." in text and "multiplications" not in text
    assert "fewer than 256 channels" in text and "sources: [1]" in text


def test_rows_of_an_input_are_those_of_a_batch():
    net = nn.Sequential(nn.Flatten(2), nn.Linear(64, 64))
    notes = [
        snows.eligibility(net, torch.randn(1, 197, 8, 8), pattern="2:4", batch=n).table["cusparselt_notes"][0]
        for n in (3, 8)
    ]
    assert notes == ["its input of 591 rows (images x tokens) is padded to a multiple of 8", ""]


@pytest.mark.parametrize("gpu", ["T4", "nvidia t4", "Tesla-T4", "7.5", "sm_75", "sm75", 7.5])
def test_a_t4_has_no_such_hardware(gpu):
    found = snows.eligibility(nn.Linear(64, 64), gpu=gpu, pattern="2:4")
    assert found.target.capability == (7, 5)
    assert found.table[["cusparselt_rule", "cutlass_rule", "tensorrt_rule"]].iloc[0].tolist() == ["architecture"] * 3


@pytest.mark.parametrize(
    ("gpu", "capability"),
    [
        ("RTX 4090", (8, 9)),
        ("4090", (8, 9)),
        ("Jetson AGX Orin", (8, 7)),
        ("B200", (10, 0)),
        ("sm_120", (12, 0)),
        ("10.0", (10, 0)),
    ],
)
def test_names_of_gpus(gpu, capability):
    assert snows.eligibility(nn.Linear(64, 64), gpu=gpu).target.capability == capability


def test_the_gpu_at_hand_is_asked(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    found = snows.eligibility(nn.Linear(64, 64), pattern="2:4")
    assert found.gpu.startswith("NVIDIA H100 80GB HBM3 (compute capability 9.0)")
    assert found.table["cutlass_rule"].tolist() == ["architecture"] and found.table["cusparselt"].tolist() == ["yes"]


def test_a_result_without_its_model_is_judged_by_its_weights():
    result = made_up(names=("a", "b"))
    table = snows.eligibility(result).table
    assert table["layer"].tolist() == ["a", "b"] and set(table["kind"]) == {"linear"}


def test_a_missing_library_is_named(monkeypatch):
    rule_file.rules.cache_clear()
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(SnowsError, match=r'needs yaml, not installed here.*pip install "snows-core\[export\]"'):
        snows.eligibility(nn.Linear(4, 4))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SnowsError, match="needs zstandard"):
        snows.sizes(nn.Linear(4, 4))


def test_the_model_stays_as_it_is():
    model = torch_attention().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    snows.eligibility(model, torch.randn(2, 3, 4, 4))
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gpu": "b20"}, r"gpu: got 'b20'; .* Nearest: b200"),
        ({"gpu": ""}, "gpu: got ''"),
        ({"dtype": "fp16"}, "dtype: got 'fp16'"),
        ({"dtype": torch.float64}, "dtype: got 'float64'"),
        ({"batch": 0}, "batch: got 0"),
        ({"pattern": 0.5}, "pattern: got unstructured 0.5; expected N:M"),
        ({"images": torch.randn(1, 7, 4, 4)}, "images"),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(SnowsError, match=words):
        snows.eligibility(net, **options)
    with pytest.raises(SnowsError, match="model: got a network without a layer"):
        snows.eligibility(nn.ReLU())


def test_the_checklist_names_flags_and_threads():
    text = checklist()
    flags = ("--sparsity=enable", "--sparsity=force", "--gemm_plugin", "torch.compile", "_FORCE_CUTLASS")
    threads = ("Model-Optimizer/issues/1974", "pytorch/issues/111339", "tutorials/issues/3236", "TensorRT/issues/4065")
    for word in (*flags, *threads):
        assert word in text
    assert max(map(len, text.splitlines())) < 125
