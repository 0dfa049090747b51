"""The offline data set: scikit-learn's 1,797 handwritten digits, up-sampled to 16 x 16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from snows_core.errors import invalid_argument
from snows_core.zoo.bundle import ArrayImages, DataBundle, Split
from snows_core.zoo.preparation import Preparation

SIZE = 16
TRAIN_COUNT = 1200
MEAN, STD = (0.306,), (0.318,)  # of the up-sampled training pixels in [0, 1], rounded
USUAL = Preparation()


def load_digits(
    name: str = "digits", root: str | Path | None = None, wanted: Preparation = USUAL, download: bool = True
) -> DataBundle:
    """Return the digits: 1,200 to train or calibrate on and 597 to test, a fixed random split.

    The 8 x 8 images with values 0 to 16 are divided by 16, enlarged to 16 x 16 by bilinear interpolation and
    normalised. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, as bundled with scikit-learn.

    Args:
        name: "digits".
        root: not used: the images are in a package.
        wanted: mean and std of one value, default those of the training pixels; the size is 16.
        download: not used: nothing is downloaded.

    Returns:
        The bundle, with images (1, 16, 16).

    Raises:
        SnowsError: on another size, or a mean and std of three channels.
    """
    from sklearn import datasets

    if wanted.image_size not in (None, SIZE):
        raise invalid_argument(
            "image_size", wanted.image_size, f"{SIZE}, the size of the digits", "Use another data set."
        )
    mean, std = wanted.moments((MEAN, STD))
    if len(mean) != 1:
        raise invalid_argument(
            "mean",
            f"{len(mean)} values",
            "one value: the digits are grey",
            "Use a network with one input channel, or colour images.",
        )
    raw = datasets.load_digits()
    pixels = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    dataset = ArrayImages(pixels, torch.tensor(raw.target), mean, std)
    order = np.random.RandomState(0).permutation(len(pixels))  # the legacy generator: its stream never changes
    return DataBundle(
        name=name,
        train=Split(dataset, order[:TRAIN_COUNT].tolist()),
        test=Split(dataset, order[TRAIN_COUNT:].tolist()),
        classes=[str(digit) for digit in range(10)],
        image_shape=(1, SIZE, SIZE),
        mean=mean,
        std=std,
        source="scikit-learn's bundled handwritten digits, enlarged from 8 x 8 to 16 x 16",
    )
