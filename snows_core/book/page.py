"""What a notebook of the book needs: where its figures go, and metrics with the record of what made them."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from snows_core.book.contents import Recorded
from snows_core.book.files_shown import CHECKOUT, shown_file
from snows_core.book.schemas import by_schema
from snows_core.devices import peak_memory
from snows_core.errors import SnowsError, invalid_argument
from snows_core.files import write_text, write_whole
from snows_core.files.bounded import read_json
from snows_core.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_PROFILE = "digits"
FIGURES_VARIABLE = "SNOWS_FIGURES"


def figures_root() -> Path:
    """Return the folder of all figures: ``SNOWS_FIGURES``, or ``figures/`` of the checkout, or of this folder."""
    if os.environ.get(FIGURES_VARIABLE):
        return Path(os.environ[FIGURES_VARIABLE]).expanduser().resolve()
    return (CHECKOUT if (CHECKOUT / "notebooks").is_dir() else Path.cwd()) / "figures"


def figure_dir(stem: str, profile: str = DEFAULT_PROFILE, root: Path | None = None) -> Path:
    """Return where a notebook's figures and metrics.json stand; the folder need not exist.

    It is ``figures/<stem>`` for the default profile and ``figures/<stem>/<profile>`` for another.

    Args:
        stem: the notebook's file name without ``.ipynb``.
        profile: its profile.
        root: the folder of all figures; default ``figures_root()``.

    Returns:
        The folder.

    >>> figure_dir("03_cifar_resnet20", "cifar", Path("figures")).as_posix()
    'figures/03_cifar_resnet20/cifar'
    """
    folder = (figures_root() if root is None else root) / stem
    return folder if profile == DEFAULT_PROFILE else folder / profile


class NotebookOutputs:
    """One run of one notebook: collects its figures, then its metrics.

    Args:
        stem: the notebook's file name without ``.ipynb``.
        profile: what its parameter ``profile`` says.

    Attributes:
        folder: where everything is written.
        figures: file names of the figures saved so far.
    """

    def __init__(self, stem: str, profile: str = DEFAULT_PROFILE) -> None:
        for argument, value in (("stem", stem), ("profile", profile)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", value):
                raise invalid_argument(argument, repr(value), "letters, digits, '_', '-' and '.'")
        self.stem, self.profile = stem, profile
        self.folder = figure_dir(stem, profile)
        self.figures: list[str] = []

    def save_figure(self, figure: Figure, name: str) -> Figure:
        """Write a figure as ``<name>.png``; the file has no time in it, so equal figures are equal files.

        Args:
            figure: the figure; it stays open, and shows itself as the cell's output where it comes last.
            name: file name without ``.png``: letters, digits, ``-`` and ``_``.

        Returns:
            The same figure.

        Raises:
            SnowsError: on a name that is no file name, or one used twice.
        """
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
            raise invalid_argument("name", repr(name), "letters, digits, '-' and '_'", "The ending .png is added.")
        if f"{name}.png" in self.figures:
            raise invalid_argument("name", repr(name), "a name not used before in this notebook")
        write_whole(self.folder / f"{name}.png", lambda path: figure.savefig(path, metadata={"Software": None}))
        self.figures.append(f"{name}.png")
        return figure

    def save_metrics(
        self,
        metrics: Mapping[str, float],
        *,
        seed: int,
        device: torch.device | str = "cpu",
        calibration: Iterable[int] | None = None,
        tables: Mapping[str, pd.DataFrame] | None = None,
        **more: Any,
    ) -> pd.DataFrame:
        """Write metrics.json: the numbers, the list of figures, and provenance; whole or not at all.

        Args:
            metrics: name to number; the names that ``figures/expected.yaml`` uses.
            seed: that chose the calibration images.
            device: where the notebook computed.
            calibration: positions of the calibration images in the training split.
            tables: further tables that the figures show, kept row by row.
            **more: for the provenance, JSON-serialisable.

        Returns:
            The metrics as a table, to end the notebook with.

        Raises:
            SnowsError: on a metric that is no finite number.
        """
        clean = {name: _finite(name, value) for name, value in metrics.items()}
        record = {
            "notebook": self.stem,
            "profile": self.profile,
            "metrics": clean,
            "figures": self.figures,
            "tables": {name: json.loads(table.to_json(orient="records")) for name, table in (tables or {}).items()},
            "provenance": provenance(
                profile=self.profile,
                seed=seed,
                device=_device_name(torch.device(device)),
                calibration=None if calibration is None else [int(i) for i in calibration],
                peak_memory_mb=round(peak_memory(torch.device("cpu")) / 1e6) or None,  # of this process; None: unknown
                **more,
            ),
        }
        text = _compact(json.dumps(record, indent=2, default=_plain, allow_nan=False)) + "\n"
        write_text(self.folder / "metrics.json", text)
        return pd.DataFrame({"value": clean}).rename_axis("metric")

    def recorded(self, profile: str) -> dict[str, float]:
        """Return the metrics that the repository holds of this notebook at some profile.

        Args:
            profile: for instance "cifar".

        Returns:
            Name to number; empty where there is no record, as without a checkout.
        """
        found = self._record(profile)
        return found.metrics if found else {}

    def recorded_when(self, profile: str) -> str:
        """Say which run of some profile the repository holds, for a sentence with its numbers.

        Args:
            profile: for instance "cifar".

        Returns:
            "profile cifar, 256 calibration images, 2026-11-25, commit 758ffba"; what is not recorded is left out, and
            empty where there is no record.
        """
        found = self._record(profile)
        if found is None:
            return ""
        made = found.provenance
        images = f"{len(made['calibration']):,} calibration images" if made.get("calibration") else ""
        commit = f"commit {made['commit'][:7]}" if made.get("commit") else ""
        parts = (f"profile {profile}", images, str(made.get("time", ""))[:10], commit)
        return ", ".join(part for part in parts if part)

    def _record(self, profile: str) -> Recorded | None:
        path = figure_dir(self.stem, profile, CHECKOUT / "figures") / "metrics.json"
        if not path.is_file():
            return None
        return by_schema(read_json(path), Recorded, str(path), "what save_metrics writes")

    def show_expected(self, name: str) -> None:
        """Show the picture that an exercise should end in; ``tools/exercise_pictures.py`` takes it from the solution.

        Args:
            name: for instance "exercise-1".
        """
        shown_file(f"figures/exercises/{self.stem}/{name}.png")


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _finite(name: str, value: Any) -> float | int | bool:
    value = _plain(value)
    if not isinstance(value, bool | int | float) or not math.isfinite(value):
        raise invalid_argument(
            f"metrics['{name}']", value, "a finite number", "Put series and texts into tables= or **more."
        )
    return value


def _plain(value: Any) -> Any:
    """Turn what NumPy and PyTorch return for one number or a short list into what JSON knows."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic | np.ndarray):
        return value.item() if value.size == 1 else value.tolist()
    if isinstance(value, str | bool | int | float | None | list | dict):
        return value
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    raise SnowsError(f"metrics: got {type(value).__name__}; expected numbers, texts, lists or dictionaries of them.")


def _compact(text: str) -> str:
    """Put lists of numbers, and rows of tables, on one line each."""

    def one_line(found: re.Match[str]) -> str:
        return f"{found[1]}{' '.join(found[2].split())}{found[3]}"

    def row(found: re.Match[str]) -> str:
        return re.sub(r"\n\s*", " ", found[0]).strip()

    text = re.sub(r"(\[)([-+\d.,\seE]*)(\])", one_line, text)
    return re.sub(r"(?<=[\[,])\n\s*\{[^{}\[\]]*\}", lambda found: f"\n{row(found)}", text)  # no text has a line end
