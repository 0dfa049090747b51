"""The test images of a command: which they are, read once for all its networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import DataBundle
from snows_core.zoo.reading import usual_workers

KEPT_BYTES = 2**29  # so much of the images stays in memory between checking the dense network and judging both
SEED = 0  # of the draw of test images, the same in every command


class JudgingImages:
    """Test images for the networks of one command; no image is read twice.

    Those with which the dense network is checked are kept: all of a small set, of a large one a seeded sample of half
    a gigabyte. The others are read when both networks are judged, and none of these is kept.

    Args:
        bundle: the data.
        batch_size: images a batch.
        count: how many test images, drawn by a seed; None means all.
        workers: processes that read them; None means as many as pay.
        progress: whether to show a bar.

    Raises:
        SnowsError: when more are asked for than there are.
    """

    def __init__(
        self,
        bundle: DataBundle,
        batch_size: int,
        count: int | None = None,
        workers: int | None = None,
        progress: bool = True,
    ) -> None:
        self.split, self.batch_size, self.progress, self.there = bundle.test, batch_size, progress, len(bundle.test)
        if count is not None and not 1 <= count <= self.there:
            raise invalid_argument("test_images", count, f"1 to {self.there}, the test images of {bundle.source}")
        self.positions = _drawn(torch.arange(self.there), count or self.there)
        self.workers = usual_workers(len(self), bundle.image_shape) if workers is None else workers
        image_bytes = 4 * bundle.image_shape[0] * bundle.image_shape[1] * bundle.image_shape[2]
        self.first = _drawn(self.positions, min(len(self), max(1, KEPT_BYTES // image_bytes)))
        self.others = self.positions[~torch.isin(self.positions, self.first)]
        self._kept: list[Any] = []

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.positions)

    def kept(self) -> Iterator[Any]:
        """Yield batches of the images that the dense network is checked with, read the first time and then kept."""
        if not self._kept:
            self._kept = list(self._read(self.first, "reading test images"))
        yield from self._kept

    def __iter__(self) -> Iterator[Any]:
        """Yield all batches: images (N, C, H, W) with labels (N,), or images alone."""
        yield from self.kept()
        if len(self.others):
            yield from self._read(self.others, "judging")

    def record(self) -> dict[str, Any]:
        """Return for a manifest which images these are."""
        readable = len(self.split.readable(self.positions))
        left_out = {"unreadable": len(self) - readable} if readable < len(self) else {}
        return {"split": "test", "images": readable, "of": self.there, "seed": SEED, **left_out}

    def words(self, images: int) -> str:
        """Say of how many images, as in "891 of 50,000 test images"."""
        return f"{images:,} {'' if images == self.there else f'of {self.there:,} '}test images"

    def _read(self, positions: Tensor, title: str) -> Iterator[Any]:
        loader = self.split.loader(self.batch_size, self.workers, positions)
        yield from tqdm(loader, title, unit="batch", leave=False, disable=not self.progress)


def _drawn(positions: Tensor, count: int) -> Tensor:
    """Return a seeded sample of the positions, in their order."""
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(SEED))
    return positions[order[:count].sort().values]
