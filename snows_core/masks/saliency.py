"""How much a weight counts: a saliency scores each one, and in each group of a pattern the highest scores stay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from snows_core.errors import closest, invalid_argument
from snows_core.masks.lowest import comparable
from snows_core.settings import Saliency


def magnitude(name: str, weight: Tensor) -> Tensor:
    """Score a weight by its absolute value, the published choice."""
    return weight.abs()


SALIENCIES: dict[str, Saliency] = {"magnitude": magnitude}
"""Name to saliency, as ``saliency="magnitude"`` of ``prune`` looks it up."""


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
        if saliency not in SALIENCIES:
            raise invalid_argument(
                "saliency", repr(saliency), f"one of {sorted(SALIENCIES)} or a function", closest(saliency, SALIENCIES)
            )
        saliency = SALIENCIES[saliency]
    return {name: _checked(saliency(name, weight), name, weight) for name, weight in weights.items()}


def _checked(scores: Tensor, name: str, weight: Tensor) -> Tensor:
    """Return the scores of a saliency on the device of its weight, after a look at their shape and values.

    Raises:
        SnowsError: on scores of another shape, or with NaN or infinite values.
    """
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise invalid_argument("saliency", f"{got} for '{name}'", f"a tensor of scores of shape {tuple(weight.shape)}")
    return comparable(scores, name).to(weight.device)
