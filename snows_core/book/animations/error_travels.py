"""An error made in one layer travels through the blocks of the shipped ResNet-20.

One convolution loses seven of every eight weights; every other layer stays dense. Behind the layer and behind each
block the activations of test images are compared with the dense network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from snows_core.book.animations.encode import BLUE, GREY, ORANGE, Animation
from snows_core.prune import prune
from snows_core.zoo import experiment

LAYER, PATTERN, FAR = "layer1.0.conv1", "1:8", 12
"""The layer, what it keeps, and K of the solution that looks farthest."""

REPAIRS: Mapping[str, tuple[str, int]] = {
    "mask alone": ("none", 0),
    "layer-wise ($K=0$)": ("layerwise", 0),
    f"SNOWS ($K={FAR}$)": ("snows", FAR),
}
"""What is done about the removed weights: name to ``update`` and ``k`` of ``prune``."""

LOOKS = ((GREY, "v", ":"), (ORANGE, "s", "-."), (BLUE, "o", "-"))
PLACES = ("layer1.0.bn1", *(f"layer{stage}.{block}.relu2" for stage in (1, 2, 3) for block in range(3)))
"""Where activations are compared: the layer with its batch norm, and the nine blocks."""

KEYS = (1, 2, 4, 7, 9, 0)


@dataclass(frozen=True)
class Travel:
    """Errors by repair and place, both in the orders of ``REPAIRS`` and ``PLACES``.

    Attributes:
        errors: squared error relative to the squared activation, over all test images, (repairs, places).
        maps: for the first of them, the root mean square over channels of the error, relative to that of the activation
            over the whole map; a tensor (height, width) for each repair and place.
    """

    errors: Tensor
    maps: list[list[Tensor]]


def compute(images: int = 128, tests: int = 256, seed: int = 0) -> Travel:
    """Prune the layer three times and compare.

    Args:
        images: calibration images.
        tests: test images on which errors are measured.
        seed: of the choice of images.

    Returns:
        Errors and maps.
    """
    chosen = experiment("digits-resnet20")
    model, data = chosen.load_model().eval(), chosen.load_data()
    calibration, _, _ = data.train.sample(images, seed)
    shown, _ = data.test.tensors(tests)
    dense = activations(model, shown)
    errors, maps = [], []
    for update, k in REPAIRS.values():
        options: dict[str, Any] = {"layers": [LAYER], "mask": "magnitude", "update": update, "k": k, "seed": seed}
        pruned = prune(model, calibration, PATTERN, effort="quick", progress=False, **options).model
        assert pruned is not None
        found = activations(pruned, shown)
        pairs = [(found[place] - dense[place], dense[place]) for place in PLACES]
        errors.append([float(gap.square().sum() / wanted.square().sum()) for gap, wanted in pairs])
        maps.append(
            [gap[0].square().mean(0).sqrt() / wanted[0].square().mean().sqrt() for gap, wanted in pairs]
        )  # (height, width) each
    return Travel(torch.tensor(errors), maps)


def activations(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return what a network computes at ``PLACES`` for images."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(place).register_forward_hook(
            lambda _, __, output, place=place: found.__setitem__(place, output.clone())
        )
        for place in PLACES
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found


def animate(travel: Travel) -> Animation:
    """Draw the places one after the other, all of them in the first frame."""
    last = len(PLACES)
    order = [last, *range(1, last)]
    return Animation([_frame(travel, i) for i in order], [3.5, *[0.9] * (last - 1)], KEYS)


def _frame(travel: Travel, count: int) -> Figure:
    """Draw the first ``count`` places: maps of one image above, errors of all images below."""
    figure = Figure(figsize=(6.2, 4.3))
    left, width = 0.125, 0.0865
    for row, (maps, (colour, _, _)) in enumerate(zip(travel.maps, LOOKS, strict=True)):
        for place, values in enumerate(maps):
            ax = figure.add_axes((left + width * place, 0.735 - 0.128 * row, width * 0.92, 0.118))
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set(visible=True, color="#d5d5d5")
            if place < count:
                ax.imshow(values, cmap="Greys", vmin=0, vmax=1.2, interpolation="nearest")
                ax.spines[:].set(color=colour, linewidth=1.5)
    middle: dict[str, Any] = {"ha": "center", "va": "center"}
    figure.text(left + 5 * width, 0.965, "One layer loses seven eighths of its weights", size=12, **middle)
    figure.text(left + 5 * width, 0.895, "error of one image at each place (darker: larger)", size=10, **middle)
    ax = figure.add_axes((left, 0.135, 10 * width, 0.3))
    for values, (colour, marker, dashes), name in zip(travel.errors, LOOKS, REPAIRS, strict=True):
        percent = 100 * values[:count]
        ax.plot(range(count), percent, color=colour, marker=marker, ls=dashes, lw=1.8, ms=5.5, label=name)
    names = ["layer", *(f"block {block}" if block == 1 else str(block) for block in range(1, 10))]
    ax.set_xticks(range(len(PLACES)), names)
    ax.set(yscale="log", xlim=(-0.5, len(PLACES) - 0.5), ylim=_limits(100 * travel.errors))
    ax.set_yticks([1, 10, 100], ["1", "10", "100"])
    ax.set_ylabel("error (%)")
    ax.grid(axis="y", color="#e5e5e5")
    ax.legend(loc="upper center", bbox_to_anchor=(0.46, -0.19), ncols=3, fontsize=9.5, columnspacing=1.4)
    return figure


def _limits(percent: Tensor) -> tuple[float, float]:
    """Return ends of a logarithmic axis with room above and below."""
    return float(percent.min()) / 1.6, float(percent.max()) * 1.6
