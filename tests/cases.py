"""The table of cases that all solvers, losses and methods run through, each with something peculiar about it.

A row makes a layer's problem and, beside it, the same K-step loss by plain autograd: ``CASES["grouped"]()`` is an
:class:`oracles.Case`. A new peculiarity is one more row.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from oracles import Case
from torch import nn
from toys import awake, nudged, random_images, random_mask, small_resnet, small_vit, torch_attention

# Where each tap of a segment shows in the model itself, as (module, which call, "out" or "in"): an oracle that knows
# nothing of torch.fx. The attention product has no module; its values are the input of the projection behind it.
RESNET_TAPS = [
    ("layer1.bn1", 0, "out"),
    ("layer1.relu", 0, "out"),
    ("layer1.bn2", 0, "out"),
    ("layer1.relu", 1, "out"),
    ("layer2.bn1", 0, "out"),
    ("layer2.relu", 0, "out"),
    ("layer2.bn2", 0, "out"),
    ("layer2.downsample.1", 0, "out"),
    ("layer2.relu", 1, "out"),
    ("fc", 0, "out"),
]
VIT_TAPS = [
    ("blocks.0.attn.qkv", 0, "out"),
    ("blocks.0.attn.proj", 0, "in"),
    ("blocks.0.attn.proj", 0, "out"),
    ("blocks.0.norm2", 0, "out"),
    ("blocks.0.mlp.fc1", 0, "out"),
    ("blocks.0.mlp.act", 0, "out"),
    ("blocks.0.mlp.fc2", 0, "out"),
    ("blocks.1.norm1", 0, "out"),
    ("blocks.1.attn.qkv", 0, "out"),
]


@dataclass(frozen=True)
class LayerCase:
    """One row of the table.

    Attributes:
        peculiar: what is peculiar about it.
        make: a small network in eval mode and double precision, from a seed.
        layer: the layer to be solved.
        k: how many operations its loss looks ahead.
        count: images.
        size: their height and width.
        sizes: images per batch; None is one batch.
        keep: share of the weights that are kept.
        support: makes another mask of a random one.
        before: parameters of earlier layers that are damaged already.
        taps: where the taps show in the model itself, if anybody has written that down.
        seed: of the network's weights.
    """

    peculiar: str
    make: Callable[[int], nn.Module]
    layer: str
    k: int = 3
    count: int = 5
    size: int = 6
    sizes: tuple[int, ...] | None = None
    keep: float = 0.5
    support: Callable[[torch.Tensor], torch.Tensor] = lambda mask: mask
    before: tuple[str, ...] = ()
    taps: list[tuple[str, int, str]] | None = field(default=None, repr=False)
    seed: int = 0

    def images(self):
        return random_images(self.count, self.size)

    def mask(self, model):
        return self.support(random_mask(weight_of(model, self.layer).shape, self.keep))

    def __call__(self, k=None, **options):
        """Return the problem with its oracle; ``k``, ``sizes`` and options of the loss may be others."""
        model = self.make(self.seed)
        damaged = {name: nudged(model.get_parameter(name).detach()) for name in self.before}
        options = {"sizes": self.sizes, "damaged": damaged, **options}
        k = self.k if k is None else k
        return Case(model, self.layer, self.taps, self.images(), k, self.mask(model), **options)


def weight_of(model, layer):
    """Return the weight of a layer, which attention holds under a name of its own."""
    own = dict(model.named_parameters())
    return (own[f"{layer}.weight"] if f"{layer}.weight" in own else own[layer]).detach()


def between(*layers):
    """Return a maker of a network: a convolution of four channels, what is asked for (from "2" on), a convolution."""

    def make(seed):
        first, last = nn.Conv2d(3, 4, 3, padding=1), nn.LazyConv2d(3, 1)
        return grown(nn.Sequential(first, nn.ReLU(), *copy.deepcopy(layers), nn.GELU(), last), seed)

    return make


def perceptron(start, inputs, act=nn.ReLU):
    """Return a maker of a network: linear layers on whatever ``start`` makes of the images."""

    def make(seed):
        layers = nn.Linear(inputs, 6), act(), nn.Linear(6, 8), act(), nn.Linear(8, 3)
        return grown(nn.Sequential(start, *layers), seed)

    return make


def grown(model, seed):
    """Give lazy layers their sizes, and all of them weights."""
    model(torch.zeros(1, 3, 6, 6))
    return awake(model, seed)


def with_dead_channels(seed):
    """Two of four channels that the layer reads are zero everywhere."""
    model = between(nn.Conv2d(4, 6, 3))(seed)
    with torch.no_grad():
        model[0].weight[:2] = 0.0
        model[0].bias[:2] = 0.0
    return model


def second_row_empty(mask):
    mask[1] = False
    return mask


def one_a_row(mask):
    return (torch.arange(mask[0].numel()) == 1).view(1, *mask.shape[1:]).expand_as(mask).clone()


CASES = {
    "resnet": LayerCase(
        "a residual unit: one in-place ReLU for two places, batch norms, shortcuts",
        small_resnet,
        "layer1.conv1",
        9,
        taps=RESNET_TAPS,
    ),
    "vit": LayerCase(
        "a transformer block: fused attention, whose Hessian is indefinite",
        small_vit,
        "blocks.0.attn.qkv",
        8,
        size=4,
        keep=0.4,
        taps=VIT_TAPS,
    ),
    "torch attention": LayerCase(
        "a parameter of attention that is no module's weight", torch_attention, "attn.in_proj_weight", 5
    ),
    "vectors": LayerCase("a linear layer on one vector an image", perceptron(nn.Flatten(), 108), "3"),
    "tokens": LayerCase("a linear layer on tokens", perceptron(nn.Flatten(2), 36, nn.GELU), "3"),
    "convolution": LayerCase("a convolution with nothing peculiar", between(nn.Conv2d(4, 5, 3)), "2"),
    "strided": LayerCase(
        "a rectangular kernel, strides and paddings", between(nn.Conv2d(4, 5, (3, 2), (2, 1), (1, 0))), "2"
    ),
    "dilated": LayerCase("holes in the kernel", between(nn.Conv2d(4, 5, 2, dilation=2)), "2"),
    "reflected": LayerCase(
        "padding that repeats the image", between(nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect")), "2"
    ),
    "1 x 1": LayerCase("a kernel of one position", between(nn.Conv2d(4, 6, 1)), "2"),
    "grouped": LayerCase("two groups of channels", between(nn.Conv2d(4, 6, 3, groups=2)), "2"),
    "depthwise": LayerCase("each channel by itself", between(nn.Conv2d(4, 8, 3, groups=4)), "2"),
    "batch norm": LayerCase(
        "a batch norm behind, to be folded", between(nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)), "2"
    ),
    "dead inputs": LayerCase("inputs that are always zero: the Gram matrix is singular", with_dead_channels, "2"),
    "empty row": LayerCase("a row that keeps nothing", between(nn.Conv2d(4, 5, 3)), "2", support=second_row_empty),
    "one a row": LayerCase("one weight a row", between(nn.Conv2d(4, 5, 3)), "2", support=one_a_row),
    "all kept": LayerCase("nothing is removed", between(nn.Conv2d(4, 5, 3)), "2", support=torch.ones_like),
    "one image": LayerCase("a single image", between(nn.Conv2d(4, 5, 3)), "2", count=1),
    "ragged": LayerCase("a last batch of one image", between(nn.Conv2d(4, 5, 3)), "2", sizes=(2, 2, 1)),
    "pruned before": LayerCase(
        "inputs that earlier layers changed", between(nn.Conv2d(4, 5, 3)), "2", before=("0.weight",)
    ),
}
SEVERAL = [name for name, case in CASES.items() if case.count == 5]  # that can be cut into batches
resnet_case, vit_case = CASES["resnet"], CASES["vit"]
