"""Small parts of neighbouring batches run together.

Of several processes each has a part of every batch only. A call on few images costs almost as much as one on many, so
this process's parts of as many neighbouring batches as there are processes run as one.
Sums over batches stay what they are, and so does where a sample of the first batches ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snows_core.activations.cache import LazyBatches
from snows_core.distributed import Share


def pieces(share: Share, batches: Sequence[int], ends: Sequence[int] = ()) -> list[list[int]]:
    """Group as many neighbouring batches as there are processes: this one has about as many images of them as of one.

    Where a group begins depends on the numbers of batches alone, so that the same groups come again.

    Args:
        share: whose images.
        batches: numbers of batches of which this process has images, ascending.
        ends: numbers at which a group must begin: none reaches across.

    Returns:
        The groups, in order; of one process each batch is a group of its own.

    >>> from snows_core.distributed import Processes
    >>> share = Share([4, 4, 4, 4], Processes(0, 2))
    >>> pieces(share, [0, 1, 2, 3]), pieces(share, [0, 1, 2, 3], [1])
    ([[0, 1], [2, 3]], [[0], [1], [2, 3]])
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for batch in batches:
        behind = sum(batch >= end for end in ends)
        groups.setdefault((batch // share.processes.world, behind), []).append(batch)
    return list(groups.values())


class LazyPieces:
    """Contexts and targets of neighbouring batches in one, made when they are first read.

    Args:
        contexts: per batch what a segment reads.
        targets: per batch the outputs that it is to have. Where either rests elsewhere until it is read, so do these.
    """

    def __init__(self, contexts: Sequence[Any], targets: Sequence[Any]) -> None:
        self.contexts, self.targets = contexts, targets
        self.keep = all(not isinstance(one, LazyBatches) or one.keep for one in (contexts, targets))
        self.kept: dict[tuple[int, ...], Any] = {}

    def read(self, share: Share, batches: Sequence[int]) -> tuple[Any, Any] | None:
        """Return context and targets of several batches; None where they cannot be joined."""
        key = tuple(batches)
        if key in self.kept:
            return cast("tuple[Any, Any] | None", self.kept[key])
        found = joined([(self.contexts[batch], list(self.targets[batch])) for batch in batches], share, batches)
        if self.keep or found is None:
            self.kept[key] = found
        return cast("tuple[Any, Any] | None", found)


def joined(items: Sequence[Any], share: Share, batches: Sequence[int]) -> Any:
    """Return the values of several batches as those of one.

    Args:
        items: per batch a value, or a nested one, for this process's images: tensors with images along axis 0 or 1.
        share: whose images.
        batches: numbers of the batches.

    Returns:
        The same structure; None where it holds something else than such tensors, which cannot be joined.
    """
    leaves, structures = zip(*(pytree.tree_flatten(item) for item in items), strict=True)
    if any(structure != structures[0] for structure in structures):
        return None
    found = [_side_by_side(parts, share, batches) for parts in zip(*leaves, strict=True)]
    return None if any(part is None for part in found) else pytree.tree_unflatten(found, structures[0])


def _side_by_side(parts: Sequence[Any], share: Share, batches: Sequence[int]) -> Tensor | None:
    """Return tensors of several batches in one, or None where images cannot be told, or are not alike."""
    if not all(isinstance(part, Tensor) for part in parts):
        return None
    shapes = [share.whole_of(part.shape, batch) for part, batch in zip(parts, batches, strict=True)]
    (_, axis), *_ = shapes
    rows = [shape[axis] / share.sizes[batch] for (shape, _), batch in zip(shapes, batches, strict=True)]
    if axis < 0 or any(other != axis for _, other in shapes) or len(set(rows)) > 1:
        return None
    return torch.cat(list(parts), axis)
