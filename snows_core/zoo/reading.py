"""Images read in order, a batch at a time, by worker processes where that pays; the same numbers with any number."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from snows_core.errors import SnowsError, integer

MOST_WORKERS = 4
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

    Args:
        dataset: the images; with workers it must be one that can be pickled, where processes are spawned.
        indices: which items.
        batch_size: images a batch.
        workers: processes that read them; 0 reads in this one. An image that one of them cannot read is reported as
            if this process had read it.
    """
    if not integer("workers", workers):
        return DataLoader(Subset(dataset, indices), batch_size=batch_size)
    told = Subset(_Told(dataset), indices)
    return _Loader(told, batch_size=batch_size, num_workers=workers, collate_fn=_collate, worker_init_fn=_start)


class _Told(Dataset[Any]):
    """A data set that returns its errors: raised in a worker, they would arrive as a trace of many lines."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except SnowsError as error:
            return error


class _Loader(DataLoader[Any]):
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # PyTorch names a class of its own here
        for batch in super().__iter__():
            if isinstance(batch, SnowsError):
                raise batch
            yield batch


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, SnowsError)]
    return errors[0] if errors else default_collate(items)


def _start(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that the workers belong to
