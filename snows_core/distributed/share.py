"""Batches of images, and which of their images this process has.

The images of a run stand in one order, whatever the number of processes, and are cut into the same batches. Of ``n``
processes the one of rank ``r`` has the images ``r, r + n, r + 2 n, ...`` of that order: a part of every batch and of
every sample of the first images, as large as that of any other process to within one image. A batch of fewer images
than processes leaves some of them without any; they add nothing to its sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from snows_core.distributed.processes import ALONE, Processes


class Share:
    """This process's share of batches.

    Args:
        sizes: images of each batch, in all processes together.
        processes: who shares them.
        starts: place of each batch's first image in the order of the run; default: one batch after the other.

    Attributes:
        own: images of each batch that this process has.

    >>> Share([5, 4], Processes(1, 2)).own
    [2, 2]
    """

    def __init__(self, sizes: Sequence[int], processes: Processes = ALONE, starts: Sequence[int] | None = None) -> None:
        self.sizes, self.processes = list(sizes), processes
        self.starts = list(accumulate(self.sizes, initial=0))[:-1] if starts is None else list(starts)
        self.own = [len(self.places(batch)) for batch in range(len(self.sizes))]

    @property
    def images(self) -> int:
        """Images of all batches, in all processes."""
        return sum(self.sizes)

    def places(self, batch: int) -> range:
        """Return the places, within a batch, of the images that this process has."""
        return range(
            (self.processes.rank - self.starts[batch]) % self.processes.world, self.sizes[batch], self.processes.world
        )

    def held(self, batches: int | None = None) -> list[int]:
        """Return the numbers of the first ``batches``, default all, of which this process has images."""
        count = len(self.sizes) if batches is None else batches
        return [batch for batch in range(count) if self.own[batch]]

    def of(self, batches: Sequence[int]) -> Share:
        """Return the share of some of the batches, in their order."""
        return Share([self.sizes[i] for i in batches], self.processes, [self.starts[i] for i in batches])

    def cut(self, images: Tensor) -> tuple[Tensor, ...]:
        """Cut the images of all batches (N, ...), one after the other, into this process's part of each."""
        return self.processes.own(images).split(self.own)

    def whole_of(self, part: Sequence[int], batch: int) -> tuple[tuple[int, ...], int]:
        """Return the shape that a value has for a whole batch, where this process's part of the batch has ``part``.

        Images lie along axis 0, each with one or more rows of its own, or along axis 1 (tokens first).

        Args:
            part: shape for the images that this process has, at least one.
            batch: number of the batch.

        Returns:
            The shape, and the axis of the images; an axis of -1 where it cannot be told, with the shape as it was.
        """
        own, whole = self.own[batch], self.sizes[batch]
        if part[0] == own or (part[0] % own == 0 and (len(part) < 2 or part[1] != own)):
            return (part[0] // own * whole, *part[1:]), 0
        if len(part) > 1 and part[1] == own:
            return (part[0], whole, *part[2:]), 1
        return tuple(part), -1

    def pick(self, values: Tensor, batch: int, axis: int) -> Tensor:
        """Return this process's part of ``values`` for a whole ``batch``, with the ``axis`` from :meth:`whole_of`."""
        if axis < 0:
            return values
        rows = values.unflatten(axis, (self.sizes[batch], -1))
        places = torch.tensor(self.places(batch), device=values.device)
        return rows.index_select(axis, places).flatten(axis, axis + 1)
