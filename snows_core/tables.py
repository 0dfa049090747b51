"""Results as text tables for the terminal."""

from __future__ import annotations

from typing import Any

import pandas as pd

from snows_core.evaluate import Metrics


def metrics_frame(dense: Metrics, pruned: Metrics | None = None) -> pd.DataFrame:
    """Return one row a network: accuracy and agreement in percent, KL in nats, and on how many images."""
    rows = {"dense": dense.as_dict()} | ({} if pruned is None else {"pruned": pruned.as_dict()})
    names = {"accuracy": "accuracy %", "agreement": "agreement %", "kl": "KL (nats)", "images": "images"}
    return pd.DataFrame(rows).T.rename(columns=names)[list(names.values())]


def layer_table(report: pd.DataFrame) -> str:
    """Return the report of a result as text, one line a layer."""
    shown = report.reindex(columns=["layer", "shape", "sparsity", "k", "loss_start", "loss_end", "products", "seconds"])
    shown["remark"] = report["reason"].where(report["status"] != "pruned", report.get("stop", ""))
    return table(shown)


def table(frame: pd.DataFrame, index: bool = False) -> str:
    """Return a table as text: four digits, empty where there is no value."""

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and pd.isna(value)):
            return ""
        if not isinstance(value, float):
            return str(value)
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"

    return frame.astype(object).map(cell).to_string(index=index)
