"""The processes of one run and what they tell one another: sums, decisions and words. Nothing else talks between them.

Every process runs the same program on its own part of the images. What is summed over images is summed here over
processes, so that all of them go on with the same numbers, bit for bit: a sum is formed in one place and handed round
by gloo and NCCL alike. A decision that follows from numbers which each process computes for itself is that of the first
one (:meth:`Processes.agreed`), so that machines which round differently never part ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from snows_core.errors import invalid_argument

Item = TypeVar("Item")
LOST = (
    "several processes: another one ended, or did not answer within the time limit of their group ({reason}). "
    "Nothing half-written is left; with a checkpoint folder the same command goes on where it was."
)


class LostProcess(ConnectionError):
    """Another process of the run is gone, or silent beyond the time limit: this one cannot go on either."""


@dataclass(frozen=True)
class Processes:
    """The processes that share a run, as one of them sees them.

    Attributes:
        rank: number of this one, from 0; the first one writes files and shows progress.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def several(self) -> bool:
        """Whether there is more than one process."""
        return self.world > 1

    @property
    def is_main(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def most(self, count: int) -> int:
        """Return how many of ``count`` images the process with the most of them has.

        >>> Processes(1, 3).most(7)
        3
        """
        return -(-count // self.world)

    def own(self, images: Tensor) -> Tensor:
        """Return this process's part of ``images`` (N, ...): every ``world``-th one; all of them in one process.

        >>> Processes(1, 3).own(torch.arange(7.0)).tolist()
        [1.0, 4.0]
        """
        if not self.several:
            return images
        part = images[self.rank :: self.world]
        return torch.empty_like(images[: len(part)]).copy_(part)  # side by side, in the strides of the whole

    def takes(self, number: int) -> bool:
        """Tell whether the work of a ``number`` is this process's, where pieces of work are dealt out in turn."""
        return number % self.world == self.rank

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of every process's ``tensor``, of its shape; the tensor itself may be overwritten."""
        if not self.several:
            return tensor
        placed = _placed(tensor.detach())
        with self._listening():
            dist.all_reduce(placed)
        return _like(placed, tensor)

    def totals(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums of several tensors of one dtype and device, in one exchange."""
        if not self.several or not tensors:
            return list(tensors)
        flat = self.total(torch.cat([tensor.detach().flatten() for tensor in tensors]))
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def total_number(self, number: float) -> float:
        """Return the sum of every process's ``number``."""
        return float(self.total(torch.tensor(number, dtype=torch.float64))) if self.several else number

    def total_with_number(self, number: float, tensor: Tensor) -> tuple[float, Tensor]:
        """Return the sums of every process's ``number`` and ``tensor``, in one exchange and double precision."""
        if not self.several:
            return number, tensor
        both = torch.cat([tensor.new_tensor([number], dtype=torch.float64), tensor.detach().flatten().double()])
        both = self.total(both)
        return float(both[0]), both[1:].to(tensor.dtype).view(tensor.shape)

    def least(self, number: float) -> float:
        """Return the least ``number`` of any process."""
        if not self.several:
            return number
        placed = _placed(torch.tensor(number, dtype=torch.float64))
        with self._listening():
            dist.all_reduce(placed, dist.ReduceOp.MIN)
        return float(placed)

    def agreed(self, numbers: list[float]) -> list[float]:
        """Return the first process's numbers, for a decision that all of them take alike."""
        if not self.several:
            return numbers
        found: list[float] = self.from_main(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return found

    def from_main(self, tensor: Tensor) -> Tensor:
        """Return the first process's ``tensor``; those of the others have its shape and dtype, and are overwritten."""
        if not self.several:
            return tensor
        placed = _placed(tensor.detach().view(torch.uint8) if tensor.dtype == torch.bool else tensor.detach())
        with self._listening():
            dist.broadcast(placed, 0)
        return _like(placed.view(tensor.dtype), tensor)

    def broadcast(self, item: Item) -> Item:
        """Return the first process's ``item``, whatever was passed in the others; it is pickled on the way."""
        if not self.several:
            return item
        box: list[Any] = [item if self.is_main else None]
        with self._listening():
            dist.broadcast_object_list(box, 0)
        told: Item = box[0]
        return told

    def gathered(self, item: Item) -> list[Item]:
        """Return every process's ``item``, in the order of ranks; it is pickled on the way."""
        if not self.several:
            return [item]
        found: list[Any] = [None] * self.world
        with self._listening():
            dist.all_gather_object(found, item)
        return found

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Refuse a run that was not begun alike in every process.

        Args:
            record: what must be the same, by argument; JSON can hold it.

        Raises:
            SnowsError: in every process, naming the first argument that differs.
        """
        if not self.several:
            return
        texts = self.gathered({name: json.dumps(value, sort_keys=True) for name, value in record.items()})
        for name, text in texts[0].items():
            for rank, other in enumerate(texts):
                if other.get(name) != text:
                    short = " and ".join(
                        f"{told[:80]} in process {number}" for told, number in _pair(texts, name, rank)
                    )
                    fix = "Pass the same model, images and options everywhere; images are shared out here."
                    raise invalid_argument(name, short, "the same in every process", fix)

    def with_images(self, images: int) -> Processes:
        """Return the processes themselves, after a look whether there are images for all of them.

        Args:
            images: how many a sweep reads.

        Returns:
            The same.

        Raises:
            SnowsError: where a process would have none.
        """
        if images < self.world:
            fix = "Pass more images, or start fewer processes."
            raise invalid_argument(
                "images", f"{images} images", f"at least one for each of {self.world} processes", fix
            )
        return self

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Turn what a backend says of a lost process into one sentence."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, EOFError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise LostProcess(LOST.format(reason=reason)) from error


ALONE = Processes()
"""One process that shares its run with no other."""


def _pair(texts: Sequence[Mapping[str, str]], name: str, rank: int) -> list[tuple[str, int]]:
    return [(texts[0][name], 0), (texts[rank].get(name, "nothing"), rank)]


def _placed(tensor: Tensor) -> Tensor:
    """Return a tensor side by side in memory, where the backend can send it from: NCCL alone sends from GPUs only."""
    if tensor.device.type == "cpu" and dist.get_backend() == "nccl":
        return tensor.cuda()
    if tensor.device.type not in ("cpu", "cuda"):
        return tensor.cpu().contiguous()
    return tensor.contiguous()


def _like(placed: Tensor, tensor: Tensor) -> Tensor:
    """Return what was exchanged on the device and in the strides of a tensor."""
    if placed.device == tensor.device and placed.stride() == tensor.stride():
        return placed
    return torch.empty_like(tensor).copy_(placed)
