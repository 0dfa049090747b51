"""Images that cannot be read: a few are left out and counted, many end the run."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from snows_core.errors import SnowsError

FEW = 3
SHARE = 0.01  # of the images of a data set that may be left out where that is more than ``FEW``
NAMED = 3  # files that an error names


class UnreadableImage(SnowsError):
    """A file that no decoder makes an image of; the message names it, with the reason."""


class Unreadable:
    """The images of one data set that could not be read, by their indices in it.

    Three of them may be left out, or one in a hundred where that is more, but never half of all.

    Args:
        total: images of the data set.
    """

    def __init__(self, total: int) -> None:
        self.reasons: dict[int, str] = {}
        self.total, self.limit = total, min(max(FEW, int(SHARE * total)), max(0, (total - 1) // 2))

    def add(self, index: int, error: UnreadableImage) -> None:
        """Count an image, and warn at the first, the tenth and so on.

        Args:
            index: of the image in the data set; one that is known counts once.
            error: why it cannot be read.

        Raises:
            SnowsError: when they are too many; it names the first.
        """
        if index in self.reasons:
            return
        found = [*self.reasons.values(), str(error)]
        count = len(found)
        if count > self.limit:  # not kept: whoever reads on is told again
            if count == 1:
                raise error
            names = "; ".join(reason.split(". Remove")[0].removeprefix("data: ") for reason in found[:NAMED])
            raise SnowsError(
                f"data: {count:,} and more of {self.total:,} images cannot be read, but {self.limit:,} may be left out:"
                f" {names}{'; ...' if count > NAMED else ''}. Remove or replace the files."
            ) from error
        self.reasons[index] = str(error)
        if str(count).strip("0") == "1":
            words = "an image was left out" if count == 1 else f"{count:,} images were left out so far, the last one"
            warnings.warn(f"{words}: {str(error).removeprefix('data: ')}", stacklevel=3)

    def kept(self, indices: Tensor) -> Tensor:
        """Return which of some indices of the data set are not among the images that could not be read.

        Args:
            indices: (n,).

        Returns:
            Bool (n,).
        """
        return ~torch.isin(indices, torch.tensor(sorted(self.reasons), dtype=indices.dtype))


def leave_out(counted: Unreadable | None, index: int, error: SnowsError) -> None:
    """Count an item that could not be read, or raise its error where that is no matter of one file.

    Args:
        counted: where the data set counts them; None where it does not.
        index: of the item in the data set.
        error: what reading it raised.

    Raises:
        SnowsError: see above.
    """
    if counted is None or not isinstance(error, UnreadableImage):
        raise error
    counted.add(index, error)
