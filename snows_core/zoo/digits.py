"""The offline data set: scikit-learn's 1,797 handwritten digits, up-sampled to 16 x 16."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from snows_core.zoo.bundle import ArrayImages, DataBundle, Split

SIZE = 16
TRAIN_COUNT = 1200
MEAN, STD = (0.306,), (0.318,)  # of the up-sampled training pixels in [0, 1], rounded


def load_digits(mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> DataBundle:
    """Return the digits: 1,200 to train or calibrate on and 597 to test, a fixed random split.

    The 8 x 8 images with values 0 to 16 are divided by 16, enlarged to 16 x 16 by bilinear interpolation and
    normalised. Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, as bundled with scikit-learn.

    Args:
        mean: one value; default the mean of the training pixels.
        std: one value; default their standard deviation.

    Returns:
        The bundle, with images (1, 16, 16).
    """
    from sklearn import datasets

    raw = datasets.load_digits()
    pixels = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    mean, std = tuple(mean or MEAN), tuple(std or STD)
    dataset = ArrayImages(pixels, torch.tensor(raw.target), mean, std)
    order = np.random.RandomState(0).permutation(len(pixels))  # the legacy generator: its stream never changes
    return DataBundle(
        name="digits",
        train=Split(dataset, order[:TRAIN_COUNT].tolist()),
        test=Split(dataset, order[TRAIN_COUNT:].tolist()),
        classes=[str(digit) for digit in range(10)],
        image_shape=(1, SIZE, SIZE),
        mean=mean,
        std=std,
        source="scikit-learn's bundled handwritten digits, enlarged from 8 x 8 to 16 x 16",
    )
