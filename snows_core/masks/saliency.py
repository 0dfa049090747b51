"""How much a weight counts: a saliency scores each one, and in each group of a pattern the highest scores stay."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from snows_core.errors import closest, invalid_argument, users_code
from snows_core.masks.lowest import comparable
from snows_core.settings import SALIENCY, Saliency, function_of


def magnitude(name: str, weight: Tensor) -> Tensor:
    """Score a weight by its absolute value, the published choice."""
    return weight.abs()


SALIENCIES: dict[str, Saliency] = {"magnitude": magnitude}
"""Name to saliency, as ``saliency="magnitude"`` of ``prune`` looks it up."""

IMAGE_SALIENCIES: dict[str, tuple[str, ...]] = {
    "curvature": ("curvature",),
    "fisher": ("fisher",),
    "obs": ("obs",),
    "curvature+fisher": ("curvature", "fisher"),
    "obs+fisher": ("obs", "fisher"),
}
"""Name to the terms of a saliency that looks at calibration images (:mod:`snows_core.sweep.image_scores`)."""


def check_name(saliency: str | Saliency) -> None:
    """Refuse a name that no saliency has.

    Raises:
        SnowsError: names the saliencies there are.
    """
    known = (*SALIENCIES, *IMAGE_SALIENCIES)
    if isinstance(saliency, str) and saliency not in known:
        raise invalid_argument(
            "saliency", repr(saliency), f"one of {list(known)} or a function", closest(saliency, known)
        )


def make_scores(weights: Mapping[str, Tensor], saliency: str | Saliency) -> dict[str, Tensor]:
    """Score every weight by a named saliency or by a function of (layer name, weight).

    Args:
        weights: layer name to weight.
        saliency: "magnitude", or a function that returns scores of the weight's shape, of any real type and sign.

    Returns:
        Layer name to scores of the weight's shape.

    Raises:
        SnowsError: on an unknown saliency, or scores of another shape or with NaN or infinite values.
    """
    if isinstance(saliency, str):
        check_name(saliency)
        if saliency in IMAGE_SALIENCIES:
            expected, fix = "a saliency of weights alone", "snows.make_masks(model, images, ...) makes such masks."
            raise invalid_argument("saliency", f"{saliency!r} without images", expected, fix)
        saliency = SALIENCIES[saliency]
    function_of("saliency", saliency, SALIENCY, "the name of a saliency, or ")
    scores = {}
    for name, weight in weights.items():
        expected = f"a tensor of scores of shape {tuple(weight.shape)}"
        with users_code("saliency", f"a function that fails for '{name}'", expected):
            scored = saliency(name, weight.clone())  # it may write into what it is given
        scores[name] = _checked(scored, name, weight)
    return scores


def _checked(scores: Tensor, name: str, weight: Tensor) -> Tensor:
    """Return the scores of a saliency on the device of its weight, after a look at their shape and values.

    Raises:
        SnowsError: on scores of another shape, or with NaN or infinite values.
    """
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise invalid_argument("saliency", f"{got} for '{name}'", f"a tensor of scores of shape {tuple(weight.shape)}")
    if scores.layout is not torch.strided or scores.is_meta or scores.is_quantized:
        got = f"a {'quantised' if scores.is_quantized else 'meta' if scores.is_meta else scores.layout} tensor"
        raise invalid_argument("saliency", f"{got} for '{name}'", "an ordinary tensor of scores")
    return comparable(scores, name).to(weight.device)
