"""Which weights stay: sparsity patterns and saliency scores.

A mask is a bool tensor of the weight's shape, True where the weight is kept. Scores are taken as they are, sign
included: the highest stay. Among equal scores a lot decides, the same for the same seed
(:mod:`snows_core.masks.lowest`). Masks that come from elsewhere are read by :mod:`snows_core.masks.given`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real
from typing import Literal

from torch import Tensor

from snows_core.errors import as_float, invalid_argument, plain, shown
from snows_core.masks.lowest import (
    comparable,
    exactly,
    highest_of_groups,
    lowest,
    seed_of,
    shares_of_lowest,
    without_lowest,
)
from snows_core.masks.per_layer import PerLayer as PerLayer
from snows_core.masks.per_layer import read_per_layer
from snows_core.masks.saliency import make_scores
from snows_core.masks.structured import Structured as Structured
from snows_core.settings import PATTERNS, Saliency, SparsityPattern

_LONGEST = 200  # characters of a text that names a pattern
Masks = dict[str, Tensor]
"""Layer name to bool tensor of its weight's shape, True where a weight is kept."""


@dataclass(frozen=True)
class NM:
    """Keep the ``n`` highest scores of every ``m`` consecutive inputs of an output (2:4 is what GPUs accelerate).

    Groups run along the input axis of a linear layer, and along the input channels at each kernel position of a
    convolution.

    >>> import torch
    >>> NM(2, 4).mask(torch.tensor([[1.0, -4.0, 3.0, 2.0]]).abs()).int().tolist()
    [[0, 1, 1, 0]]

    Attributes:
        n: how many stay of each group.
        m: how many consecutive inputs form a group.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        """Refuse patterns that keep nothing or everything."""
        for field in ("n", "m"):
            object.__setattr__(self, field, plain(getattr(self, field)))
        if not (type(self.n) is type(self.m) is int and 0 < self.n < self.m):
            raise invalid_argument(
                "pattern", f"{self.n}:{self.m}", "n:m with integers 0 < n < m", 'For instance "2:4".'
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Say why a weight cannot take this pattern.

        Args:
            weight: (out, in / groups, ...).
            groups: groups of channels, of a convolution.

        Returns:
            The reason; empty when it can.
        """
        if groups > 1:
            return f"grouped convolution ({groups} groups): N:M groups would cross or split its channel groups"
        if weight.shape[1] % self.m:
            return f"{weight.shape[1]} inputs do not divide into groups of {self.m}"
        return ""

    def mask(self, scores: Tensor, seed: int = 0) -> Tensor:
        """Return the mask that keeps the n highest scores of each group.

        Args:
            scores: (out, in) or (out, in, *kernel), of any real type; for magnitude pruning ``weight.abs()``.
            seed: of the lots that decide among equal scores.

        Returns:
            Bool tensor of the same shape, on the same device.

        Raises:
            SnowsError: when the inputs do not divide into groups, or on scores that are not finite.
        """
        if reason := self.misfit(scores):
            raise invalid_argument("scores", f"shape {tuple(scores.shape)}", f"inputs that fit {self} ({reason})")
        last = comparable(scores).movedim(1, -1)  # (out, *kernel, in)
        kept = highest_of_groups(last.reshape(*last.shape[:-1], -1, self.m), self.n, seed)  # (out, *kernel, in / m, m)
        return kept.reshape(last.shape).movedim(-1, 1).contiguous()  # (out, in, *kernel)


