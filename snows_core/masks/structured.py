"""Structured sparsity: whole output channels, hidden neurons and attention heads, which a smaller network leaves out.

A unit of a group is rows of the layers that compute it and columns of the layers that read it (in attention, rows of
queries, keys and values, and columns of the projection), and all of these stay or go together. Which layers those are
follows from the network (:mod:`snows_core.network.units`); here they are places in tensors. Where a layer's rows belong
to one group and its columns to another, a weight stays when both of its units do: with the sparsity s in both groups
the layer keeps ``(1 - s)^2`` of its weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real

import torch
from torch import Tensor

from snows_core.errors import as_float, invalid_argument, plain, shown
from snows_core.masks.lowest import comparable, seed_of, without_lowest


@dataclass(frozen=True, eq=False)
class Slices:
    """The places of one layer's weight that belong to each unit.

    Attributes:
        layer: the layer's name.
        axis: 0 for rows (outputs), 1 for columns (inputs).
        places: (units, n) int64, along that axis.
    """

    layer: str
    axis: int
    places: Tensor

    def sums(self, scores: Tensor) -> Tensor:
        """Return the sum of a layer's ``scores``, (out, in, ...), over each unit, (units,)."""
        along = scores.movedim(self.axis, 0).flatten(1).sum(1)  # (out,) or (in,)
        return along[self.places.to(along.device)].sum(1)

    def inputs_of(self, weight: Tensor) -> Tensor:
        """Return the columns of each unit in ``weight.flatten(1)``, kernel positions included, (units, n)."""
        spots = weight[0, 0].numel()
        return (self.places[..., None] * spots + torch.arange(spots)).flatten(1)

    def cut(self, mask: Tensor, kept: Tensor) -> None:
        """Set a mask (out, in, ...) to False in place where the unit is not among those ``kept``, (units,) bool."""
        gone = self.places[~kept.cpu()].flatten()
        mask.index_fill_(self.axis, gone.to(mask.device), False)


@dataclass(frozen=True, eq=False)
class Units:
    """Units that stay or go, and the layers that hold them.

    Attributes:
        name: of the layer or module that computes them.
        count: how many.
        slices: their places in weights.
    """

    name: str
    count: int
    slices: tuple[Slices, ...]

    @property
    def readers(self) -> tuple[Slices, ...]:
        """Those of the layers that read them: columns."""
        return tuple(part for part in self.slices if part.axis == 1)

    def scores(self, scores: Mapping[str, Tensor], as_norms: bool) -> Tensor:
        """Return one score a unit.

        Args:
            scores: layer name to scores of each weight; layers that are not there do not count.
            as_norms: whether the scores are sizes, of which the mean square over layers counts, each layer's taken as
                a share of its own mean; or costs, which add up.

        Returns:
            (count,).
        """
        found = []
        for part in self.slices:
            if part.layer in scores:
                score = comparable(scores[part.layer], part.layer).double()
                sums = part.sums(score.square() if as_norms else score).cpu()
                found.append(sums / sums.mean().clamp(min=torch.finfo(sums.dtype).tiny) if as_norms else sums)
        return torch.stack(found).sum(0)


@dataclass(frozen=True)
class Structured:
    """Remove the fraction ``sparsity`` of the units of every group: channels, hidden neurons, attention heads.

    Groups are the ones inside a block: residual streams keep their width. The ranking is by group norm unless a
    saliency or a method says otherwise. ``snows.compact`` makes a smaller network of the result.

    >>> str(Structured(0.5))
    'structured 0.5'

    Attributes:
        sparsity: fraction removed of each group, in (0, 1); one unit of a group always stays.
        groups: the groups of a network, which pruning fills in.
    """

    sparsity: float
    groups: tuple[Units, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse fractions outside (0, 1)."""
        value = plain(self.sparsity)
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < as_float(value) < 1:
            fix = '"structured:0.5" removes every second channel, neuron and head.'
            raise invalid_argument("pattern", f"structured {shown(value)}", "a sparsity between 0 and 1", fix)
        object.__setattr__(self, "sparsity", as_float(value))
        if not isinstance(self.groups, tuple) or not all(isinstance(group, Units) for group in self.groups):
            got = f"a {type(self.groups).__name__}"
            raise invalid_argument("groups", got, "a tuple of Units", "Leave it out: pruning fills it in.")

    def __str__(self) -> str:
        return f"structured {self.sparsity:g}"

    def on(self, groups: tuple[Units, ...]) -> Structured:
        """Return the same pattern on the ``groups`` of a network."""
        return replace(self, groups=groups)

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Return an empty string: the network says which layers take it, not a ``weight`` and its ``groups``."""
        return ""

    def mask(self, scores: Tensor, seed: int = 0) -> Tensor:
        """Refuse to make a mask of one layer alone, because units belong to several.

        Args:
            scores: of one layer.
            seed: of lots.

        Raises:
            SnowsError: in any case.
        """
        raise invalid_argument("pattern", str(self), "a pattern of one layer", "snows.make_masks makes its masks.")

    def masks(self, scores: Mapping[str, Tensor], seed: int = 0, as_norms: bool = False) -> dict[str, Tensor]:
        """Return the masks of all layers for their scores.

        Args:
            scores: layer name to scores of the weight's shape.
            seed: of the lots that decide among equal scores.
            as_norms: see :meth:`Units.scores`.

        Returns:
            Layer name to mask.
        """
        kept = {
            group.name: self.keep(group, group.scores(scores, as_norms), seed)
            for group in self.groups
            if any(part.layer in scores for part in group.slices)
        }
        return self.masks_of(kept, scores)

    def keep(self, group: Units, scores: Tensor, seed: int = 0) -> Tensor:
        """Return which units of a group stay.

        Args:
            group: the group.
            scores: (units,), the highest stay.
            seed: of the lots that decide among equal ones.

        Returns:
            (units,) bool.
        """
        return without_lowest(scores, self.sparsity, seed_of(seed, group.name))

    def masks_of(self, kept: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return masks for the units that stay.

        Args:
            kept: group name to (units,) bool; groups that are not there keep all.
            like: layer name to a tensor of the weight's shape, on its device.

        Returns:
            Layer name to mask, for the layers of ``like``.
        """
        masks = {layer: torch.ones(one.shape, dtype=torch.bool, device=one.device) for layer, one in like.items()}
        for group in self.groups:
            for part in group.slices if group.name in kept else ():
                if part.layer in masks:
                    part.cut(masks[part.layer], kept[group.name])
        return masks
