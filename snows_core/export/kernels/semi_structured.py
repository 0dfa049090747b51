"""A 2:4 network on PyTorch's sparse kernels, layer by layer where they answer as the dense network does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import invalid_argument, one_of, reason_of, switch
from snows_core.export.kernels.pointwise import pointwise_as_linear
from snows_core.export.kernels.sparse_kernels import (
    DTYPES,
    Backend,
    Kernel,
    fits,
    kernels,
    read_by_others,
    sparse_device,
    why_not,
)
from snows_core.loss.features import gives_features
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example
from snows_core.result import PruneResult

if TYPE_CHECKING:
    import pandas as pd

CHECKED_IMAGES = 64  # the first ones, on which the networks are compared
CHECKED_ROWS = 512  # inputs of each layer on which it is compared alone
ROUNDINGS = 8  # a layer's two answers may differ by so many units in the last place of its largest output
COLUMNS = ("layer", "kind", "shape", "converted", "backend", "difference", "reason")


@dataclass(repr=False)
class Converted:
    """A network whose 2:4 layers run on sparse kernels.

    Attributes:
        model: a copy of the network in half precision, on the GPU; weights of converted layers are packed tensors of
            PyTorch's, so keep the dense file for storage.
        table: one row a linear layer (and rewritten convolution): layer, kind, shape, converted, backend, difference
            (largest, as a share of the layer's largest dense output), reason (why it stays dense).
        difference: of the whole network on the images: the largest, as a share of the largest output of the dense
            network in the same precision; None without images.
        agreement: percent of these images for which both give the same class; None without images, or without classes.
        images: how many images that was.
        dtype: number format.
        device: name of the GPU.
    """

    model: nn.Module
    table: pd.DataFrame
    difference: float | None
    agreement: float | None
    images: int
    dtype: torch.dtype
    device: str

    def __repr__(self) -> str:
        done = int(self.table["converted"].sum())
        words = f"{done} of {len(self.table)} layers run on 2:4 kernels"
        used = ", ".join(sorted(set(self.table.loc[self.table["converted"], "backend"])))
        words += f" ({used})" if used else ""
        words += f" in {str(self.dtype).removeprefix('torch.')} on {self.device}"
        if self.difference is not None:
            words += f"; outputs differ by {self.difference:.1e} of the largest on {self.images} images"
        return words + (f", {self.agreement:.1f} % agree" if self.agreement is not None else "")


def to_semi_structured(
    model: nn.Module | PruneResult,
    images: Tensor | Iterable[Any] | None = None,
    *,
    dtype: torch.dtype = torch.float16,
    convolutions: bool = False,
    backend: Backend | None = None,
    device: torch.device | str | None = None,
) -> Converted:
    """Let the linear layers of a 2:4 network run on PyTorch's sparse kernels, on a CUDA GPU that has them.

    A layer is converted where its weight holds 2:4 along the inputs, its shape is one that a kernel takes, and the
    kernel gives what the dense layer gives, to rounding. Whatever else happens with a layer, it stays dense, and the
    table says why. That is no promise of speed: ``tools/semi_structured_benchmark.py`` measures it.

    Args:
        model: a pruned network, or a result; not changed.
        images: a few images (N, C, H, W), in the size that the network is used with. Every layer and the network as a
            whole are compared with the dense ones on the first 64. Without images layers are tried on random numbers.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
        convolutions: rewrite 1x1 convolutions as linear layers over pixels, so that they can be converted, too.
        backend: "cusparselt" or "cutlass"; default: the first that works, layer by layer.
        device: a CUDA device; default: PyTorch's current one.

    Returns:
        The network with a table of its layers, and how far its outputs are from the dense network's.

    Raises:
        SnowsError: where there is no CUDA GPU of compute capability 8.0 or higher; on another dtype; where the dense
            network itself does not run in that precision.
    """
    if dtype not in DTYPES:
        raise invalid_argument("dtype", dtype, "torch.float16 or torch.bfloat16", "2:4 in float32 does not exist.")
    if backend is not None:
        one_of("backend", backend, ["cusparselt", "cutlass"], ", or None")
    convolutions = switch("convolutions", convolutions)
    if isinstance(model, PruneResult):
        model = model.module
    check_tensors(model)
    place = sparse_device(device)
    return convert(model, images, place, dtype, convolutions, kernels(dtype, backend))


@torch.no_grad()
def convert(
    model: nn.Module,
    images: Tensor | Iterable[Any] | None,
    place: torch.device,
    dtype: torch.dtype,
    convolutions: bool,
    chosen: list[Kernel],
) -> Converted:
    """Convert a network on any device with any kernels; see :func:`to_semi_structured`.

    Args:
        model: a pruned network; not changed.
        images: a few images, or None.
        place: where to compute.
        dtype: number format.
        convolutions: whether to rewrite 1x1 convolutions.
        chosen: the kernels to try, the preferred one first.

    Returns:
        The converted network.
    """
    dense = plain_copy(unwrap(model)).eval().to(place, dtype)
    example = None if images is None else first_images(calibration_parts(images, CHECKED_IMAGES, 0), CHECKED_IMAGES)
    example = None if example is None else example.to(place, dtype)
    wanted = None if example is None else _dense_answers(dense, example)
    network = plain_copy(dense)
    rewritten = set(pointwise_as_linear(network)) if convolutions else set()
    inputs = _inputs(network, example)
    inside, rows = read_by_others(network), []
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear):
            row = _Row(name, rewritten, layer)
            row.reason = why_not(name, layer, inside, chosen)
            if not row.reason and example is not None and name not in inputs:
                row.reason = "it was not called on the images: its weight is not used, or used elsewhere"
            if not row.reason:
                _convert_layer(network, layer, row, inputs.get(name), example, chosen)
            rows.append(row)
    import pandas as pd

    table = pd.DataFrame([row.as_dict() for row in rows], columns=list(COLUMNS))
    difference, agreement = None, None
    if example is not None and wanted is not None:
        answers = _tensors(network(example.clone()))
        difference = _largest(wanted, answers)
        agreement = None if gives_features(network) else _agreement(wanted, answers)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else str(place)
    count = 0 if example is None else len(example)
    return Converted(network, table, difference, agreement, count, dtype, name)


class _Row:
    """What becomes of one layer."""

    def __init__(self, name: str, rewritten: set[str], layer: nn.Linear) -> None:
        outer = name.removesuffix(".linear")
        self.pointwise = name.endswith(".linear") and outer in rewritten
        self.layer = outer if self.pointwise else name
        self.shape = "x".join(map(str, layer.weight.shape))
        self.reason, self.backend, self.difference = "", "", float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Return a row of the table."""
        kind = "1x1 convolution" if self.pointwise else "linear"
        return {**vars(self), "kind": kind, "converted": bool(self.backend)}


def _dense_answers(dense: nn.Module, example: Tensor) -> list[Tensor]:
    """Return the outputs of the dense network, and refuse one that overflows."""
    answers = _tensors(run_on_example(dense, example))
    if not _finite(answers):
        fix = "Try dtype=torch.bfloat16, which has the range of single precision."
        got = f"{str(example.dtype).removeprefix('torch.')}, in which the dense network gives NaN or infinite values"
        raise invalid_argument("dtype", got, "a number format in which it runs", fix)
    return answers


def _inputs(network: nn.Module, example: Tensor | None) -> dict[str, Tensor]:
    """Return what each linear layer reads on the images: rows (n, in), the first ones, from everywhere in the batch."""
    found: dict[str, Tensor] = {}
    if example is None:
        return found

    def note(name: str, values: Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1])
        found.setdefault(name, rows[:: max(1, len(rows) // CHECKED_ROWS)][:CHECKED_ROWS].clone())

    handles = [
        layer.register_forward_pre_hook(lambda _, given, name=name: note(name, given[0]) if given else None)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        run_on_example(network, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _convert_layer(
    network: nn.Module,
    layer: nn.Linear,
    row: _Row,
    rows: Tensor | None,
    example: Tensor | None,
    chosen: list[Kernel],
) -> None:
    """Give a layer the first packed weight with which it, and the network as a whole, answers as before."""
    dense = layer.weight
    if rows is None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(CHECKED_ROWS, dense.shape[1], generator=generator).to(dense)
    wanted, reasons = layer(rows), []
    limit = ROUNDINGS * torch.finfo(dense.dtype).eps
    for kernel in (kernel for kernel in chosen if fits(dense, kernel)):
        try:
            layer.weight = nn.Parameter(kernel.pack(dense.detach().contiguous()), requires_grad=False)
            row.difference = _largest([wanted], [layer(rows)])
            if not row.difference <= limit:  # so is NaN
                reasons.append(f"{kernel.name}: outputs differ by {row.difference:.1e} of the largest")
            else:
                if example is not None:
                    _dense_like(network, example)
                row.backend = kernel.name
                return
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a kernel of any version, on any GPU, refuses in a way of its own
            reasons.append(f"{kernel.name}: {reason_of(error)}")
        layer.weight = dense
    row.difference, row.reason = float("nan"), "; ".join(reasons)


def _dense_like(network: nn.Module, example: Tensor) -> None:
    """Run a network to see that it still does: shapes and strides are those of the network, not of a trial."""
    answers = _tensors(network(example.clone()))
    if example.is_cuda:
        torch.cuda.synchronize(example.device)  # a kernel that fails says so here at the latest
    if not _finite(answers):
        raise ValueError("the network gives NaN or infinite values with it")


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def _finite(answers: list[Tensor]) -> bool:
    return all(bool(torch.isfinite(answer).all()) for answer in answers)


def _largest(wanted: list[Tensor], answers: list[Tensor]) -> float:
    """Return the largest difference of two lists of outputs, as a share of the largest in the first."""
    gaps = [0.0]
    for value, answer in zip(wanted, answers, strict=True):
        if value.is_floating_point() and value.numel():
            value, answer = value.double(), answer.double()
            gaps.append(float((value - answer).abs().max() / value.abs().max().clamp(min=1e-300)))
    return float("nan") if any(gap != gap for gap in gaps) else max(gaps)


def _agreement(wanted: list[Tensor], answers: list[Tensor]) -> float | None:
    """Return the percentage of images of the same class, where there is one output of one row an image."""
    if len(wanted) != 1 or wanted[0].ndim != 2 or wanted[0].shape[1] < 2:
        return None
    return 100 * float((wanted[0].argmax(1) == answers[0].argmax(1)).double().mean())
