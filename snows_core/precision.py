"""Number formats of curvature products: full single precision, TF32 on tensor cores, or bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

Precision = Literal["float32", "tf32", "bfloat16"]


@contextmanager
def tensor_cores() -> Iterator[None]:
    """Let CUDA round the inputs of matrix products and convolutions to TF32 (10 bits of mantissa); restored after.

    Without effect on other devices.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
