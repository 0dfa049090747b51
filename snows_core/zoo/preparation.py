"""How images are made ready for a network: what a caller may ask of every data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from snows_core.errors import invalid_argument

Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Preparation:
    """What becomes of the pixels; None leaves the choice to the data set.

    Attributes:
        mean: one value a channel, subtracted from pixels in [0, 1].
        std: one value a channel, divided by.
        image_size: height and width of the images.
        transform: from a PIL image to a tensor, instead of resizing and normalisation, which the others then only
            describe.
        num_classes: classes that the network tells apart; None where it is not known.
        progress: whether to show a bar where files are looked for.
        test_share: share of the images to set aside for testing, of a folder that is not divided; None for the usual.

    Raises:
        SnowsError: when the share is not between 0 and 1.
    """

    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    image_size: int | None = None
    transform: Callable[[Any], Tensor] | None = None
    num_classes: int | None = None
    progress: bool = True
    test_share: float | None = None

    def __post_init__(self) -> None:
        """Refuse a share that leaves nothing on one side."""
        share: Any = self.test_share
        if share is not None and not (isinstance(share, int | float) and 0 < share < 1):
            raise invalid_argument("test_share", repr(share), "a number between 0 and 1, such as 0.8")

    def moments(self, default: Moments) -> Moments:
        """Return mean and std with defaults filled in.

        Args:
            default: mean and std of the data set's usual network.

        Raises:
            SnowsError: when they are not both of length 1 or both of length 3, or std is not positive.
        """
        mean = tuple(float(v) for v in (default[0] if self.mean is None else self.mean))
        std = tuple(float(v) for v in (default[1] if self.std is None else self.std))
        if len(mean) not in (1, 3) or len(mean) != len(std):
            raise invalid_argument(
                "mean, std", f"{len(mean)} and {len(std)} values", "one value a channel each, 1 or 3 channels"
            )
        if min(std) <= 0:
            raise invalid_argument("std", std, "positive values")
        return mean, std


def normalised(
    size: int | None, mean: Sequence[float], std: Sequence[float], *, crop: bool = True
) -> Callable[[Any], Tensor]:
    """Return the usual test-time transform from a PIL image to a normalised tensor.

    Args:
        size: height and width to resize to; None leaves the image's own.
        mean: one value a channel.
        std: one value a channel.
        crop: resize the shorter side to size / 0.875 and crop the centre, as for ImageNet; otherwise resize both sides.
    """
    from torchvision import transforms

    steps: list[Any] = []
    if size is not None and crop:
        steps = [transforms.Resize(round(size / 0.875)), transforms.CenterCrop(size)]
    elif size is not None:
        steps = [transforms.Resize((size, size))]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])
