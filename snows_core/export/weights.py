"""Pruned weights as one file for others: a state dict that ``torch.load`` reads, or safetensors.

Every name of a state dict has a tensor of its own in the file, also where two layers share one weight: so
``model.load_state_dict`` finds both names, whatever reads the file. What the file promises, the pattern and where its
zeros are, stands in its metadata (:mod:`snows_core.export.promise`): of a safetensors file under the key "snows", of a
state dict under ``state._metadata[""]["snows"]``, where ``load_state_dict`` passes over it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from snows_core.errors import cannot_go_on, invalid_argument, one_of, shown
from snows_core.export.promise import METADATA_KEY, promise_of
from snows_core.files import as_path, write_whole
from snows_core.files.writing import try_to_write
from snows_core.result import PruneResult, unshared

FORMATS = {"safetensors": (".safetensors",), "state-dict": (".pth", ".pt")}
"""Format of a file to the endings that its name may have."""
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
"""Name to type in which weights can be written."""


@dataclass(frozen=True, repr=False)
class ExportedWeights:
    """Pruned weights in a file.

    Attributes:
        path: the file.
        format: "safetensors" or "state-dict".
        dtype: "float16", "bfloat16" or "float32", or "" where every tensor kept its own type.
        tensors: how many there are.
        zeros: zeros among the weights of the pruned layers, and
        weights: how many weights these are.
        underflows: tensor name to how many of its values became zero by the type, where some did.
    """

    path: Path
    format: str
    dtype: str
    tensors: int
    zeros: int
    weights: int
    underflows: dict[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        share = self.zeros / max(1, self.weights)
        words = f"{self.tensors} tensors{f' in {self.dtype}' if self.dtype else ''}; {self.zeros:,} zeros, "
        words += f"{share:.1%} of the {self.weights:,} weights of the pruned layers"
        return f"{words}; {underflow_words(self.underflows, self.dtype)}" if self.underflows else words


def export_weights(
    result: PruneResult,
    path: str | Path,
    format: str = "safetensors",
    *,
    dtype: str | None = None,
    overwrite: bool = False,
) -> ExportedWeights:
    """Write the weights of a pruned network into one file that loads without this package.

    ``safetensors.torch.load_file(path)`` or ``torch.load(path, weights_only=True)`` gives the dictionary that
    ``model.load_state_dict`` takes.

    Args:
        result: of a run that came to its end, or loaded.
        path: the file; it ends in .safetensors, or in .pth or .pt for a state dict.
        format: "safetensors" or "state-dict".
        dtype: "float16", "bfloat16" or "float32" for all floating-point tensors; default: each as it is. Zeros stay
            zeros; values that become zero by the type are counted in the answer.
        overwrite: replace a file that is there.

    Returns:
        What was written.

    Raises:
        SnowsError: on an interrupted result, values that the type cannot hold, or a file that is there or cannot be
            written.
    """
    one_of("format", format, FORMATS)
    path = check_file_target(path, FORMATS[format], overwrite)
    result, underflows = in_type(finished(result), dtype)
    write = write_safetensors if format == "safetensors" else write_state_dict
    write_whole(path, lambda temporary: write(result, temporary))
    return summary_of(result, path, format, dtype, underflows)


def finished(result: PruneResult, argument: str = "result") -> PruneResult:
    """Return a result whose run came to its end.

    Args:
        result: any.
        argument: what the caller calls it, for messages.

    Raises:
        SnowsError: on one that was interrupted, and on anything else than a result.
    """
    expected, fix = "the result of a run that came to its end", "The same call, or command, goes on where it was."
    if not isinstance(result, PruneResult):
        raise invalid_argument(argument, f"a {type(result).__name__}", "a PruneResult", "snows.load reads a saved one.")
    left = int((result.report["status"] == "not reached").sum())
    if left:
        got = f"an interrupted result, in which {left} of {len(result.report)} layers are not pruned yet"
        raise invalid_argument(argument, got, expected, fix)
    if result.interrupted or result.manifest.get("complete") is False:
        raise invalid_argument(argument, "a result whose run was interrupted before its end", expected, fix)
    if not len(result.masks):
        raise invalid_argument(argument, "a result without a pruned layer", "one with zeros to ship")
    return result


def check_file_target(path: str | Path, endings: tuple[str, ...], overwrite: bool, argument: str = "path") -> Path:
    """Return the path of a file that can be written; nothing is left behind by the trial.

    Args:
        path: of a new file, or one to replace.
        endings: one of which its name must have.
        overwrite: whether a file that is there may be replaced.
        argument: what the caller calls it, for messages.

    Raises:
        SnowsError: where it cannot be.
    """
    path = as_path(argument, path, "the path of a file")
    if path.suffix not in endings:
        raise invalid_argument(argument, f"'{path}'", f"a file that ends in {' or '.join(endings)}")
    try:
        if path.is_dir():
            raise invalid_argument(argument, f"the folder {path}", "a file")
        if path.exists() and not overwrite:
            fix = "Choose another name, or pass overwrite=True."
            raise invalid_argument(argument, f"{path}, which is there already", "a new file", fix)
        try_to_write(path.parent)
    except OSError as error:
        got = f"{str(path)[:200]}, which cannot be written ({error.strerror or error})"
        raise invalid_argument(argument, got, "a file that can be made", "Choose another place.") from error
    return path


def in_type(result: PruneResult, dtype: str | None) -> tuple[PruneResult, dict[str, int]]:
    """Return a result whose floating-point tensors are of one type, and where values became zero by that.

    Args:
        result: any.
        dtype: a name of ``DTYPES``, or None for each tensor's own type.

    Returns:
        A result that shares nothing with the first but its report and record, without a model; and tensor name to how
        many values became zero.

    Raises:
        SnowsError: on another type, or values that are too large for it.
    """
    if dtype is not None and dtype not in DTYPES:
        raise invalid_argument("dtype", shown(dtype), f"one of {list(DTYPES)}, or None for the weights' own types")
    state, underflows = unshared(result.state), dict[str, int]()
    for name, value in state.items() if dtype is not None else ():
        if not value.is_floating_point():
            continue
        cast = state[name] = value.to(DTYPES[str(dtype)])
        if bool((torch.isinf(cast) & ~torch.isinf(value)).any()):
            largest = float(value.abs().max())
            fix = "Leave it out, or take bfloat16, whose range is that of float32."
            raise invalid_argument(
                "dtype", f"{dtype}, which cannot hold {largest:.3g} in '{name}'", "a wider type", fix
            )
        if lost := int(((cast == 0) & (value != 0)).sum()):
            underflows[name] = lost
    return replace(result, model=None, state=state), underflows


def underflow_words(underflows: dict[str, int], dtype: str | None) -> str:
    """Return how many values (``underflows`` by tensor) became zero by a ``dtype``, in words.

    >>> underflow_words({"fc.weight": 3, "fc.bias": 1}, "float16")
    "4 values of 2 tensors are too small for float16 and became zero, most of them in 'fc.weight'"
    """
    count, most = sum(underflows.values()), max(underflows, key=lambda name: underflows[name])
    values = "1 value" if count == 1 else f"{count:,} values"
    tensors = "1 tensor" if len(underflows) == 1 else f"{len(underflows)} tensors"
    became = "is too small for" if count == 1 else "are too small for"
    return f"{values} of {tensors} {became} {dtype} and became zero, most of them in '{most}'"


def summary_of(
    result: PruneResult, path: Path, format: str, dtype: str | None, underflows: dict[str, int]
) -> ExportedWeights:
    """Return what was written of a ``result`` to a ``path``, in ``format`` and ``dtype``, with its ``underflows``."""
    pruned = [result.state[result.weight_names[layer]] for layer in result.masks]
    zeros = sum(int((weight == 0).sum()) for weight in pruned)
    weights = sum(weight.numel() for weight in pruned)
    return ExportedWeights(path, format, dtype or "", len(result.state), zeros, weights, underflows)


def write_safetensors(result: PruneResult, path: Path) -> None:
    """Write the state of a ``result`` from :func:`in_type` to ``path``, with what it promises as metadata."""
    metadata = {
        "format": "pt",
        METADATA_KEY: json.dumps(promise_of(result)),
    }  # "format" is what readers of others ask for
    _written(lambda: save_file(result.state, path, metadata))


def write_state_dict(result: PruneResult, path: Path) -> None:
    """Write the state of a ``result`` from :func:`in_type` to ``path`` as ``torch.save`` does a model's state dict."""
    state: OrderedDict[str, Tensor] = OrderedDict(result.state)
    state._metadata = OrderedDict({"": {METADATA_KEY: json.dumps(promise_of(result))}})  # type: ignore[attr-defined] # PyTorch gives each state dict this attribute
    _written(lambda: torch.save(state, path))


def _written(write: Callable[[], Any]) -> None:
    """Let a library write a file; a full disk is an OSError, whatever the library makes of it."""
    try:
        write()
    except OSError:
        raise
    except Exception as error:  # of safetensors, or PyTorch's zip writer
        raise cannot_go_on("path", f"a place that cannot be written ({error})", "enough space on the disk") from error
