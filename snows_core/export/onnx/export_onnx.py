"""A pruned network as an ONNX file that was run, compared with PyTorch, and searched for its zeros before it stays."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import cannot_go_on, integer, invalid_argument, number, one_of, require_extra, switch, users_code
from snows_core.export.onnx.exporters import (
    EXPORTERS,
    UnfitFileError,
    exportable,
    run_exporter,
    tensors_of,
    why_it_failed,
)
from snows_core.export.onnx.files import check_onnx_target, place_file, read_file, write_file
from snows_core.export.onnx.parity import Parity, compare
from snows_core.export.onnx.weights import FoundWeight, clean, name_weights, read_weight
from snows_core.export.promise import METADATA_KEY, promise_of
from snows_core.network.check_model import LAYERS, check_model, check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example
from snows_core.result import PruneResult

if TYPE_CHECKING:
    import pandas as pd

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2}
"""Largest difference to PyTorch that passes for rounding, as a share of the largest output, by format of the file."""


@dataclass(repr=False)
class OnnxExport:
    """An ONNX file, and what was seen of it.

    Attributes:
        path: the file.
        exporter: which of PyTorch's exporters wrote it: "dynamo" (by torch.export) or "torchscript".
        opset: version of ONNX's operators in it.
        max_difference: largest absolute difference of an output between ONNX Runtime and PyTorch, both on the CPU.
        relative_difference: the same as a share of the largest absolute value of that output.
        agreement: percent of images with the same top-1 class in both.
        images: how many images were compared.
        batches: the numbers of images that were run at once.
        table: one row for each pruned weight: layer, weight (name of the initializer in the file), operator, shape,
            zeros, sparsity, transposed (stored as inputs x outputs), folded (rows scaled by a batch norm).
        dtype: number format of the file, "float32" or "float16".
        pattern: of the result, as text; empty for a network that came without one.
        failed: exporter to the reason why a file by it was not taken.
    """

    path: Path
    exporter: str
    opset: int
    max_difference: float
    relative_difference: float
    agreement: float
    images: int
    batches: list[int]
    table: pd.DataFrame
    dtype: str
    pattern: str = ""
    failed: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"{self.path}: opset {self.opset}, {self.dtype}, any number of images, by {EXPORTERS[self.exporter]}"]
        lines += [f"not by {EXPORTERS[name]}: {reason}" for name, reason in self.failed.items()]
        sizes = ", ".join(map(str, self.batches[:-1])) + f" and {self.batches[-1]}"
        lines += [
            f"ONNX Runtime beside PyTorch, {_count(self.images, 'image')} in batches of {sizes}: outputs differ by at "
            f"most {self.max_difference:.1e}, {self.relative_difference:.1e} of the largest; agreement "
            f"{self.agreement:g} %"
        ]
        folded, zeros = int(self.table["folded"].sum()), int(self.table["zeros"].sum())
        pattern = f" ({self.pattern})" if self.pattern else ""
        words = f"all {zeros:,} zeros of {_count(len(self.table), 'pruned weight')}{pattern} were found in the file"
        lines += [words + (f"; batch norm is folded into {folded} of them" if folded else "")]
        return "\n".join(lines if len(self.table) else lines[:-1])


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class _Job:
    """What an attempt needs, whichever exporter makes it."""

    network: nn.Module  # a copy on the CPU, in the number format of the file
    images: Sequence[Tensor]
    example: Tensor
    outputs: list[str]
    weights: dict[str, Tensor]  # by parameter name, the pruned ones first
    pruned: dict[str, str]  # parameter name of each pruned weight to its layer
    promise: dict[str, Any]
    opset: int | None
    tolerance: float


def export_onnx(
    model: nn.Module | PruneResult,
    images: Tensor | Iterable[Any],
    path: str | Path,
    *,
    opset: int | None = None,
    exporter: str | None = None,
    overwrite: bool = False,
    tolerance: float | None = None,
) -> OnnxExport:
    """Write a network into an ONNX file with its zeros in place, and prove it before the file is there.

    The file takes any number of images "images" and gives "outputs" (of several outputs each has a name behind that).
    Both of PyTorch's exporters are tried in turn until a file passes: the ONNX checker; ONNX Runtime on the CPU gives
    PyTorch's outputs, for one image and for several; every pruned weight is an initializer in it, with its zeros. Such
    initializers have the names of the network's parameters, also where they are transposed or a batch norm was folded
    into them. Networks in bfloat16 or double precision are written, and compared, in single precision, because ONNX
    Runtime has no CPU kernels for convolutions in those.

    Args:
        model: a result, or a network in eval mode; not changed, and copied to the CPU.
        images: what the outputs are compared on, (N, C, H, W) or batches; the file takes images of that size.
        path: the file, its name ends in ".onnx". Where weights take more than two gigabytes, they are in a file beside
            it, ``<name>.onnx.data``.
        opset: version of ONNX's operators; None for the one that PyTorch takes.
        exporter: "dynamo" or "torchscript", to try one alone.
        overwrite: replace a file that is there.
        tolerance: largest difference of an output that passes, as a share of the largest output; None for 1e-4, and
            1e-2 for networks in half precision. With a larger one the file is written all the same.

    Returns:
        The file, and what was seen of it; its text is a few lines.

    Raises:
        SnowsError: on a network in train mode, a result whose zeros are gone, a path that cannot be written, and where
            neither exporter makes a file that passes. Then there is no file, or the one that was there.
    """
    path = check_onnx_target(path, switch("overwrite", overwrite))
    exporters = list(EXPORTERS) if exporter is None else [one_of("exporter", exporter, EXPORTERS, ", or None for both")]
    require_extra("export", "onnx", "onnxruntime", "onnxscript")
    job = _prepared(model, images, opset, tolerance)
    failed: dict[str, str] = {}
    for name in exporters:
        with tempfile.TemporaryDirectory(prefix="snows-") as folder:
            try:
                found, parity, version = _attempt(name, job, Path(folder) / path.name)
            except MemoryError:
                raise
            except Exception as error:  # of exporters, checker and runtime, on anybody's network
                failed[name] = why_it_failed(error)
                continue
            place_file(Path(folder) / path.name, path)
        numbers = (parity.difference, parity.relative, parity.agreement, parity.images, parity.batches)
        kind = str(job.example.dtype).removeprefix("torch.")
        pattern = str(job.promise.get("pattern", ""))
        return OnnxExport(path, name, version, *numbers, _table(job, found), kind, pattern, failed)
    reasons = "; ".join(f"by {EXPORTERS[name]}: {reason}" for name, reason in failed.items())
    raise cannot_go_on(
        "model",
        f"a network that is not exported as it is, {reasons}",
        "the same outputs and zeros in an ONNX file",
        "Change what it names in the forward pass, or pass tolerance= where outputs differ by rounding alone.",
    )


def _prepared(
    model: nn.Module | PruneResult, images: Tensor | Iterable[Any], opset: int | None, tolerance: float | None
) -> _Job:
    """Check all arguments and copy the network."""
    from onnx.defs import onnx_opset_version

    result = model if isinstance(model, PruneResult) else None
    network = model.module if isinstance(model, PruneResult) else model
    check_tensors(network)
    check_model(unwrap(network))
    if opset is not None and integer("opset", opset, 7) > onnx_opset_version():
        raise invalid_argument("opset", opset, f"at most {onnx_opset_version()}, the newest that onnx knows here")
    with users_code("model", "a network that cannot be copied", "a network that copy.deepcopy copies"):
        network = plain_copy(unwrap(network)).cpu().requires_grad_(False)
    if any(p.dtype in (torch.bfloat16, torch.float64) for p in network.parameters()):
        network = network.float()
    network = network.to(memory_format=torch.contiguous_format)
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    limit = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    limit = limit if tolerance is None else number("tolerance", tolerance)
    parts = calibration_parts(images, few=0)
    example = first_images(parts, 2).to("cpu", dtype).contiguous()
    example = example if len(example) > 1 else example.repeat(2, 1, 1, 1)
    outputs = list(tensors_of(run_on_example(network, example)))
    named: dict[str, Tensor] = dict(network.named_parameters())
    layers = _pruned(network, result, named)
    weights = {name: named[name] for name in layers}
    weights |= {name: value for name, value in named.items() if value.ndim > 1}
    promise = {} if result is None else promise_of(result)
    return _Job(network, parts, example, outputs, weights, layers, promise, opset, limit)


def _pruned(network: nn.Module, result: PruneResult | None, named: Mapping[str, Tensor]) -> dict[str, str]:
    """Return parameter name to layer of what is pruned; without a result, of weights with zeros in them."""
    if result is None:
        kinds = {path: module for path, module in network.named_modules() if isinstance(module, LAYERS)}
        whole = {name: value for name, value in named.items() if name.rpartition(".")[0] in kinds and value.ndim > 1}
        return {name: name.rpartition(".")[0] for name, value in whole.items() if bool((value == 0).any())}
    layers = {}
    for layer, mask in result.masks.items():
        name = result.weight_names[layer]
        if name not in named or bool((named[name][~mask.cpu()] != 0).any()):
            got = f"a result whose model has lost the zeros of '{layer}'"
            raise invalid_argument("model", got, "zeros where masks remove weights", "Keep them while it is trained.")
        layers[name] = layer
    return layers


def _attempt(exporter: str, job: _Job, path: Path) -> tuple[dict[str, FoundWeight], Parity, int]:
    """Write a file by one exporter and see whether it passes.

    Returns:
        The pruned weights in it by parameter name, how far its outputs lie apart, and its opset.

    Raises:
        Exception: what an exporter, the checker or the runtime say, and UnfitFileError where the file does not pass.
    """
    run_exporter(exporter, exportable(job.network, job.outputs), job.example, path, job.outputs, job.opset)
    file = read_file(path)
    clean(file)
    found = name_weights(file, job.weights)
    found = {name: place for name, place in found.items() if name in job.pruned}
    if lost := [name for name in job.pruned if name not in found]:
        raise UnfitFileError(f"the weight '{lost[0]}' and its zeros are not in the file as they are in the network")
    promised = {place.name: {**job.promise.get("layers", {}).get(n, {}), **place.entry()} for n, place in found.items()}
    if job.promise:
        file.metadata_props.add(key=METADATA_KEY, value=json.dumps({**job.promise, "layers": promised}, sort_keys=True))
    write_file(file, path)
    del file
    written = read_file(path)
    version = next(o.version for o in written.opset_import if o.domain in ("", "ai.onnx"))
    if job.opset not in (None, version):
        raise UnfitFileError(f"it writes opset {version} where {job.opset} was asked for")
    for place in found.values():
        if {**promised[place.name], **read_weight(written, place).entry()} != promised[place.name]:
            raise UnfitFileError(f"the zeros of '{place.name}' were moved when the file was written")
    parity = compare(path, job.network, job.images, job.example.dtype)
    if not parity.relative <= job.tolerance:
        words = f"outputs differ by {parity.relative:.1e} of the largest in ONNX Runtime"
        raise UnfitFileError(f"{words}, where {job.tolerance:g} passes (agreement {parity.agreement:g} %)")
    return found, parity, version


def _table(job: _Job, found: Mapping[str, FoundWeight]) -> pd.DataFrame:
    import pandas as pd

    columns = ["layer", "weight", "operator", "shape", "zeros", "sparsity", "transposed", "folded"]
    rows: list[list[Any]] = []
    for name, place in found.items():
        shape, zeros = "x".join(map(str, place.array.shape)), int((place.array == 0).sum())
        share = zeros / place.array.size
        rows += [[job.pruned[name], place.name, place.operator, shape, zeros, share, place.transposed, place.scaled]]
    return pd.DataFrame(rows, columns=columns)
