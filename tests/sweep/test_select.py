"""select.py: every layer is selected, or left dense with the reason; what cannot be meant is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import RESNET_INNER, chosen, plan, random_images, reasons, small_resnet, small_vit, torch_attention

from snows_core.errors import SnowsError


def test_default_is_all_but_the_first_layer_and_the_classifier():
    planned = plan(small_resnet())
    assert chosen(planned) == RESNET_INNER
    assert reasons(planned) == {"conv1": "first layer (reads the image)", "fc": "classifier"}
    vit = plan(small_vit(), random_images(2, 4))
    assert chosen(vit) == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    assert set(reasons(vit)) == {"patch_embed.proj", "head"}
    assert chosen(plan(torch_attention())) == ["attn.in_proj_weight", "attn.out_proj", "mlp.0", "mlp.2"]


@pytest.mark.parametrize(
    "choice, expected",
    [
        ({"layers": "layer1.conv1"}, ["layer1.conv1"]),
        ({"layers": ["fc", "conv1"]}, ["conv1", "fc"]),  # asked for by name, first layer and classifier are taken
        ({"layers": "layer?.conv1"}, ["layer1.conv1", "layer2.conv1"]),
        ({"layers": ("layer1.*", "fc")}, ["layer1.conv1", "layer1.conv2", "fc"]),
        (
            {"layers": lambda name, module: module.kernel_size == (1, 1) if name != "fc" else False},
            ["layer2.downsample.0"],
        ),
        ({"exclude": "*downsample*"}, RESNET_INNER[:-1]),
        ({"exclude": lambda name, module: "layer2" in name}, RESNET_INNER[:2]),
        ({"layers": "layer*", "exclude": ["layer1.conv1", "layer2*"]}, ["layer1.conv2"]),
    ],
)
def test_layers_and_exclude_take_names_globs_and_predicates(choice, expected):
    planned = plan(small_resnet(), **choice)
    assert chosen(planned) == expected
    assert len(planned.entries) == 7, "the report lists every layer with weights"
    assert set(reasons(planned).values()) <= {
        "not among layers=",
        "excluded",
        "first layer (reads the image)",
        "classifier",
    }


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"layers": "layer3*"}, r"layers: got 'layer3\*'; expected names or globs of this model's 7 layers\. Nearest:"),
        ({"layers": ["layer1.conv1", "layer1.conv3"]}, r"layers: got 'layer1\.conv3'.*Nearest: layer1\.conv"),
        ({"exclude": "fcc"}, r"exclude: got 'fcc'; expected .*Nearest: fc\."),
        ({"layers": []}, r"layers: got a choice that selects no layer; expected at least one"),
        ({"layers": "layer1*", "exclude": "layer1*"}, r"layers: got a choice that selects no layer"),
        ({"layers": lambda name, module: False}, r"layers: got a choice that selects no layer"),
        ({"layers": 5}, r"layers: got"),
    ],
)
def test_choices_that_select_nothing_are_refused(choice, message):
    with pytest.raises(SnowsError, match=message):
        plan(small_resnet(), **choice)


class NormalisedHead(nn.Module):
    """A head whose weight is computed from a parameter, and a convolution whose parameter belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.classes = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = F.conv2d(self.conv(self.stem(x).relu()).relu(), self.kernel).relu().mean((2, 3))
        return F.linear(x, F.normalize(self.classes.weight, dim=1))


@pytest.mark.parametrize("argument", ["layers", "exclude"])
def test_a_function_is_not_asked_about_weights_that_are_computed(argument):
    asked = {}

    def is_conv(name, module):
        asked[name] = module
        return name == "conv"

    torch.manual_seed(0)
    planned = plan(NormalisedHead().double().eval(), **{argument: is_conv})
    assert chosen(planned) == (["conv"] if argument == "layers" else ["kernel"])
    assert set(asked) == {"stem", "conv", "kernel"} and asked["kernel"] is None
    assert isinstance(asked["conv"], nn.Conv2d)


def test_a_function_that_forgets_weights_without_a_module_is_told_so():
    torch.manual_seed(0)
    with pytest.raises(SnowsError, match=r"fails for 'kernel' .*NoneType.*where module is None, as the weight is used"):
        plan(NormalisedHead().double().eval(), layers=lambda name, module: module.weight.numel() > 100)
