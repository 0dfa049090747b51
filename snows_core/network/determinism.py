"""Runs that give the same numbers each time: kernels that do not are refused, and named.

On a CPU with the same number of threads every kernel that this package uses is deterministic already. On a GPU some add
up in an order that changes from call to call (backward passes of upsampling and of indexing, for instance).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from snows_core.errors import SnowsError, invalid_argument

_WORKSPACE, _WORKSPACES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_REFUSED = re.compile(r"(\S+) does not have a deterministic implementation")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def deterministic_where_asked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Run a function of (model, ...) with deterministic kernels alone where it is called with ``deterministic=True``.

    Args:
        function: takes the settings of a run as keywords.

    Returns:
        The function, which also raises :class:`~snows_core.errors.SnowsError` on a kernel that is not deterministic.
    """

    @wraps(function)
    def asked(*args: _P.args, **options: _P.kwargs) -> _R:
        if options.get("deterministic") is not True:
            return function(*args, **options)
        model = args[0] if args else options.get("model")
        with deterministic_kernels(_is_on_gpu(model, options.get("device"))):
            return function(*args, **options)

    return asked


@contextmanager
def deterministic_kernels(on_gpu: bool = False) -> Iterator[None]:
    """Refuse kernels that are not deterministic; the caller's switches are as before afterwards.

    Args:
        on_gpu: whether to see that CUDA's matrix products are deterministic, too, which an environment variable says.

    Raises:
        SnowsError: on a kernel without a deterministic form, naming it, and on a GPU without that variable.
    """
    if on_gpu and os.environ.get(_WORKSPACE) not in _WORKSPACES:
        got, fix = f"True on a GPU with {_WORKSPACE}={os.environ.get(_WORKSPACE)!r}", "Set it before Python starts."
        raise invalid_argument("deterministic", got, f"{_WORKSPACE}={_WORKSPACES[0]}", fix)
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches = cudnn.benchmark, cudnn.deterministic
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    except (RuntimeError, SnowsError) as error:
        if (kernel := refused_kernel(error)) is None:
            raise
        expected, fix = (
            "kernels that are",
            "Compute it otherwise in the model, on device='cpu', or leave the option out.",
        )
        raise invalid_argument("deterministic", f"True, but {kernel} is not deterministic", expected, fix) from error
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.benchmark, cudnn.deterministic = switches


def refused_kernel(error: BaseException | None) -> str | None:
    """Return the kernel that was refused where an error, or one behind it, says so; None for all others."""
    while error is not None:
        if isinstance(error, RuntimeError) and (found := _REFUSED.search(str(error))):
            return found[1]
        error = error.__cause__ or error.__context__
    return None


def _is_on_gpu(model: Any, device: Any) -> bool:
    if device is None and isinstance(model, nn.Module):
        device = next((parameter.device for parameter in model.parameters()), None)
    return str(device).startswith("cuda")
