"""Which weights stay: sparsity patterns, saliency scores, and masks that come from elsewhere.

A mask is a bool tensor of the weight's shape, True where the weight is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from snows_core.errors import SnowsError, bad, closest

Masks = dict[str, Tensor]
Saliency = Callable[[str, Tensor], Tensor]


@dataclass(frozen=True)
class NM:
    """Keep the ``n`` most salient of every ``m`` consecutive inputs of an output (2:4 is what GPUs accelerate).

    Groups run along the input axis of a linear layer, and along the input channels at each kernel position of a
    convolution.

    >>> NM(2, 4).mask(torch.tensor([[1.0, -4.0, 3.0, 2.0]])).int().tolist()
    [[0, 1, 1, 0]]
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        """Refuse patterns that keep nothing or everything."""
        if not (isinstance(self.n, int) and isinstance(self.m, int) and 0 < self.n < self.m):
            raise bad("pattern", f"{self.n}:{self.m}", "n:m with integers 0 < n < m", 'For instance "2:4".')

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Say why a weight (out, in / groups, ...) cannot take this pattern; empty when it can."""
        if groups > 1:
            return f"grouped convolution ({groups} groups): N:M groups would cross or split its channel groups"
        if weight.shape[1] % self.m:
            return f"{weight.shape[1]} inputs do not divide into groups of {self.m}"
        return ""

    def mask(self, scores: Tensor) -> Tensor:
        """Return the mask that keeps the n highest scores of each group; ties go to the first input.

        Args:
            scores: (out, in) or (out, in, *kernel).
        """
        last = scores.abs().movedim(1, -1)
        grouped = last.reshape(*last.shape[:-1], -1, self.m)
        order = grouped.argsort(dim=-1, descending=True, stable=True)[..., : self.n]
        kept = torch.zeros_like(grouped, dtype=torch.bool).scatter_(-1, order, True)
        return kept.reshape(last.shape).movedim(-1, 1).contiguous()


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
        if not 0 < self.sparsity < 1:
            raise bad("pattern", self.sparsity, "a sparsity between 0 and 1", "0.8 removes four of five weights.")
        if self.scope not in ("layer", "global"):
            raise bad("scope", repr(self.scope), "'layer' or 'global'")
        if not self.sparsity <= self.cap <= 1:
            raise bad("cap", self.cap, f"a fraction between the sparsity ({self.sparsity}) and 1")

    def __str__(self) -> str:
        cap = f" cap {self.cap:g}" if self.scope == "global" and self.cap < 1 else ""
        return f"unstructured {self.sparsity:g}" + (" global" if self.scope == "global" else "") + cap

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Return an empty string: every weight can take this pattern."""
        return ""

    def mask(self, scores: Tensor) -> Tensor:
        """Return the mask that removes round(sparsity * count) weights of lowest score, but never all of them."""
        return _keep_all_but(scores.abs(), min(round(self.sparsity * scores.numel()), scores.numel() - 1))

    def masks(self, scores: Mapping[str, Tensor]) -> Masks:
        """Return the masks of all layers for their scores, by scope.

        Raises:
            SnowsError: when the threshold would empty a whole layer.
        """
        if self.scope == "layer":
            return {name: self.mask(score) for name, score in scores.items()}
        removed = self._removed_per_layer({name: score.abs().flatten() for name, score in scores.items()})
        for name, count in removed.items():
            if count == scores[name].numel():
                raise bad(
                    "pattern", str(self), f"weights left in every layer, but '{name}' would lose all",
                    "Set a cap, for instance Unstructured(0.9, scope='global', cap=0.95).",
                )  # fmt: skip
        return {name: _keep_all_but(score.abs(), removed[name]) for name, score in scores.items()}

    def _removed_per_layer(self, scores: Mapping[str, Tensor]) -> dict[str, int]:
        """Share the weights to remove among layers by one threshold, again and again until no layer is over the cap."""
        total = round(self.sparsity * sum(score.numel() for score in scores.values()))
        limit = {name: int(self.cap * score.numel()) for name, score in scores.items()}
        total = min(total, sum(limit.values()))
        removed: dict[str, int] = {}
        open_layers = dict(scores)
        while open_layers:
            left = total - sum(removed.values())
            pooled = torch.cat(list(open_layers.values()))
            owner = torch.cat([torch.full((len(score),), i) for i, score in enumerate(open_layers.values())])
            lowest = pooled.cpu().argsort(stable=True)[:left]
            counts = torch.bincount(owner[lowest], minlength=len(open_layers)).tolist()
            shares = dict(zip(open_layers, counts, strict=True))
            over = [name for name, count in shares.items() if count > limit[name]]
            if not over:
                return removed | shares
            for name in over:
                removed[name] = limit[name]
                del open_layers[name]
        return removed


Pattern = NM | Unstructured


def _keep_all_but(scores: Tensor, count: int) -> Tensor:
    order = scores.flatten().argsort(stable=True)[:count]
    kept = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    kept[order] = False
    return kept.reshape(scores.shape)


