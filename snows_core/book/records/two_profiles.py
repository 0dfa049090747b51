"""Tables of the present run beside those that another profile's run has left: both sides of a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from snows_core.book.files_shown import CHECKOUT
from snows_core.book.page import DEFAULT_PROFILE, NotebookOutputs, figure_dir
from snows_core.files.bounded import read_json


def short_title(title: str) -> str:
    """Return a title of a panel: what is before the first comma of a longer one, and what is behind the last.

    >>> short_title("ResNet-20 on CIFAR-10, the published dense network, 1:4")
    'ResNet-20 on CIFAR-10, 1:4'
    """
    first, _, rest = title.partition(", ")
    return ", ".join(filter(None, [first, rest.rpartition(", ")[2]]))


class TwoProfiles:
    """This run and the record of another profile.

    The record is the committed ``metrics.json`` of that profile, with its tables. Without a checkout, or where the
    other profile has never been run, there is only this run, and figures have one panel fewer.

    Args:
        page: of this run.
        title: what this run is on, as "ResNet-20 on digits, 1:16"; the record has its own. Both are made short.
        other: the other profile.
        figures: the folder of all committed figures; default that of the checkout.

    Attributes:
        title: of this run.
        tables: those of this run, by name, for ``page.save_metrics(tables=...)``.
        record: the other profile's ``metrics.json``; empty where there is none.
    """

    def __init__(self, page: NotebookOutputs, title: str, other: str, figures: Path | None = None) -> None:
        root = CHECKOUT / "figures" if figures is None else figures
        path = figure_dir(page.stem, other, root) / "metrics.json"
        self.title, self.first = short_title(title), other != DEFAULT_PROFILE
        self.tables: dict[str, pd.DataFrame] = {}
        self.record: Mapping[str, Any] = read_json(path) if path.is_file() else {}

    @property
    def other_title(self) -> str:
        """What the record is on; empty where there is none."""
        return short_title(str(self.provenance.get("title", "")))

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What made the record: commit, versions, seeds, title and so on."""
        return self.record.get("provenance", {})

    def words(self) -> str:
        """Return a sentence that says where the other side of the figures comes from."""
        if not self.other_title:
            return "There is no record of another profile here, so every figure shows this run alone."
        made, seeds = self.provenance, self.provenance.get("seeds", [])
        return (
            f"Figures with two panels show this run ({self.title}) beside the committed record of {self.other_title}: "
            f"profile {self.record['profile']}, {len(made.get('calibration') or [])} calibration images a set, "
            f"{len(seeds)} sets, made on {str(made.get('time', ''))[:10]} by commit {made.get('commit', 'unknown')}."
        )

    def add(self, name: str, table: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Keep a table of this run, and return it beside that of the record.

        Args:
            name: what ``metrics.json`` calls it.
            table: rows of numbers and words; the record keeps no index.

        Returns:
            Tables by title, the default profile's first; one alone where the record has none of that name.
        """
        self.tables[name] = table
        return self._both(table, self._recorded(name))

    def _recorded(self, name: str) -> pd.DataFrame | None:
        found = self.record.get("tables", {}).get(name)
        return pd.DataFrame(found) if found and self.other_title else None

    def _both(self, here: pd.DataFrame, there: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
        if there is None:
            return {self.title: here}
        pairs = [(self.title, here), (self.other_title, there)]
        return dict(pairs if self.first else pairs[::-1])
