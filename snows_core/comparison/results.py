"""What a comparison found: a row a cell, the figures of each image, and which cells these images tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from snows_core.comparison.cells import Cell
from snows_core.comparison.judge import Values
from snows_core.comparison.pairs import compare_pair

DONE, CRASHED, MISFIT, NOT_RUN = "done", "crashed", "not applicable", "not run"
JUDGED_BY = ("accuracy", "agreement", "cosine")  # the first that there is decides which cell is the best
PERCENT = ("accuracy", "agreement")
FIGURES = ("sparsity", "loss", "image_products", "mask_seconds", "seconds")
COLUMNS = (
    *("pattern", "mask", "update", "status", "accuracy", "agreement", "cosine", "kl"),
    *("best", "difference", "interval", "tie", "kl_best", "kl_difference", "kl_interval", "kl_tie"),
    *FIGURES,
    "reason",
)


@dataclass(frozen=True)
class Row:
    """What became of a cell.

    Attributes:
        status: "done", "crashed", "not applicable" or "not run".
        reason: why it is not done, one sentence.
        figures: see :class:`snows_core.comparison.runs.Pruned`.
        values: figures of each test image, (N,) each.
        trace: of the error, where it crashed.
    """

    status: str = NOT_RUN
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    trace: str = ""


@dataclass
class Comparison:
    """A grid of cells and what became of them.

    Attributes:
        rows: cell to its row, in the order of the grid.
        record: JSON-ready: configuration, dense (its accuracy in percent), runs (provenance of each call).
    """

    rows: dict[Cell, Row]
    record: dict[str, Any]

    @property
    def complete(self) -> bool:
        """False when it was interrupted before the last cell."""
        return all(row.status != NOT_RUN for row in self.rows.values())

    @property
    def crashed(self) -> list[Cell]:
        """The cells that ended with an error."""
        return [cell for cell, row in self.rows.items() if row.status == CRASHED]

    @property
    def table(self) -> pd.DataFrame:
        """One row a cell, in the order of the grid.

        Columns: pattern, mask, update, status; accuracy and agreement in percent, kl in nats, or cosine, all of one set
        of test images; best (the cell of its pattern with most right answers; without labels most that agree, of
        features the largest cosine), difference to it, interval (half of the paired one of 95 %) and tie (whether
        these images do not tell the cell and the best one apart, :mod:`snows_core.comparison.pairs`); kl_best and so
        on likewise for the lowest KL; sparsity, loss (K-step, a sum over layers), image_products, mask_seconds and
        seconds; reason, where a cell is not done.
        """
        rows = []
        marks = {cell: mark for pattern in self._by_pattern() for cell, mark in _marked(pattern).items()}
        for cell, row in self.rows.items():
            means = {name: _mean(name, values) for name, values in row.values.items()}
            rows.append(
                {**vars(cell), "status": row.status, "reason": row.reason, **row.figures, **means, **marks[cell]}
            )
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        for name in ("best", "tie", "kl_best", "kl_tie"):
            frame[name] = frame[name].astype("boolean")
        optional = [name for name in ("accuracy", "agreement", "cosine", "kl") if frame[name].isna().all()]
        return frame.drop(columns=optional)

    def _by_pattern(self) -> list[dict[Cell, Row]]:
        patterns = dict.fromkeys(cell.pattern for cell in self.rows)
        return [{cell: row for cell, row in self.rows.items() if cell.pattern == pattern} for pattern in patterns]


def judged_by(row: Row) -> str:
    """Return the figure that decides which cell is the best."""
    return next(name for name in JUDGED_BY if name in row.values)


def _scale(name: str) -> float:
    return 100.0 if name in PERCENT else 1.0


def _mean(name: str, values: Any) -> float:
    return _scale(name) * float(values.mean())


def _marked(rows: Mapping[Cell, Row]) -> dict[Cell, dict[str, Any]]:
    """Return best, difference, interval and tie of each cell of a pattern, by the first figure and by KL."""
    marks: dict[Cell, dict[str, Any]] = {cell: {} for cell in rows}
    done = {cell: row for cell, row in rows.items() if row.status == DONE}
    if not done:
        return marks
    first = judged_by(next(iter(done.values())))
    for name, prefix, sign in ((first, "", 1), ("kl", "kl_", -1)):
        if any(name not in row.values for row in done.values()):
            continue
        places = {cell: sign * float(row.values[name].mean()) for cell, row in done.items()}
        top = max(places.values())
        equal = [cell for cell in places if places[cell] == top]
        best = min(equal, key=lambda cell: float(done[cell].values["kl"].mean()) if "kl" in done[cell].values else 0.0)
        for cell, row in done.items():
            pair = compare_pair(row.values[name], done[best].values[name])
            marks[cell] |= {
                f"{prefix}best": cell == best,
                f"{prefix}difference": _scale(name) * pair.difference,
                f"{prefix}interval": _scale(name) * pair.interval,
                f"{prefix}tie": pair.tie and cell != best,
            }
    return marks
