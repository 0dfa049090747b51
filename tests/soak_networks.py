"""Hypothesis strategies: small networks put together of blocks, and what is asked of ``prune`` on them.

The blocks are those of :mod:`fuzz`, which draw their own form, and three whose point is how values are shared and seen.
"""

import random

import torch
from fuzz import (
    SIZE,
    Activation,
    Attention,
    Branches,
    Convolution,
    Perceptron,
    Pool,
    Residual,
    SqueezeExcite,
)
from hypothesis import strategies as st
from torch import nn
from toys import awake, random_images

WIDTH = 8


class SharedActivation(nn.Module):
    """One activation that stands in three places, perhaps in place, around a residual."""

    def __init__(self, draw):
        super().__init__()
        self.one, self.two = (Convolution(draw, WIDTH, WIDTH, act=False) for _ in range(2))
        self.act = draw.choice([nn.ReLU(inplace=True), nn.ReLU(), nn.GELU(), nn.SiLU()])

    def forward(self, x):
        x = self.act(x)
        return self.act(x + self.two(self.act(self.one(x))))


class Views(nn.Module):
    """Channels shuffled between groups by views and a transpose, cut in two, one half convolved, and put together."""

    def __init__(self, draw):
        super().__init__()
        self.grouped = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=draw.choice([2, 4]), bias=False)
        self.part = Convolution(draw, WIDTH // 2, WIDTH // 2)
        self.way = draw.choice(["reshape", "view", "unflatten"])

    def forward(self, x):
        x = self.grouped(x)
        count, channels, height, width = x.shape
        if self.way == "unflatten":
            x = x.unflatten(1, (2, channels // 2)).transpose(1, 2).flatten(1, 2)
        else:
            x = x.view(count, 2, channels // 2, height, width).transpose(1, 2).contiguous()
            x = x.view(count, -1, height, width) if self.way == "view" else x.reshape(x.size(0), channels, height, -1)
        one, two = x.chunk(2, dim=1)
        return torch.cat([one, self.part(two)], dim=1)


class Separable(nn.Module):
    """A convolution of each channel for itself, dilated perhaps, and one across channels."""

    def __init__(self, draw):
        super().__init__()
        dilation = draw.choice([1, 2])
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation, groups=WIDTH)
        self.norm, self.act, self.pointwise = nn.BatchNorm2d(WIDTH), Activation(draw), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x):
        return self.pointwise(self.act(self.norm(self.depthwise(x))))


BLOCKS = {
    "convolution": lambda draw: Convolution(draw, WIDTH, WIDTH),
    "residual": lambda draw: Residual(draw, WIDTH, WIDTH),
    "strided": lambda draw: Residual(draw, WIDTH, WIDTH, 2),
    "branches": lambda draw: Branches(draw, WIDTH, WIDTH),
    "squeeze": lambda draw: SqueezeExcite(draw, WIDTH),
    "pool": Pool,
    "shared": SharedActivation,
    "views": Views,
    "separable": Separable,
}
TOKENS = {"attention": lambda draw: Attention(draw, WIDTH), "perceptron": lambda draw: Perceptron(draw, WIDTH)}


class Composed(nn.Module):
    """A stem, blocks on maps, blocks on tokens where there are any, and a linear head."""

    def __init__(self, maps, tokens, seed):
        super().__init__()
        draw = random.Random(seed)
        self.stem = Convolution(draw, 3, WIDTH, kernel=3)
        self.maps = nn.Sequential(*(BLOCKS[kind](draw) for kind in maps))
        self.tokens = nn.Sequential(*(TOKENS[kind](draw) for kind in tokens))
        self.hidden, self.act, self.head = nn.Linear(WIDTH, WIDTH), Activation(draw), nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = self.maps(self.stem(x)).flatten(2)
        x = self.tokens(x.transpose(1, 2)).mean(1) if len(self.tokens) else x.mean(2)
        return self.head(self.act(self.hidden(x)))


@st.composite
def networks(draw):
    """Return a network in eval mode and double precision, of which maps are not halved more than once."""
    maps = draw(st.lists(st.sampled_from(list(BLOCKS)), min_size=1, max_size=4))
    halving = [i for i, kind in enumerate(maps) if kind in ("strided", "pool")]
    maps = [kind for i, kind in enumerate(maps) if i not in halving[1:]]
    tokens = draw(st.lists(st.sampled_from(list(TOKENS)), max_size=2))
    seed = draw(st.integers(0, 9999))
    return awake(Composed(maps, tokens, seed), seed)


def settings():
    """Return a strategy of keywords of ``prune``."""
    per_layer = st.builds(
        lambda first, others: {"*": others, "maps.0*": first}, st.sampled_from([0.2, 0.7]), st.sampled_from([0.4, 0.6])
    )
    return st.fixed_dictionaries(
        {
            "pattern": st.sampled_from(["2:4", "1:4", "1:2", "3:4", 0.3, 0.5, 0.9, "global:0.6"]) | per_layer,
            "k": st.integers(0, 4),
            "stages": st.integers(1, 3),
            "stage_k": st.sampled_from([0, 1]),
            "mask": st.sampled_from(["magnitude", "magnitude", "swaps", "obc", "sparsegpt"]),
            "seed": st.integers(0, 3),
        }
    ).map(_with_effect)


def _with_effect(options):
    """Leave out K between stages where there is one stage: an option without effect is refused."""
    return {name: value for name, value in options.items() if name != "stage_k" or options["stages"] > 1}


def calibration_images(seed):
    """Return few images for a network of this file."""
    return random_images(12, SIZE, seed=seed)
