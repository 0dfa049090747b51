"""What every data source hands over: two splits of normalised images, and what is known about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snows_core.errors import SnowsError, invalid_argument
from snows_core.zoo.reading import in_order
from snows_core.zoo.unreadable import UnreadableImage, leave_out


class ArrayImages(Dataset):
    """Images that fit in memory as bytes, normalised when they are read.

    Args:
        pixels: uint8 or float tensor (N, C, H, W); bytes are divided by 255.
        labels: class indices (N,).
        mean: one value a channel, subtracted.
        std: one value a channel, divided by.
    """

    def __init__(self, pixels: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.pixels, self.labels = pixels, labels.long()
        self.mean, self.std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised images (n, C, H, W) and labels (n,) at the indices, read in one go."""
        pixels = self.pixels[indices]
        scale = 255.0 if pixels.dtype == torch.uint8 else 1.0
        return (pixels.float() / scale - self.mean) / self.std, self.labels[indices]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return one normalised image (C, H, W) and its label."""
        images, labels = self.batch(torch.tensor([int(index)]))
        return images[0], int(labels[0])


class Split:
    """A part of a data set: images already normalised as their network expects.

    Positions count within the split, from 0. A data set yields ``(image, label)`` pairs, or bare images where
    there are no labels.

    Args:
        dataset: the whole data set; an image is a float tensor (C, H, W).
        indices: which of its items belong to the split; default all.
        labelled: whether the items come with labels.
    """

    def __init__(self, dataset: Dataset[Any], indices: Iterable[int] | None = None, *, labelled: bool = True) -> None:
        self.dataset = dataset
        if indices is None:
            indices = range(len(cast(Sized, dataset)))  # torch leaves open whether a data set has a length
        self.indices = torch.as_tensor(list(indices), dtype=torch.long)
        self.labelled = labelled

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def tensors(self, n: int | None = None, indices: Iterable[int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Read images into memory.

        Args:
            n: read the first ``n`` images; default all.
            indices: or read the images at these positions of the split, in this order.

        Returns:
            Images (N, C, H, W), float32 and normalised, and labels (N,), int64, or None where there are none. Files
            that cannot be read are left out of both, with a warning; see :meth:`readable`.

        Raises:
            SnowsError: on ``n`` and ``indices`` together, ``n`` outside 1..len, a position that does not exist, or more
                than a few files that cannot be read.
        """
        if n is not None and indices is not None:
            raise invalid_argument("n", f"{n} beside indices", "either n or indices", "Leave one of them out.")
        if indices is None:
            positions = torch.arange(len(self) if n is None else self._check_count(n))
        else:
            positions = torch.as_tensor(indices if isinstance(indices, Tensor) else list(indices), dtype=torch.long)
            if len(positions) == 0 or int(positions.min()) < 0 or int(positions.max()) >= len(self):
                raise invalid_argument("indices", _span(positions), f"positions from 0 to {len(self) - 1}")
        found = self._read(self.indices[positions])
        if found is None:
            raise SnowsError(
                f"data: got {len(positions)} files of which none can be read; expected images. Remove or replace them."
            )
        return found

    def _read(self, chosen: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return the images and labels at indices of the data set, or None where none of them can be read."""
        if isinstance(self.dataset, ArrayImages):
            return self.dataset.batch(chosen)
        items = [item for i in chosen if (item := self._item(int(i))) is not None]
        if not items or not self.labelled:
            return (torch.stack(items), None) if items else None
        images, labels = zip(*items, strict=True)
        return torch.stack(images), torch.tensor(labels, dtype=torch.long)

    def _item(self, index: int) -> Any:
        """Return an item of the data set, or None for one that cannot be read, which is counted."""
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            leave_out(getattr(self.dataset, "unreadable", None), index, error)
            return None

    def readable(self, positions: Tensor) -> Tensor:
        """Return those of the positions whose images were not left out; of images not yet read nothing is known.

        Args:
            positions: in the split, (n,).

        Returns:
            The positions that stay, in their order.
        """
        unreadable = getattr(self.dataset, "unreadable", None)
        return positions if unreadable is None else positions[unreadable.kept(self.indices[positions])]

    def sample(self, n: int, seed: int = 0) -> tuple[Tensor, Tensor | None, Tensor]:
        """Draw images without replacement; the same seed draws the same images on every machine.

        Args:
            n: how many.
            seed: of the generator that draws them.

        Returns:
            Images (n, C, H, W), labels (n,) or None, and their positions (n,) in the split, which ``tensors`` takes;
            files that cannot be read are in none of the three.

        Raises:
            SnowsError: when ``n`` is below 1 or above the number of images.
        """
        _, positions = self.drawn(n, seed)
        images, labels = self.tensors(indices=positions)
        return images, labels, self.readable(positions)

    def drawn(self, n: int, seed: int = 0, batch_size: int = 64) -> tuple[Iterator[Tensor], Tensor]:
        """Draw the images that :meth:`sample` draws, and read them a batch at a time.

        Args:
            n: how many.
            seed: of the generator that draws them.
            batch_size: images a batch; the last one may be smaller.

        Returns:
            An iterator over batches of images (N, C, H, W), and their positions (n,) in the split, of which
            :meth:`readable` tells afterwards what could be read.

        Raises:
            SnowsError: when ``n`` is below 1 or above the number of images.
        """
        self._check_count(n)
        positions = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        found = (self._read(self.indices[part]) for part in positions.split(batch_size))
        return (batch[0] for batch in found if batch is not None), positions

    def loader(
        self, batch_size: int = 256, workers: int = 0, positions: Iterable[int] | None = None
    ) -> DataLoader[Any]:
        """Return a loader of ``(images, labels)`` batches in order (or of images alone), nothing dropped.

        Args:
            batch_size: images a batch; the last one may be smaller.
            workers: processes that read images; 0 reads in this one. The batches are the same with any number.
            positions: read the images at these positions of the split, in this order; default all.
        """
        if batch_size < 1:
            raise invalid_argument("batch_size", batch_size, "an integer >= 1")
        chosen = self.indices if positions is None else self.indices[torch.as_tensor(positions, dtype=torch.long)]
        return in_order(self.dataset, chosen.tolist(), batch_size, workers)

    def _check_count(self, n: int) -> int:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise invalid_argument("n", n, "an integer >= 1", "Ask for at least one image.")
        if n > len(self):
            expected = f"at most {len(self)}, all that this split has"
            raise invalid_argument("n", f"{n} images to read", expected, "Ask for fewer or add images.")
        return n


def _span(positions: Tensor) -> str:
    return f"{int(positions.min())} to {int(positions.max())}" if len(positions) else "no positions"


@dataclass
class DataBundle:
    """A data set ready for one network.

    Attributes:
        name: what ``load_data`` was asked for.
        train: images for calibration (and training).
        test: images for measuring; none of them is in ``train``.
        classes: class names in label order; empty where there are no labels.
        image_shape: (C, H, W) of every image.
        mean: subtracted from the pixels in [0, 1], one value a channel.
        std: divided by, one value a channel.
        source: where the images came from, in words.
        held_out: whether the test images were kept from training; if not, the network has likely been trained on them.
    """

    name: str
    train: Split
    test: Split
    classes: list[str]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    held_out: bool = True

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be measured."""
        return self.test.labelled

    def test_tensors(self, n: int | None = None) -> tuple[Tensor, Tensor]:
        """Return test images and labels in memory.

        Args:
            n: how many, from the front; default all.

        Returns:
            Images (n, C, H, W) and labels (n,).

        Raises:
            SnowsError: when the images have no labels.
        """
        self.require_labels()
        images, labels = self.test.tensors(n)
        assert labels is not None  # see above
        return images, labels

    def require_labels(self) -> None:
        """Refuse images without labels.

        Raises:
            SnowsError: says how labels are given.
        """
        if not self.labelled:
            raise SnowsError(
                f"data: '{self.name}' ({self.source}) has no labels, so accuracy cannot be measured; expected one"
                " folder a class, <path>/<class>/*. Sort the images into such folders, or ask only for agreement with"
                " the dense network."
            )
