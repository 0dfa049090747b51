"""What pruning gives back: a plain model, its masks, a report per layer, and a folder that holds them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from snows_core.distributed import is_main
from snows_core.errors import SnowsError, cannot_go_on, invalid_argument, switch
from snows_core.files import as_path, contents, fill_folder, is_file, recover, try_to_write
from snows_core.files.bounded import MANIFEST_BYTES, read_json
from snows_core.network.fitting import load_weights, zero_by_masks
from snows_core.network.saved_files import Saved, read_saved
from snows_core.tables import result_summary

if TYPE_CHECKING:
    import pandas as pd

_FILES = ("model.safetensors", "masks.safetensors", "manifest.json", "report.csv")
_SEAL = "manifest.json"
CHECKPOINT = "checkpoint"
"""Folder that may lie in the folder of a result: what its run has kept."""
_PENDING = "pending.safetensors"  # there after an interruption between two stages alone
_WORDS = {  # of what must be the same when a run goes on
    "weights": "dense weights",
    "calibration": "calibration images",
    "stages": "schedule of stages",
    "stage_k": "K between stages",
}


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
    def interrupted(self) -> bool:
        """Whether Ctrl-C or a batch system ended the run before its end, the joint stage included."""
        refinement = self.manifest.get("refinement") or {}
        return not self.complete or bool(refinement.get("interrupted"))

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
        fill_folder(folder, self._write, _SEAL)
        return folder

    def _write(self, folder: Path) -> None:
        save_file(unshared(self.state), folder / "model.safetensors")
        save_file(unshared(self.masks), folder / "masks.safetensors")
        if self.pending:
            save_file(unshared(self.pending), folder / _PENDING)
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
    manifest = {**resume.manifest, "weight_names": resume.weight_names} if isinstance(resume.manifest, dict) else {}
    if fault := Saved(manifest, resume.state, resume.masks, resume.report, resume.pending).fault(whole=True):
        raise invalid_argument("resume", f"a result whose {fault}", expected)
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


def unshared(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copy tensors of a ``state`` to contiguous memory of their own: safetensors refuses parameters that share it."""
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
    folder, overwrite = as_path("folder", folder, "the path of a folder"), switch("overwrite", overwrite)
    try:
        if folder.exists() and not folder.is_dir():
            raise invalid_argument("folder", f"the file {folder}", "a folder")
        held = contents(folder) if folder.is_dir() else []
        held = [name for name in held if name != CHECKPOINT]
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
        recover(folder, _SEAL)
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


def is_interrupted(folder: str | Path) -> bool:
    """Tell whether a folder holds an interrupted result, which the run that goes on may replace."""
    try:
        manifest = read_json(Path(folder) / _SEAL, MANIFEST_BYTES)
        refinement = manifest.get("refinement") or {}
        return manifest.get("complete") is False or refinement.get("interrupted") is True
    except (OSError, ValueError, AttributeError):
        return False


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
    folder = as_path("folder", folder, "the path of a folder written by result.save()")
    missing = [name for name in _FILES if not is_file(folder / name)]
    if missing:
        raise invalid_argument("folder", f"{folder} without {', '.join(missing)}", "a folder written by result.save()")
    saved = read_saved(*(folder / name for name in (*_FILES, _PENDING)))
    if fault := saved.fault():
        raise cannot_go_on("folder", f"{folder}, whose {fault}", "what result.save() wrote", "Save it again.")
    names = saved.manifest.pop("weight_names")
    if model is not None:
        load_weights(model, saved.state)
    return PruneResult(model, saved.masks, saved.report, saved.manifest, saved.state, names, saved.pending)


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