@dataclass(frozen=True)
class Unstructured:
    """Remove the fraction ``sparsity`` of least salient weights, per layer or over all selected layers together.

    Attributes:
        sparsity: fraction removed, in (0, 1).
        scope: "layer" (the same fraction in each) or "global" (one threshold for all).
        cap: with scope "global", the largest fraction that may be removed from any one layer; what a capped layer keeps
            is taken from the others, so the overall sparsity is still met.
    """

    sparsity: float
    scope: Literal["layer", "global"] = "layer"
    cap: float = 1.0

    def __post_init__(self) -> None:
        """Refuse fractions outside (0, 1), unknown scopes and caps that cannot be met."""
        for field in ("sparsity", "cap"):
            value = plain(getattr(self, field))
            if isinstance(value, bool) or not isinstance(value, Real):
                raise invalid_argument("pattern" if field == "sparsity" else field, shown(value), "a number")
            object.__setattr__(self, field, as_float(value))
        if not 0 < self.sparsity < 1:
            raise invalid_argument(
                "pattern", self.sparsity, "a sparsity between 0 and 1", "0.8 removes four of five weights."
            )
        if not isinstance(self.scope, str) or self.scope not in ("layer", "global"):
            raise invalid_argument("scope", shown(self.scope), "'layer' or 'global'")
        if not self.sparsity <= self.cap <= 1:
            raise invalid_argument("cap", self.cap, f"a fraction between the sparsity ({self.sparsity}) and 1")

    def __str__(self) -> str:
        cap = f" cap {self.cap:g}" if self.scope == "global" and self.cap < 1 else ""
        return f"unstructured {self.sparsity:g}" + (" global" if self.scope == "global" else "") + cap

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Return an empty string: every weight can take this pattern, whatever its ``groups``."""
        return ""

    def mask(self, scores: Tensor, seed: int = 0) -> Tensor:
        """Return the mask that removes round(sparsity * count) weights of lowest score, but never all of them.

        Args:
            scores: of any shape and real type; for magnitude pruning ``weight.abs()``.
            seed: of the lots that decide among equal scores.

        Returns:
            Bool tensor of the same shape, on the same device.
        """
        return without_lowest(scores, self.sparsity, seed)

    def masks(self, scores: Mapping[str, Tensor], seed: int = 0) -> Masks:
        """Return the masks of all layers for their scores, by scope.

        Args:
            scores: layer name to scores.
            seed: of the lots that decide among equal scores, within a layer and across layers.

        Returns:
            Layer name to mask.

        Raises:
            SnowsError: when the threshold would empty a whole layer.
        """
        if self.scope == "layer":
            return {name: self.mask(score, seed_of(seed, name)) for name, score in scores.items()}
        read = {name: comparable(score, name).cpu() for name, score in scores.items()}
        if len({score.dtype for score in read.values()}) > 1:
            read = {name: score.double() for name, score in read.items()}
        removed, thresholds = self._removed_per_layer({name: score.flatten() for name, score in read.items()}, seed)
        for name, count in removed.items():
            if count == scores[name].numel():
                raise invalid_argument(
                    "pattern",
                    str(self),
                    f"weights left in every layer, but '{name}' would lose all",
                    "Set a cap, for instance Unstructured(0.9, scope='global', cap=0.95).",
                )
        return {
            name: ~lowest(score, removed[name], seed_of(seed, name), thresholds.get(name)).to(scores[name].device)
            for name, score in read.items()
        }

    def _removed_per_layer(
        self, scores: Mapping[str, Tensor], seed: int
    ) -> tuple[dict[str, int], dict[str, Tensor | None]]:
        """Share the weights to remove among layers by one threshold, again and again until no layer is over the cap.

        Returns:
            How many weights each layer loses, and the threshold of every layer that is not at its cap.
        """
        total = round(exactly(self.sparsity) * sum(score.numel() for score in scores.values()))
        limit = {name: int(exactly(self.cap) * score.numel()) for name, score in scores.items()}
        total = min(total, sum(limit.values()))
        removed: dict[str, int] = {}
        open_layers = dict(scores)
        while open_layers:
            shares, threshold = shares_of_lowest(open_layers, total - sum(removed.values()), seed)
            over = [name for name, count in shares.items() if count > limit[name]]
            if not over:
                return removed | shares, dict.fromkeys(open_layers, threshold)
            for name in over:
                removed[name] = limit[name]
                del open_layers[name]
        return removed, {}


Pattern = NM | Unstructured | PerLayer | Structured
"""Decides how many weights stay in which group."""


def parse_pattern(pattern: SparsityPattern | Mapping[str, float] | str | float) -> Pattern:
    """Read a pattern: objects, "2:4", 0.8, "80%", "global:0.8", "global:0.8:0.95" (cap), "structured:0.5", a mapping.

    Sparsities by layer are a mapping from names or globs, or a text such as "layer1.*=0.5,layer2.conv1=0.9".

    Returns:
        The pattern.

    Raises:
        SnowsError: on anything else.

    >>> parse_pattern("2:4"), str(parse_pattern("global:0.9:0.95"))
    (NM(n=2, m=4), 'unstructured 0.9 global cap 0.95')
    """
    if isinstance(pattern, NM | Unstructured | PerLayer | Structured):
        return pattern
    if isinstance(pattern, Mapping):
        return PerLayer(pattern)
    if isinstance(plain(pattern), Real):
        return Unstructured(plain(pattern))
    if isinstance(pattern, str) and "=" in pattern:
        return read_per_layer(pattern)
    read = _read_text(pattern) if isinstance(pattern, str) and len(pattern) <= _LONGEST else None
    if read is None:
        raise invalid_argument("pattern", shown(pattern), PATTERNS)
    return read


def _read_text(pattern: str) -> Pattern | None:
    """Return the pattern that a text names, or None."""
    text = pattern.strip().lower()
    if match := re.fullmatch(r"([0-9]+):([0-9]+)", text):
        return NM(int(match[1]), int(match[2]))
    share = r"([0-9]*\.?[0-9]+(?:e-?[0-9]{1,3})?)"
    if match := re.fullmatch(rf"(?:global:{share}(?::{share})?|unstructured {share} global(?: cap {share})?)", text):
        sparsity, cap = match[1] or match[3], match[2] or match[4] or 1.0
        return Unstructured(float(sparsity), "global", float(cap))
    if match := re.fullmatch(rf"(?:structured|channels)[: ]{share}(%?)", text):
        return Structured(_share(match))
    if match := re.fullmatch(rf"(?:layer:|unstructured )?{share}(%?)", text):
        return Unstructured(_share(match))
    return None


def _share(match: re.Match[str]) -> float:
    """Return a share that is written as a number or in percent, rounded once."""
    try:
        return float(Fraction(match[1]) / (100 if match[2] else 1))
    except OverflowError:  # larger than any float, and so than any share
        return math.inf


def masks_for(
    weights: Mapping[str, Tensor], pattern: Pattern, saliency: str | Saliency = "magnitude", seed: int = 0
) -> Masks:
    """Return masks of one pattern for layer weights that fit it, by their saliency.

    Args:
        weights: layer name to weight (out, in, ...).
        pattern: the sparsity pattern.
        saliency: "magnitude", or a function of (name, weight) that returns scores of the weight's shape. Scores are
            taken as they are, sign included: the highest stay.
        seed: of the lots that decide among equal scores.

    Returns:
        Layer name to mask.

    Raises:
        SnowsError: on an unknown saliency, or scores of another shape or with NaN or infinite values.
    """
    scores = make_scores(weights, saliency)
    if isinstance(pattern, Structured):
        return pattern.masks(scores, seed, as_norms=saliency == "magnitude")
    if isinstance(pattern, Unstructured | PerLayer):
        return pattern.masks(scores, seed)
    return {name: pattern.mask(score, seed_of(seed, name)) for name, score in scores.items()}