def parse_pattern(pattern: Pattern | str | float) -> Pattern:
    """Read a pattern: ``NM``/``Unstructured`` objects, "2:4", 0.8, "0.8", "80%", "global:0.8", "global:0.8:0.95" (cap).

    Returns:
        The pattern.

    Raises:
        SnowsError: on anything else.

    >>> parse_pattern("2:4"), str(parse_pattern("global:0.9:0.95"))
    (NM(n=2, m=4), 'unstructured 0.9 global cap 0.95')
    """
    if isinstance(pattern, NM | Unstructured):
        return pattern
    if isinstance(pattern, int | float) and not isinstance(pattern, bool):
        return Unstructured(float(pattern))
    text = str(pattern).strip().lower()
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(int(match[1]), int(match[2]))
    number = r"(\d*\.?\d+(?:e-?\d+)?)"
    if match := re.fullmatch(
        rf"(?:global:{number}(?::{number})?|unstructured {number} global(?: cap {number})?)", text
    ):
        sparsity, cap = match[1] or match[3], match[2] or match[4] or 1.0
        return Unstructured(float(sparsity), "global", float(cap))
    if match := re.fullmatch(rf"(?:layer:|unstructured )?{number}(%?)", text):
        return Unstructured(float(match[1]) / (100 if match[2] else 1))
    raise bad("pattern", repr(pattern), '"n:m", a sparsity such as 0.8, "global:0.8", NM(n, m) or Unstructured(s)')


def magnitude(name: str, weight: Tensor) -> Tensor:
    """Score a weight by its absolute value, the published choice."""
    return weight.abs()


SALIENCIES: dict[str, Saliency] = {"magnitude": magnitude}


def make_scores(weights: Mapping[str, Tensor], saliency: str | Saliency) -> dict[str, Tensor]:
    """Score every weight by a named saliency or by a function of (layer name, weight).

    Returns:
        Layer name to scores of the weight's shape.
    """
    if isinstance(saliency, str):
        if saliency not in SALIENCIES:
            raise bad("saliency", repr(saliency), f"one of {sorted(SALIENCIES)} or a function",
                      closest(saliency, SALIENCIES))  # fmt: skip
        saliency = SALIENCIES[saliency]
    return {name: _checked(saliency(name, weight), name, weight) for name, weight in weights.items()}


def _checked(scores: Tensor, name: str, weight: Tensor) -> Tensor:
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise bad("saliency", f"{got} for '{name}'", f"a tensor of scores of shape {tuple(weight.shape)}")
    if not torch.isfinite(scores).all():
        raise bad("saliency", f"scores of '{name}' with NaN or infinite values", "finite scores")
    return scores


def masks_for(weights: Mapping[str, Tensor], pattern: Pattern, saliency: str | Saliency = "magnitude") -> Masks:
    """Return masks of one pattern for layer weights that fit it, by their saliency.

    Args:
        weights: layer name to weight (out, in, ...).
        pattern: the sparsity pattern.
        saliency: "magnitude", or a function of (name, weight) that returns scores of the weight's shape.

    Returns:
        Layer name to mask.
    """
    scores = make_scores(weights, saliency)
    if isinstance(pattern, Unstructured):
        return pattern.masks(scores)
    return {name: pattern.mask(score) for name, score in scores.items()}


def foreign_masks(
    source: Mapping[str, Tensor] | nn.Module, weights: Mapping[str, Tensor], aliases: Mapping[str, str]
) -> Masks:
    """Read masks made elsewhere: a dict of bool tensors, or a pruned model or state dict whose zeros define them.

    Args:
        source: the masks; keys are layer names or parameter names.
        weights: layer name to dense weight, for every layer that can be pruned.
        aliases: parameter name to layer name.

    Returns:
        Masks by layer name, of the layers that the source prunes (a layer without a zero stays dense).

    Raises:
        SnowsError: on an unknown name, a wrong shape, a layer left empty, or no mask at all.
    """
    if not isinstance(source, nn.Module | Mapping) or not all(
        isinstance(value, Tensor) for value in (source.values() if isinstance(source, Mapping) else ())
    ):
        raise bad("masks", type(source).__name__, "a dict of bool tensors, a pruned model, or its state dict",
                  "Load files first, for instance with torch.load or snows.load.")  # fmt: skip
    explicit = not isinstance(source, nn.Module) and all(mask.dtype == torch.bool for mask in source.values())
    entries = source.state_dict() if isinstance(source, nn.Module) else source
    found: Masks = {}
    for key, value in entries.items():
        name = aliases.get(key, key)
        if name not in weights:
            if explicit:
                raise bad("masks", f"a mask for '{key}'", "names of layers of this model", closest(key, weights))
            continue
        if value.shape != weights[name].shape:
            raise bad("masks", f"shape {tuple(value.shape)} for '{name}'", f"{tuple(weights[name].shape)}")
        mask = (value if explicit else value != 0).to(weights[name].device)
        if not mask.any():
            raise bad("masks", f"a mask that leaves layer '{name}' empty", "at least one kept weight in every layer")
        if explicit or not mask.all():
            found[name] = mask.clone()
    if not found:
        raise SnowsError("masks: got no zeros in any layer of this model; expected a pruned model, or bool masks.")
    return found
