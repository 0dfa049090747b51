"""Images read in order, a batch at a time, by worker processes where that pays; the same numbers with any number."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from snows_core.errors import SnowsError, cannot_go_on, integer, invalid_argument
from snows_core.zoo.unreadable import leave_out

MOST_WORKERS = 4
MOST_ASKED = 64  # each is a whole process: thousands end the machine before any image is read
WORTH_PIXELS = 20_000_000  # fewer are read sooner than workers start: 400 images of 224 x 224, 19,000 of 32 x 32


def usual_workers(images: int, shape: Sequence[int]) -> int:
    """Return how many processes shall read images: none for small sets and on one core, else one a core up to four.

    Args:
        images: how many there are.
        shape: (C, H, W) of each.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, cores) if cores > 1 and images * shape[1] * shape[2] >= WORTH_PIXELS else 0


def in_order(dataset: Dataset[Any], indices: Sequence[int], batch_size: int, workers: int = 0) -> DataLoader[Any]:
    """Return a loader of items of a data set in the order of the indices; the last batch may be smaller.

    An image that cannot be read is left out of its batch, and counted where the data set counts them.

    Args:
        dataset: the images; with workers it must be one that can be pickled, where processes are spawned.
        indices: which items.
        batch_size: images a batch.
        workers: processes that read them, at most ``MOST_ASKED``; 0 reads in this one. What one of them cannot read is
            reported as if this process had read it.

    Raises:
        SnowsError: on another number of workers.
    """
    if integer("workers", workers) > MOST_ASKED:
        raise invalid_argument("workers", workers, f"at most {MOST_ASKED} processes", "One a core is as fast as any.")
    told = Subset(_Told(dataset), indices)
    start = _start if workers else None
    return _Loader(told, batch_size=batch_size, num_workers=workers, collate_fn=_collate, worker_init_fn=start)


def dead_worker(error: BaseException) -> SnowsError:
    """Build the error for a worker that ended without a word, such as one that the system killed, of PyTorch's own."""
    reason = (str(error).splitlines() or [""])[0]
    return cannot_go_on(
        "workers",
        f"one that ended before its images were read ({reason})",
        "workers that live to the end",
        "Most often memory ran out, or /dev/shm in a container: workers=0 reads without any.",
    )


class _Told(Dataset[Any]):
    """A data set that returns its errors with their index: raised in a worker, they would arrive as a long trace."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except SnowsError as error:
            return _Failed(index, error)


@dataclass(frozen=True)
class _Failed:
    """An item that is an error."""

    index: int
    error: SnowsError


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # PyTorch names a class of its own here
        counted = getattr(self.dataset.dataset.dataset, "unreadable", None)  # type: ignore[attr-defined] # _Told, Subset
        try:
            for batch, failed in super().__iter__():
                for item in failed:
                    leave_out(counted, item.index, item.error)
                if batch is not None:
                    yield batch
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise dead_worker(error) from error


def _collate(items: list[Any]) -> tuple[Any, list[_Failed]]:
    """Return a batch of what could be read (None where that is nothing), and what could not."""
    failed = [item for item in items if isinstance(item, _Failed)]
    read = [item for item in items if not isinstance(item, _Failed)]
    return default_collate(read) if read else None, failed


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the workers belong to
