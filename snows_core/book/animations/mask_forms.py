"""The mask of one layer forms over stages: remove a little, re-fit, let the re-fitted weights choose what goes next.

Computed by ``snows.prune(..., stages=)`` on the shipped ResNet-20, all inner layers at once; one layer is drawn. What a
stage removed stays removed; joint refinement with moving masks, at the end, may give places back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from snows_core.book.animations.encode import BLUE, GREEN, GREY, ORANGE, Animation
from snows_core.masks import parse_pattern
from snows_core.prune import prune
from snows_core.zoo import experiment

LAYER, SPARSITY, STAGES, REFINE = "layer1.2.conv2", 0.9, 6, 100
KEYS = (1, 2, 3, 5, 7, 0)


@dataclass(frozen=True)
class Stages:
    """Masks of one layer, (out, in, height, width) each.

    Attributes:
        dense: its dense weight.
        weights: what each mask was chosen from: the dense weight, then the re-fitted ones.
        masks: after each stage, True where a weight stays.
        refined: the mask after joint refinement with moving masks.
        final: the weight after it.
        at_once: the mask that the dense weight alone would have chosen.
    """

    dense: Tensor
    weights: list[Tensor]
    masks: list[Tensor]
    refined: Tensor
    final: Tensor
    at_once: Tensor

    @property
    def came_back(self) -> Tensor:
        """Weights that the last stage had removed and refinement has taken up again."""
        return self.refined & ~self.masks[-1]


def compute(images: int = 128, stages: int = STAGES, refine: int = REFINE, seed: int = 0) -> Stages:
    """Prune the network in stages and keep what each saw.

    The saliency is magnitude, as by default; as a function it also notes the weights that it is asked about, which are
    those of the stage before.

    Args:
        images: calibration images.
        stages: how many.
        refine: steps of joint refinement behind them.
        seed: of the choice of images and of equal scores.

    Returns:
        Weights and masks of the layer.
    """
    chosen = experiment("digits-resnet20")
    model, data = chosen.load_model().eval(), chosen.load_data()
    calibration, _, _ = data.train.sample(images, seed)
    seen: list[Tensor] = []

    def magnitude(name: str, weight: Tensor) -> Tensor:
        if name == LAYER and not (seen and torch.equal(seen[-1], weight)):
            seen.append(weight.detach().clone())
        return weight.abs()

    options: dict[str, Any] = {
        "stages": stages,
        "stage_k": 0,
        "k": 1,
        "refine": refine,
        "moving_masks": refine > 0,
        "seed": seed,
    }
    result = prune(model, calibration, SPARSITY, saliency=magnitude, effort="quick", progress=False, **options)
    pattern = parse_pattern(SPARSITY)
    masks = [weight != 0 for weight in seen[1:]] + [pattern.mask(seen[-1].abs())]
    assert result.model is not None
    final = result.model.get_parameter(f"{LAYER}.weight").detach()
    return Stages(seen[0], seen, masks, result.masks[LAYER], final, pattern.mask(seen[0].abs()))


def animate(stages: Stages) -> Animation:
    """Draw dense weights, each stage, and what refinement moved, which comes first."""
    last = len(stages.masks) + 1
    order = [last, *range(last)]
    return Animation([_frame(stages, i) for i in order], [4.0, *[1.5] * last], KEYS)


def _frame(stages: Stages, number: int) -> Figure:
    """Draw the dense layer (0), the mask of a stage, or that of refinement (the last number)."""
    figure = Figure(figsize=(6.2, 4.2))
    last = len(stages.masks) + 1
    masks = [torch.ones_like(stages.refined), *stages.masks, stages.refined]
    mask, before = masks[number], masks[max(number - 1, 0)]
    weight = stages.final if number == last else stages.weights[min(number, len(stages.weights) - 1)]
    ax = figure.add_axes((0.01, 0.03, 0.62, 0.9))
    ax.imshow(_picture(weight, mask, before & ~mask, mask & ~before), interpolation="nearest")
    ax.axis("off")
    name = (
        "dense" if number == 0 else f"stage {number} of {last - 1}" if number < last else "refined, with moving masks"
    )
    ax.set_title(f"{LAYER}: {name}", size=11.5)
    words = {GREY: "kept (darker: larger)", ORANGE: "removed just now"} | (
        {GREEN: "came back"} if number == last else {}
    )
    handles = [Patch(color=colour, label=text) for colour, text in words.items()]
    figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.65, 0.95), fontsize=10, handlelength=1)
    _counts(figure.add_axes((0.765, 0.14, 0.225, 0.44)), stages, masks[: number + 1])
    return figure


def _picture(weight: Tensor, mask: Tensor, gone: Tensor, back: Tensor) -> np.ndarray:
    """Return an RGB picture of all kernels, (out) downward and (in) across, with a gap between two kernels."""
    out, inputs, height, width = weight.shape
    shade = 0.75 - 0.75 * (weight.abs() / weight.abs().max()).sqrt()
    colours = torch.where(mask, shade, 1.0)[..., None].expand(*weight.shape, 3).clone()  # kept grey, removed white
    colours[gone] = torch.tensor(to_rgb(ORANGE))
    colours[back] = torch.tensor(to_rgb(GREEN))
    sheet = torch.full((out, inputs, height + 1, width + 1, 3), 0.93)
    sheet[:, :, :height, :width] = colours
    sheet = sheet.permute(0, 2, 1, 3, 4).reshape(out * (height + 1), inputs * (width + 1), 3)
    return sheet[:-1, :-1].numpy()


def _counts(ax: Axes, stages: Stages, masks: list[Tensor]) -> None:
    """Draw how many weights are left, and how many of them one mask chosen at once would have removed."""
    kept = [float(mask.float().mean()) * 100 for mask in masks]
    rescued = [float((mask & ~stages.at_once).float().mean()) * 100 for mask in masks]
    places = range(len(masks))
    ax.bar(places, kept, color="#c4c4c4", label="weights left")
    ax.bar(places, rescued, color=BLUE, label="not in a mask\nchosen at once")
    ax.set(xlim=(-0.6, len(stages.masks) + 1.6), ylim=(0, 105), yticks=[0, 50, 100])
    ax.set_xticks(range(len(stages.masks) + 2), ["0", *(str(i) for i in range(1, len(stages.masks) + 1)), "r"])
    ax.set_xlabel("stage (r: refined)")
    ax.set_ylabel("weights (%)")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.5, 1.08), fontsize=10, handlelength=1, borderaxespad=0)
    now = f"{kept[-1]:.0f} %" if len(kept) > 1 else ""
    ax.text(places[-1], kept[-1] + 2, now, ha="center", size=9.5)
