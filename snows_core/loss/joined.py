"""Small parts of neighbouring batches run together.

Of several processes each has a part of every batch only. A call on few images costs almost as much as one on many, so
this process's parts of neighbouring batches run as one, up to as many images as a batch has in all processes together.
Sums over batches stay what they are, and so does where a sample of the first batches ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from snows_core.distributed import Share


def pieces(share: Share, batches: Sequence[int], ends: Sequence[int] = ()) -> list[list[int]]:
    """Group batches so that this process has at most as many images of a group as the largest batch has in all.

    Args:
        share: whose images.
        batches: numbers of batches of which this process has images, ascending.
        ends: numbers at which a group must begin: none reaches across.

    Returns:
        The groups, in order; of one process each batch is a group of its own.

    >>> from snows_core.distributed import Processes
    >>> share = Share([4, 4, 4], Processes(0, 2))
    >>> pieces(share, [0, 1, 2]), pieces(share, [0, 1, 2], [1])
    ([[0, 1], [2]], [[0], [1, 2]])
    """
    groups: list[list[int]] = []
    most = max(share.sizes, default=0)
    for batch in batches:
        last = groups[-1] if groups else []
        fits = sum(share.own[i] for i in last) + share.own[batch] <= most
        if last and share.processes.several and fits and not any(last[-1] < end <= batch for end in ends):
            last.append(batch)
        else:
            groups.append([batch])
    return groups


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
