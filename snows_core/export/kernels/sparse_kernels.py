"""PyTorch's 2:4 kernels: whether this machine has them, which weights they take, and the call that packs a weight.

Sources: ``torch/sparse/semi_structured.py`` (backends, number formats, shapes), whose own constraints are read here;
NVIDIA, "Ampere GA102 GPU Architecture" (2021), for the sparse tensor cores that begin with compute capability 8.0.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snows_core.devices import resolve_device
from snows_core.errors import invalid_argument

Backend = Literal["cusparselt", "cutlass"]
Packer = Callable[[Tensor], Tensor]
"""From a dense weight (out, in) that holds 2:4 to what PyTorch multiplies by in its place."""

DTYPES = (torch.float16, torch.bfloat16)
LEAST = (8, 0)  # compute capability of the first GPUs with sparse tensor cores
NEEDED = (
    "a CUDA GPU of compute capability 8.0 or higher, such as A100, A10, L4, RTX 30 or newer, H100 (a T4 has 7.5, and "
    "no 2:4 hardware)"
)
OWN_PATHS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)  # they hand weights of inner layers to fused kernels


@dataclass(frozen=True)
class Kernel:
    """One way of multiplying by a 2:4 weight.

    Attributes:
        name: of the backend, for tables.
        pack: packs a weight.
        shape: rows and columns of a weight are multiples of these.
    """

    name: str
    pack: Packer
    shape: tuple[int, int]


def sparse_device(device: torch.device | str | None = None) -> torch.device:
    """Return a CUDA device with 2:4 hardware.

    Args:
        device: the one to use; default: PyTorch's current CUDA device.

    Raises:
        SnowsError: where there is none; says what there is and what is needed.
    """
    there = _hardware_fault(None)
    named = None if device is None or there else resolve_device(device, torch.device("cpu"))
    if named is not None:
        there = _hardware_fault(named) if named.type == "cuda" else f"'{named}'"
    if there:
        raise invalid_argument(
            "device", there, NEEDED, "The dense weights with their zeros run anywhere, unaccelerated."
        )
    return named or torch.device("cuda", torch.cuda.current_device())


def _hardware_fault(device: torch.device | None) -> str:
    """Return what is there instead of a GPU with 2:4 hardware; empty where there is one."""
    if getattr(torch.version, "hip", None):
        return "an AMD GPU, or PyTorch built for one"
    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else ", which is built without CUDA"
        return f"no CUDA GPU (PyTorch {torch.__version__}{built})"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < LEAST:
        return f"{torch.cuda.get_device_name(device)} of compute capability {major}.{minor}"
    return ""


def kernels(dtype: torch.dtype, backend: Backend | None = None) -> list[Kernel]:
    """Return the kernels of this PyTorch, the preferred one first.

    Args:
        dtype: number format of weights and inputs.
        backend: only this one; default: cuSPARSELt where PyTorch was built with it, then CUTLASS.
    """
    names: tuple[Backend, ...] = ("cusparselt", "cutlass") if torch.backends.cusparselt.is_available() else ("cutlass",)
    found = []
    for name in (backend,) if backend else names:
        known = getattr(torch.sparse, f"SparseSemiStructuredTensor{name.upper()}")._DTYPE_SHAPE_CONSTRAINTS
        if dtype in known:
            limits = known[dtype]
            found.append(Kernel(name, _packer(name), (limits.sparse_min_rows, limits.sparse_min_cols)))
    return found


def _packer(name: Backend) -> Packer:
    """Return PyTorch's own conversion, with this backend chosen for its length."""

    def pack(weight: Tensor) -> Tensor:
        kind: Any = torch.sparse.SparseSemiStructuredTensor
        before = kind._FORCE_CUTLASS
        kind._FORCE_CUTLASS = name == "cutlass"
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*prototype.*")  # said once in any program, by PyTorch
                return torch.sparse.to_sparse_semi_structured(weight)
        finally:
            kind._FORCE_CUTLASS = before

    return pack


def why_not(name: str, layer: nn.Linear, inside: Mapping[str, str], chosen: list[Kernel]) -> str:
    """Return why a linear layer stays dense, before anything is tried; empty where nothing speaks against it.

    Args:
        name: of the layer.
        layer: in the number format of the kernels.
        inside: from :func:`read_by_others`.
        chosen: kernels to choose from.
    """
    if name in inside:
        return f"{inside[name]} reads its weight itself"
    if type(layer).forward is not nn.Linear.forward:
        return f"a {type(layer).__name__} computes in a way of its own"
    if "weight" not in layer._parameters:
        return "its weight is computed, not stored"
    if fault := pattern_fault(layer.weight):
        return fault
    if not any(fits(layer.weight, kernel) for kernel in chosen):
        return misfit(layer.weight, chosen)
    return ""


def read_by_others(model: nn.Module) -> dict[str, str]:
    """Return the names of modules inside of attention and transformer layers of PyTorch, and what these are called."""
    return {
        f"{name}.{inner}" if name else inner: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, OWN_PATHS)
        for inner, _ in module.named_modules()
        if inner
    }


def pattern_fault(weight: Tensor) -> str:
    """Return what is wrong with a weight (out, in) as a 2:4 one; empty where at most 2 of 4 inputs are there.

    >>> pattern_fault(torch.tensor([[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 3.0, 0.0]]))
    '1 of 2 groups of four inputs have more than two weights'
    """
    if weight.shape[1] % 4:
        return f"{weight.shape[1]} inputs do not divide into groups of four"
    kept = (weight.detach() != 0).reshape(len(weight), -1, 4).sum(2)
    broken = int((kept > 2).sum())
    return f"{broken:,} of {kept.numel():,} groups of four inputs have more than two weights" if broken else ""


def fits(weight: Tensor, kernel: Kernel) -> bool:
    """Tell whether the shape of a weight is one that a kernel takes."""
    return all(size >= least and size % least == 0 for size, least in zip(weight.shape, kernel.shape, strict=True))


def misfit(weight: Tensor, chosen: list[Kernel]) -> str:
    """Return the rule of shapes that a weight does not meet."""
    rules = " or ".join(f"{a}x{b} ({kernel.name})" for kernel in chosen for a, b in [kernel.shape])
    return f"its shape {'x'.join(map(str, weight.shape))} is no multiple of {rules or 'any kernel of this PyTorch'}"
