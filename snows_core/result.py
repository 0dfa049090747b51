"""What pruning gives back: a plain model, its masks, a report per layer, and a folder that holds them."""

from __future__ import annotations

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snows_core.errors import SnowsError, bad

_FILES = ("model.safetensors", "masks.safetensors", "manifest.json", "report.csv")


@dataclass
class PruneResult:
    """A pruned network and how it came about.

    Attributes:
        model: plain module of the caller's class with zeros in place; None when loaded without a model.
        masks: layer name to bool tensor of the weight's shape, True = kept.
        report: one row per layer (see :func:`snows_core.prune.prune`).
        manifest: JSON-ready record: pattern, recipe, calibration, versions, commit, device.
        state: the model's state dict, pruned.
        weight_names: layer name to parameter name.
    """

    model: nn.Module | None
    masks: dict[str, Tensor]
    report: pd.DataFrame
    manifest: dict[str, Any]
    state: dict[str, Tensor] = field(repr=False, default_factory=dict)
    weight_names: dict[str, str] = field(repr=False, default_factory=dict)

    @property
    def complete(self) -> bool:
        """False when the run was interrupted before the last layer."""
        return not (self.report["status"] == "not reached").any()

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the weights of the pruned layers."""
        pruned = self.report[self.report["status"] == "pruned"]
        return float(1 - pruned["kept"].sum() / pruned["weights"].sum()) if len(pruned) else 0.0

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write weights, masks, manifest and report into a folder, all or nothing.

        Args:
            folder: to be created; loads with ``snows.load`` or a plain ``load_state_dict`` of model.safetensors.
            overwrite: replace an existing result.

        Returns:
            The folder.

        Raises:
            SnowsError: when the folder holds something already and ``overwrite`` is False.
        """
        folder = Path(folder)
        check_target(folder, overwrite)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            new = Path(temporary) / "new"
            new.mkdir()
            save_file(_unshared(self.state), new / "model.safetensors")
            save_file({name: mask.cpu().contiguous() for name, mask in self.masks.items()}, new / "masks.safetensors")
            manifest = {**self.manifest, "weight_names": self.weight_names}
            (new / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
            self.report.to_csv(new / "report.csv", index=False)
            old = Path(temporary) / "old"
            if folder.exists():
                folder.rename(old)
            try:
                new.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        return folder


def check_target(folder: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder that holds something, before any work is done for it.

    Raises:
        SnowsError: when it is a file, holds other things than a result, or holds a result without ``overwrite``.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise bad("folder", f"the file {folder}", "a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if any(entry.name not in _FILES for entry in folder.iterdir()):
            raise bad("folder", f"{folder}, which holds other files", "a new or empty folder", "Choose another name.")
        if not overwrite:
            raise bad("folder", f"{folder}, which holds a result already", "a new or empty folder",
                      "Choose another name, or pass overwrite=True.")  # fmt: skip


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors to contiguous memory of their own: safetensors refuses parameters that share storage."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def load(folder: str | Path, model: nn.Module | None = None) -> PruneResult:
    """Read a saved result.

    Args:
        folder: what :meth:`PruneResult.save` wrote.
        model: a network of the same architecture; it receives the weights and becomes ``result.model``.

    Returns:
        The result; ``result.model`` is None without a model, the weights are in ``result.state``.

    Raises:
        SnowsError: when a file is missing, or the weights do not fit the model.
    """
    folder = Path(folder)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise bad("folder", f"{folder} without {', '.join(missing)}", "a folder written by result.save()")
    manifest = _read(folder / "manifest.json", lambda path: json.loads(path.read_text()))
    state = _read(folder / "model.safetensors", load_file)
    if model is not None:
        try:
            versions = getattr(model.state_dict(), "_metadata", None)  # safetensors cannot hold them
            whole = OrderedDict(state)
            whole._metadata = versions
            model.load_state_dict(whole)
        except RuntimeError as error:
            reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
            raise SnowsError(f"model: got a network that the saved weights do not fit ({reason}); "
                             "expected the architecture that was pruned.") from error  # fmt: skip
    masks = _read(folder / "masks.safetensors", load_file)
    report = _read(folder / "report.csv", pd.read_csv)
    for column in report.select_dtypes(exclude="number").columns:
        report[column] = report[column].fillna("")
    names = manifest.pop("weight_names")
    return PruneResult(model, masks, report, manifest, state, names)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise bad("folder", f"a damaged file {path} ({error})", "what result.save() wrote", "Save it again.") from error


def apply_masks(model: nn.Module, masks: dict[str, Tensor], weight_names: dict[str, str] | None = None) -> nn.Module:
    """Return a copy of a model with weights set to zero where masks are False: pruning without any re-fit.

    Args:
        model: the dense network; not changed.
        masks: layer name (or parameter name) to bool tensor.
        weight_names: layer name to parameter name, where it is not ``<layer>.weight`` or the name itself.

    Raises:
        SnowsError: on a name or shape that the model does not have.
    """
    import copy

    pruned = copy.deepcopy(model)
    parameters = dict(pruned.named_parameters())
    for name, mask in masks.items():
        key = (weight_names or {}).get(name, f"{name}.weight" if f"{name}.weight" in parameters else name)
        if key not in parameters or parameters[key].shape != mask.shape:
            raise bad("masks", f"'{name}' of shape {tuple(mask.shape)}", "names and shapes of this model's weights")
        with torch.no_grad():
            parameters[key].mul_(mask.to(parameters[key].device))
    return pruned
