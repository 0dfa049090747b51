"""Number formats: what PyTorch may round, and how wide sums are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def tensor_cores(allowed: bool = True) -> Iterator[None]:
    """Let CUDA round the inputs of matrix products and convolutions to TF32 (10 bits of mantissa), or forbid it.

    PyTorch allows it for convolutions unless told otherwise. Without effect on other devices; restored after.

    Args:
        allowed: whether to round.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


@contextmanager
def plain_numerics() -> Iterator[None]:
    """Compute as written, whatever the caller has switched on around the call.

    Autocast, inference mode, ``no_grad``, TF32 and other default devices or dtypes are the caller's business for his
    own code; a solver needs derivatives in the precision of its weights. Everything is as before afterwards.
    """
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(tensor_cores(False))
        if torch.get_default_device().type != "cpu":  # not otherwise: it slows every call
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        yield
