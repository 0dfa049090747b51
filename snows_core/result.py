"""What pruning gives back: a plain model, its masks, a report per layer, and a folder that holds them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snows_core.distributed import is_main
from snows_core.errors import SnowsError, invalid_argument
from snows_core.files import contents, fill_folder, try_to_write
from snows_core.masks.given import read_mask
from snows_core.network.fitting import load_weights, zero_by_masks
from snows_core.tables import result_summary

if TYPE_CHECKING:
    import pandas as pd

_FILES = ("model.safetensors", "masks.safetensors", "manifest.json", "report.csv")
_PENDING = "pending.safetensors"  # there after an interruption between two stages alone
_TEXTS = ("layer", "kind", "shape", "status", "reason", "stop")  # columns of the report that are never numbers
_WORDS = {  # of what must be the same when a run goes on
    "weights": "dense weights",
    "calibration": "calibration images",
    "stages": "schedule of stages",
    "stage_k": "K between stages",
}
_COUNTS = ("weights", "kept")  # columns of whole numbers that every report has


@dataclass(repr=False)
class PruneResult:
    """A pruned network and how it came about.

    Attributes:
        model: plain module of the caller's class with zeros in place; None when loaded without a model.
        masks: layer name to bool tensor of the weight's shape, True = kept.
        report: one row per layer (see :func:`snows_core.prune.prune`).
        manifest: JSON-ready record: pattern, recipe, calibration, versions, commit, device.
        state: the tensors of the model's state dict, pruned.
        weight_names: layer name to parameter name.
        pending: after an interruption between two stages, the masks that the layers not reached were to get next.
    """

    model: nn.Module | None
    masks: dict[str, Tensor]
    report: pd.DataFrame
    manifest: dict[str, Any]
    state: dict[str, Tensor] = field(default_factory=dict)
    weight_names: dict[str, str] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        return result_summary(self.report, self.manifest, self.model)

    @property
    def module(self) -> nn.Module:
        """The pruned model.

        Raises:
            SnowsError: where the result was loaded without one.
        """
        if self.model is None:
            fix = "For instance snows.load(folder, model)."
            raise invalid_argument("result", "one that was loaded without a model", "one with a model", fix)
        return self.model

    @property
    def complete(self) -> bool:
        """False when the run was interrupted before the last layer."""
        return not (self.report["status"] == "not reached").any()

    @property
    def stage(self) -> int:
        """The number of the last stage begun."""
        return max(1, len(self.manifest.get("stage_records", ())))

    @property
    def solved(self) -> set[str]:
        """Names of the layers that are solved in that stage."""
        records = self.manifest.get("stage_records")
        begun = not records or records[-1]["layers"] > 0
        return self.masks.keys() - self.pending.keys() if begun else set()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights of the pruned layers."""
        pruned = self.report[self.report["status"] == "pruned"]
        return float(1 - pruned["kept"].sum() / pruned["weights"].sum()) if len(pruned) else 0.0

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write weights, masks, manifest and report into a folder, all or nothing; of several processes the first does.

        Args:
            folder: new or empty; loads with ``snows.load`` or a plain ``load_state_dict`` of model.safetensors.
            overwrite: replace an existing result.

        Returns:
            The folder.

        Raises:
            SnowsError: when the folder cannot be written, or holds something already and ``overwrite`` is False.
        """
        if not is_main():  # of several processes the first one writes
            return Path(folder)
        check_target(folder, overwrite)
        folder = Path(folder)
        fill_folder(folder, self._write, seal="manifest.json")
        return folder

    def _write(self, folder: Path) -> None:
        save_file(_unshared(self.state), folder / "model.safetensors")
        save_file(_unshared(self.masks), folder / "masks.safetensors")
        if self.pending:
            save_file(_unshared(self.pending), folder / _PENDING)
        manifest = {**self.manifest, "weight_names": self.weight_names}
        text = json.dumps(manifest, indent=2, default=_json_value) + "\n"
        (folder / "manifest.json").write_text(text, encoding="utf-8")
        self.report.to_csv(folder / "report.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)  # texts are seen as such


def check_resume(resume: PruneResult, record: Mapping[str, Any], masks: Mapping[str, Tensor] | None) -> None:
    """Refuse to go on from a result in a run that would not have begun it.

    Args:
        resume: the result.
        record: entries of the run's manifest that must be the same.
        masks: its masks by layer name; None where they are chosen during the run, and come with the result.

    Raises:
        SnowsError: on something else than a result, and on the first difference.
    """
    expected = "an interrupted result of the same call"
    if not isinstance(resume, PruneResult):
        raise invalid_argument("resume", type(resume).__name__, expected, "snows.load(folder) reads a saved one.")
    for key, value in json.loads(json.dumps(record)).items():
        known = json.loads(json.dumps(resume.manifest.get(key)))
        if isinstance(value, dict) and isinstance(known, dict):  # a saved record may say more, of where images are from
            known = {name: known.get(name) for name in value}
        if known != value:
            words = _WORDS.get(key, key)
            raise invalid_argument("resume", f"a result with another {words}", expected)
    for name, mask in ({} if masks is None else resume.masks).items():
        if masks is None or name not in masks or not torch.equal(masks[name].cpu(), mask.cpu()):
            raise invalid_argument("resume", f"a result with another mask for '{name}'", expected)


def _json_value(value: Any) -> Any:
    """Say scalars of NumPy and PyTorch as numbers, arrays as lists and anything else as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _unshared(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy tensors to contiguous memory of their own: safetensors refuses parameters that share storage."""
    return {  # what is no tensor (extra state of modules) is left out: only a pickle could hold it
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def check_target(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder that holds something or cannot be written, before any work is done for it.

    The folder is really made, with a file in it, and taken away again.

    Args:
        folder: where a result is to be saved.
        overwrite: whether a result that is there may be replaced.

    Raises:
        SnowsError: when it is a file, cannot be made or written into, holds other things than a result, or holds a
            result without ``overwrite``.
    """
    try:
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise invalid_argument("folder", f"the file {folder}", "a folder")
        held = contents(folder) if folder.is_dir() else []
        if any(name not in (*_FILES, _PENDING) for name in held):
            raise invalid_argument(
                "folder", f"{folder}, which holds other files", "a new or empty folder", "Choose another name."
            )
        if held and not overwrite:
            raise invalid_argument(
                "folder",
                f"{folder}, which holds a result already",
                "a new or empty folder",
                "Choose another name, or pass overwrite=True.",
            )
        try_to_write(folder)
    except SnowsError:
        raise
    except (OSError, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise invalid_argument(
            "folder",
            f"{str(folder)[:200]!r}, which cannot be written ({reason})",
            "a folder that can be made",
            "Choose another place.",
        ) from error


def load(folder: str | Path, model: nn.Module | None = None) -> PruneResult:
    """Read a saved result. The files hold tensors, numbers and text alone: reading them runs no code of theirs.

    Args:
        folder: what :meth:`PruneResult.save` wrote.
        model: a network of the same architecture; it receives the weights, in its own types, and becomes
            ``result.model``. When it is refused, it is as it was.

    Returns:
        The result; ``result.model`` is None without a model, the weights are in ``result.state``.

    Raises:
        SnowsError: when a file is missing or damaged, or the weights do not fit the model.
    """
    if not isinstance(folder, str | os.PathLike):
        raise invalid_argument("folder", f"a {type(folder).__name__}", "the path of a folder written by result.save()")
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise invalid_argument("folder", f"{folder} without {', '.join(missing)}", "a folder written by result.save()")
    manifest = _read(folder / "manifest.json", _read_manifest)
    state = _read(folder / "model.safetensors", load_file)
    masks = _read(folder / "masks.safetensors", _read_masks)
    pending = _read(folder / _PENDING, _read_masks) if (folder / _PENDING).is_file() else {}
    report = _read(folder / "report.csv", _read_report)
    names = manifest.pop("weight_names")
    if rows := sorted(set(masks) - set(report["layer"])):
        raise invalid_argument("folder", f"{folder}, whose report lacks '{rows[0]}'", "what result.save() wrote")
    for name, mask in masks.items():
        weight = state.get(names.get(name, ""))
        if weight is None or weight.shape != mask.shape:
            raise invalid_argument(
                "folder", f"{folder}, whose mask of '{name}' fits no weight", "what result.save() wrote"
            )
        if model is not None and not torch.isfinite(weight).all():
            raise invalid_argument(
                "folder", f"{folder}, whose weight of '{name}' has NaN or infinite values", "finite weights"
            )
    if model is not None:
        load_weights(model, state)
    return PruneResult(model, masks, report, manifest, state, names, pending)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except Exception as error:  # whatever a library makes of a file that is not what it seems
        got = f"a damaged file {path} ({' '.join(str(error).split())[:200] or type(error).__name__})"
        raise invalid_argument("folder", got, "what result.save() wrote", "Save it again.") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = json.loads(path.read_text(encoding="utf-8"))
    names = manifest.get("weight_names") if isinstance(manifest, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ValueError("no weight_names in it")
    return manifest


def _read_masks(path: Path) -> dict[str, Tensor]:
    return {name: read_mask(name, mask) for name, mask in load_file(path).items()}


def _read_report(path: Path) -> pd.DataFrame:
    """Read a report so that texts stay texts, whatever they look like: a layer may be called '0.10', 'nan' or ''."""
    import pandas as pd

    report = pd.read_csv(path, encoding="utf-8", dtype=str, keep_default_na=False, na_filter=False)
    lost = sorted({"layer", "status", "reason", *_COUNTS} - set(report.columns))
    if lost:
        raise ValueError(f"no columns {', '.join(lost)}")
    for name in report.columns.difference(_TEXTS):
        report[name] = _numbers(report[name])
    if not all(pd.api.types.is_integer_dtype(report[name]) for name in _COUNTS):
        raise ValueError(f"columns {', '.join(_COUNTS)} that are no numbers of weights")
    return report


def _numbers(column: pd.Series) -> pd.Series:
    """Return a column of texts as whole numbers, or as floats with NaN for empty ones, or else as it is."""
    import pandas as pd

    for read in (int, lambda text: float(text or "nan")):
        try:
            return pd.Series([read(text) for text in column], index=column.index)
        except ValueError:
            continue
    return column


def apply_masks(model: nn.Module, masks: dict[str, Tensor], weight_names: dict[str, str] | None = None) -> nn.Module:
    """Return a copy of a model with weights set to zero where masks are False: pruning without any re-fit.

    Args:
        model: the dense network; not changed. Masks of ``torch.nn.utils.prune`` on it become permanent in the copy.
        masks: layer name (or parameter name, or ``<parameter>_mask``) to a tensor of bool, or of 0 and 1. Prefixes of
            DataParallel and ``torch.compile`` are understood.
        weight_names: layer name to parameter name, where it is not ``<layer>.weight`` or the name itself.

    Returns:
        The copy, with the same types and on the same device.

    Raises:
        SnowsError: on a name or shape that the model does not have, or values that are no mask.
    """
    return zero_by_masks(model, masks, weight_names)
