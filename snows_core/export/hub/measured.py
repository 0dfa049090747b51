"""What a run has measured, as lines of a model card: shares with Wilson's intervals, or plainly nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from snows_core.loss.intervals import wilson

NOT_MEASURED = "Not measured: the record of the run holds no evaluation."
_SHARES = {"accuracy": "top-1 accuracy", "agreement": "same class as the dense network", "neighbours": "same neighbour"}
_OTHERS = {"kl": "KL to the dense network (nats)", "cosine": "cosine of features", "cka": "CKA of features"}


def of_features(manifest: Mapping[str, Any]) -> bool:
    """Tell whether the record of a run, a ``manifest``, holds figures of features instead of classes."""
    return ((manifest.get("evaluation") or {}).get("pruned") or {}).get("cosine") is not None


def measured_lines(manifest: Mapping[str, Any], dtype: str = "") -> list[str]:
    """Return the parts of a card that say how good a pruned network is beside its dense one.

    Args:
        manifest: of the result.
        dtype: in which the weights were written afterwards, or "".

    Returns:
        A table and what its intervals mean, or one sentence where nothing was measured.
    """
    found = manifest.get("evaluation") or {}
    networks = {name: found.get(name) or {} for name in ("dense", "pruned")}
    names = [name for name in (*_SHARES, *_OTHERS) if any(row.get(name) is not None for row in networks.values())]
    if not names:
        return [NOT_MEASURED]
    head = [_SHARES.get(name) or _OTHERS[name] for name in names]
    rows = [
        ["", *head, "images"],
        ["---"] * (len(head) + 2),
        *(
            [label, *(_cell(row, name) for name in names), f"{row.get('images', '')}"]
            for label, row in networks.items()
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    words = (
        "Brackets hold Wilson's 95 % interval of a share. Both networks answered the same images, so that the agreement"
    )
    words += " tells more than the difference of two accuracies."
    sample = found.get("sample") or {}
    if {"split", "images", "of"} <= sample.keys():
        words += f" Images: {sample['images']:,} of the {sample['of']:,} of the {sample['split']} split."
    words += f" Measured before the weights were written in {dtype}." if dtype not in ("", "float32") else ""
    return [table, words]


def _cell(row: Mapping[str, Any], name: str) -> str:
    """Return one figure; a share, which is in percent, with its interval."""
    value, images = row.get(name), row.get("images")
    if not isinstance(value, int | float):
        return ""
    if name not in _SHARES:
        return f"{value:.4g}"
    if not isinstance(images, int) or images < 1:
        return f"{value:.2f} %"
    low, high = (100 * bound for bound in wilson(value / 100, images))
    return f"{value:.2f} % [{low:.2f}, {high:.2f}]"
