"""The files of a saved result: read without running code, and seen to belong together before anybody uses them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from snows_core.errors import cannot_go_on, reason_of
from snows_core.files import is_file
from snows_core.files.bounded import MANIFEST_BYTES, check_file, read_json
from snows_core.masks.mask_values import read_mask

if TYPE_CHECKING:
    import pandas as pd

TEXTS = ("layer", "kind", "shape", "status", "reason", "stop")
"""Columns of a report that are never numbers."""
COUNTS = ("weights", "kept")
"""Columns of whole numbers that every report has."""
STATISTICS = ("k", "loss_masked", "loss_start", "loss_end", "newton_steps", "products", "image_products", "seconds")
"""Columns of what a solve reached; a run that goes on takes them over."""
_COLUMNS = ("layer", "kind", "shape", *COUNTS, "sparsity", "status", "reason", "k", "loss_end", "stop")
_STATUS = ("pruned", "skipped", "not reached")
_KINDS: dict[str, tuple[type, ...]] = {  # entries of a manifest that others read, where they are there
    "pattern": (str,),
    "stage_records": (list, tuple),
    "calibration": (dict,),
    "recipe": (dict, str),
    "refinement": (dict,),
    "permutations": (list, tuple),
}


@dataclass
class Saved:
    """What a saved result holds.

    Attributes:
        manifest: its record, with ``weight_names``, layer name to parameter name.
        state: the tensors of the model's state dict.
        masks: layer name to bool tensor.
        report: one row a layer.
        pending: masks of layers that were not reached.
    """

    manifest: dict[str, Any]
    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    report: pd.DataFrame
    pending: dict[str, Tensor]

    def fault(self, whole: bool = False) -> str:
        """Return what is wrong with it, to stand behind "whose"; an empty text where nothing is.

        Args:
            whole: whether all columns must be there that a run which goes on takes over.
        """
        import pandas as pd

        if not isinstance(self.manifest, dict) or not isinstance(self.report, pd.DataFrame):
            return "manifest or report is none"
        for held in (self.state, self.masks, self.pending):
            if not isinstance(held, Mapping) or not all(isinstance(value, Tensor) for value in held.values()):
                return "weights or masks are no tensors by name"
        fault = self.fault_of_records(whole)
        return fault or next(filter(None, map(self._fault_of_layer, self.masks)), "") or self._fault_of_state()

    def fault_of_records(self, whole: bool = False) -> str:
        """Return what is wrong with manifest and report alone, whatever weights and masks are, as :meth:`fault` does.

        Args:
            whole: see there.
        """
        return self._fault_of_manifest() or self._fault_of_report(_COLUMNS + STATISTICS if whole else _COLUMNS)

    def _fault_of_manifest(self) -> str:
        names = self.manifest.get("weight_names")
        if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
            return "manifest has no weight_names"
        if "pattern" not in self.manifest:
            return "manifest has no pattern"
        for key, kinds in _KINDS.items():
            if not isinstance(self.manifest.get(key), (*kinds, type(None))):
                return f"manifest has a {type(self.manifest[key]).__name__} under '{key}'"
        for record in self.manifest.get("stage_records") or ():
            if not isinstance(record, dict) or not isinstance(record.get("layers"), int):
                return "manifest has stage_records that are none"
        return ""

    def _fault_of_report(self, columns: tuple[str, ...]) -> str:
        import pandas as pd

        report = self.report
        if lost := [name for name in columns if name not in report.columns]:
            return f"report has no column '{lost[0]}'"
        for name in report.columns.intersection(("sparsity", "stage", *STATISTICS)):
            if not pd.api.types.is_numeric_dtype(report[name]) and not report[name].isna().all():
                return f"report has texts in its column '{name}'"
        if not all(pd.api.types.is_integer_dtype(report[name]) for name in COUNTS):
            return f"report has columns {', '.join(COUNTS)} that are no numbers of weights"
        if report["layer"].duplicated().any():
            return f"report has two rows of '{report['layer'][report['layer'].duplicated()].iloc[0]}'"
        if odd := sorted(set(report["status"]) - set(_STATUS)):
            return f"report has the status '{odd[0]}'"
        if ((report["kept"] < 0) | (report["kept"] > report["weights"])).any():
            return "report has layers that keep more weights than they have, or less than none"
        return ""

    def _fault_of_layer(self, name: str) -> str:
        """Return what does not fit together at a layer with a mask."""
        rows = self.report[self.report["layer"] == name]
        if rows.empty:
            return f"report lacks '{name}'"
        mask, weight = self.masks[name], self.state.get(self.manifest["weight_names"].get(name, ""))
        if weight is None or weight.shape != mask.shape or mask.dtype != torch.bool:
            return f"mask of '{name}' fits no weight"
        if not weight.is_floating_point():
            return f"weight of '{name}' is of {weight.dtype}"
        if not bool(torch.isfinite(weight).all()):
            return f"weight of '{name}' has NaN or infinite values"
        if int(rows["kept"].iloc[0]) != int(mask.sum()) or int(rows["weights"].iloc[0]) != math.prod(mask.shape):
            return f"report counts other weights of '{name}' than its mask keeps"
        if bool((weight[~mask.to(weight.device)] != 0).any()):
            return f"weight of '{name}' is not zero where its mask is"
        return ""

    def _fault_of_state(self) -> str:
        pruned = self.report.loc[self.report["status"] == "pruned", "layer"]
        if lost := [name for name in pruned if name not in self.masks]:
            return f"masks lack that of '{lost[0]}'"
        for name, value in self.state.items():
            if (value.is_floating_point() or value.is_complex()) and bool(torch.isnan(value).any()):
                return f"tensor '{name}' has NaN values"
        return ""


def read_saved(model: Path, masks: Path, manifest: Path, report: Path, pending: Path) -> Saved:
    """Read the files of a saved result.

    Args:
        model: the weights, a file of safetensors.
        masks: likewise.
        manifest: JSON.
        report: CSV.
        pending: masks of layers that were not reached; it may be missing.

    Returns:
        What is in them.

    Raises:
        SnowsError: on a damaged file.
    """
    return Saved(
        _read(manifest, _read_manifest),
        _read(model, load_file),
        _read(masks, _read_masks),
        _read(report, _read_report),
        _read(pending, _read_masks) if is_file(pending) else {},
    )


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(check_file(path, MANIFEST_BYTES if path.suffix in (".json", ".csv") else None))
    except Exception as error:  # whatever a library makes of a file that is not what it seems
        got = f"a damaged file {path} ({' '.join(str(error).split())[:200] or reason_of(error)})"
        raise cannot_go_on("folder", got, "what result.save() wrote", "Save it again.") from error


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = read_json(path)
    if not isinstance(manifest, dict):
        raise ValueError("no record in it")
    return manifest


def _read_masks(path: Path) -> dict[str, Tensor]:
    return {name: read_mask(name, mask) for name, mask in load_file(path).items()}


def _read_report(path: Path) -> pd.DataFrame:
    """Read a report so that texts stay texts, whatever they look like: a layer may be called '0.10', 'nan' or ''."""
    import pandas as pd

    report = pd.read_csv(path, encoding="utf-8", dtype=str, keep_default_na=False, na_filter=False)
    for name in report.columns.difference(TEXTS):
        report[name] = _numbers(report[name])
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
