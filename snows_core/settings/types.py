"""Types of what a user hands over that only PyTorch or a network can check; rooms above import them from here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

if TYPE_CHECKING:  # nothing here needs PyTorch to run
    import torch
    from torch import Tensor, nn


class SparsityPattern(Protocol):
    """A sparsity pattern: what :class:`~snows_core.masks.patterns.NM` and ``Unstructured`` are."""

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Return why a weight (of ``groups`` channel groups) cannot take this pattern, or an empty string."""

    def mask(self, scores: Tensor, seed: int = 0) -> Tensor:
        """Return the mask (bool) that keeps the highest scores; lots by ``seed`` decide among equal ones."""


Saliency: TypeAlias = "Callable[[str, Tensor], Tensor]"
"""A function of (layer name, weight) that scores a weight: scores of its shape; in each group the highest stay."""

OneChoice: TypeAlias = "str | type[nn.Module] | nn.Module"
"""A name or glob of layers, a class of layers, or one layer's module."""

LayerChoice: TypeAlias = "OneChoice | Iterable[OneChoice] | Callable[[str, nn.Module | None], bool] | None"
"""Names, globs, classes or modules of layers, or a function of (name, module)."""

Augment: TypeAlias = "Callable[[Tensor, torch.Generator], Tensor]"
"""A function of (images, generator) that changes a batch of images at random."""

Sparsities: TypeAlias = "Mapping[str, float]"
"""Layer name, or glob of such, to a share of zeros."""

ALLOCATIONS = ("uniform", "erk", "lamp", "measured")
"""How an overall sparsity may be shared out among layers."""

Stages: TypeAlias = "int | Sequence[SparsityPattern | Sparsities | str | float]"
"""How many stages lead to a pattern, or the patterns of all of them."""

JointSolver = Literal["natural", "newton", "adam"]
"""What takes the steps of joint refinement."""
