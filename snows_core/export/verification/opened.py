"""What can be verified: results, folders, files and networks, opened as weights and what is promised of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from snows_core.errors import cannot_go_on, invalid_argument
from snows_core.export.promise import METADATA_KEY, LayerPromise, Promise, layer_patterns, read_promise
from snows_core.export.verification.stored import StoredWeight, weights_of_state
from snows_core.files import as_path, contents, is_file, read_checkpoint
from snows_core.masks.computed_state import computed_state
from snows_core.network.saved_files import Saved, read_saved
from snows_core.result import PruneResult

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoint files keep weights."""
RESULT = ("model.safetensors", "masks.safetensors", "manifest.json", "report.csv")
"""Files of a saved result."""
WEIGHTS = "model.safetensors"
"""The file of weights in the folder of a result, of a compacted network and of a model hub."""
SOURCES = "a folder of a result, a .safetensors, .pth or .onnx file, a result, a network or its state dict"


@dataclass(frozen=True, eq=False)
class Opened:
    """Something to verify.

    Attributes:
        name: what messages call it.
        weights: of its layers.
        promise: what it says of them; None where it says nothing.
        notes: layer name to why the layer was left dense, where that is known.
        advice: where a promise may be found, if none is in it.
    """

    name: str
    weights: list[StoredWeight]
    promise: Promise | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    advice: str = ""


def open_source(source: Any) -> Opened:
    """Read what is to be verified.

    Args:
        source: see :data:`SOURCES`.

    Returns:
        Its weights, and what is promised of them.

    Raises:
        SnowsError: on anything else, a missing or damaged file, and one without weights of layers.
    """
    if isinstance(source, str | Path):
        return _opened_path(as_path("source", source, SOURCES).expanduser())
    if isinstance(source, PruneResult):
        saved = Saved(
            {**source.manifest, "weight_names": source.weight_names}, source.state, source.masks, source.report, {}
        )
        return _opened_result("the result", saved)
    if isinstance(source, nn.Module):
        return _opened_state(type(source).__name__, computed_state(source))
    if isinstance(source, Mapping):
        return _opened_state("the state dict", source)
    raise invalid_argument("source", f"a {type(source).__name__}", SOURCES)


def _opened_path(path: Path) -> Opened:
    if path.is_dir():
        return _opened_folder(path)
    if not is_file(path):
        raise invalid_argument("source", f"'{path}', which does not exist or is no file", SOURCES, "Check the path.")
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from snows_core.export.verification.onnx_file import read_onnx

        weights, promise = read_onnx(path)
        if not weights:
            raise cannot_go_on("source", f"'{path}', in which no layer reads a weight", "a network in ONNX")
        return Opened(str(path), weights, promise)
    if suffix == ".pt2":
        fix = f"Verify the {WEIGHTS} beside it: a program of torch.export is not opened here."
        raise invalid_argument("source", f"'{path}'", SOURCES, fix)
    return _opened_weights(path)


def _opened_folder(folder: Path) -> Opened:
    """Return the result in a folder, or the weights of a compacted network or a model hub."""
    held = contents(folder)
    if "masks.safetensors" in held or "report.csv" in held or ("manifest.json" in held and "config.json" not in held):
        return result_folder(folder, "source")
    if WEIGHTS in held:
        return _opened_weights(folder / WEIGHTS)
    fix = f"A folder needs a {WEIGHTS}; an ONNX file is named itself."
    raise invalid_argument("source", f"the folder '{folder}', which holds no result and no {WEIGHTS}", SOURCES, fix)


def result_folder(folder: Path, argument: str) -> Opened:
    """Read the folder of a saved result, without asking whether weights and masks belong together.

    Args:
        folder: what :meth:`~snows_core.result.PruneResult.save` wrote.
        argument: of the caller, for messages.

    Returns:
        Its weights, and what its masks and manifest promise.

    Raises:
        SnowsError: when files are missing or damaged.
    """
    if missing := [name for name in RESULT if not is_file(folder / name)]:
        got = f"'{folder}' without {', '.join(missing)}"
        raise invalid_argument(argument, got, "a folder that `snows prune` or result.save() wrote")
    saved = read_saved(*(folder / name for name in (*RESULT, "pending.safetensors")))
    return _opened_result(str(folder), saved)


def _opened_result(name: str, saved: Saved) -> Opened:
    if fault := saved.fault_of_records():
        raise cannot_go_on("source", f"{name}, whose {fault}", "what result.save() wrote", "Save it again.")
    rows = {row["layer"]: row for row in saved.report.to_dict("records")}
    reached = [layer for layer, row in rows.items() if row["status"] == "pruned"]
    names = saved.manifest["weight_names"]
    patterns = layer_patterns(saved.manifest, reached, rows)
    promises = []
    for layer in dict.fromkeys([*reached, *saved.masks]):
        mask, row = saved.masks.get(layer), rows.get(layer)
        pattern = patterns.get(layer, "")
        promises.append(
            LayerPromise(layer, names.get(layer, f"{layer}.weight"), pattern, mask=mask, fault=_fault(mask, row))
        )
    layers = {weight: layer for layer, weight in names.items()}
    notes = {layer: row["reason"] for layer, row in rows.items() if row["status"] != "pruned" and row["reason"]}
    promise = Promise(f"masks and manifest of {name}", str(saved.manifest.get("pattern") or ""), tuple(promises))
    return Opened(name, weights_of_state(saved.state, layers), promise if promises else None, notes)


def _fault(mask: Tensor | None, row: Mapping[Any, Any] | None) -> str:
    """Return what is wrong between a mask and its row in the report."""
    if mask is None:
        return "the report says that it is pruned, and there is no mask of it"
    if row is None:
        return "there is a mask of it, and the report does not name it"
    if mask.dtype != torch.bool:
        return "its mask is not of type bool"
    kept = int(mask.sum())
    return "" if kept == row["kept"] else f"its mask keeps {kept:,} weights, and the report says {row['kept']:,}"


def _opened_weights(path: Path) -> Opened:
    """Return a file of weights, with the promise in its metadata."""
    state = read_checkpoint(path, "source", WRAPPERS)
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
    else:
        text = _text_of(state)
    promise = None if text is None else read_promise(text, str(path))
    beside = all(is_file(path.parent / name) for name in RESULT)
    advice = (
        f"The result in '{path.parent}' has its masks: verify the folder, or the file against it." if beside else ""
    )
    return _opened_state(str(path), state, promise, advice)


def _text_of(state: Any) -> str | None:
    """Return the promise among what PyTorch keeps of its own with a state dict; None where there is none."""
    kept = getattr(state, "_metadata", None)
    kept = kept.get("") if isinstance(kept, Mapping) else None
    text = kept.get(METADATA_KEY) if isinstance(kept, Mapping) else None
    return text if isinstance(text, str) else None


def _opened_state(name: str, state: Any, promise: Promise | None = None, advice: str = "") -> Opened:
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)} if _is_state(state) else {}
    layers = {one.weight: one.layer for one in promise.layers} if promise is not None else {}
    weights = weights_of_state(tensors, layers)
    if not weights and promise is None:
        got, expected = f"{name}, which holds no weight of a layer", "the weights of a network, by name"
        raise cannot_go_on("source", got, expected)
    return Opened(name, weights, promise, advice=advice)


def _is_state(state: Any) -> bool:
    return isinstance(state, Mapping) and all(isinstance(key, str) for key in state)
