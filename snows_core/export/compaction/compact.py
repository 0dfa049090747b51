"""Channels, neurons and heads that do nothing taken out of a network: the same function, a smaller network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import SnowsError, invalid_argument
from snows_core.export.compaction.narrow import narrow
from snows_core.export.compaction.removal import Removal, removals
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example, same_function
from snows_core.network.graph import Network
from snows_core.network.units import unit_groups
from snows_core.result import PruneResult

if TYPE_CHECKING:
    import pandas as pd

MOST_PASSES = 20  # what goes may leave other units without use: each pass looks again
REFUSED = "the forward pass of the network expects so many of them"


@dataclass(repr=False)
class Compacted:
    """A network without the units that did nothing.

    Attributes:
        model: plain module of the caller's classes, with smaller layers.
        table: one row for each group of channels, neurons or heads of which some went, or some without use stayed:
            group, kind, units, removed, idle (without use, and there yet), reason (why those stay).
        parameters: numbers in parameters before and after.
        change: largest difference of an output to the network before, as a share of the largest output.
        example: the images that this was seen on, (N, C, H, W).
    """

    model: nn.Module
    table: pd.DataFrame
    parameters: tuple[int, int]
    change: float
    example: Tensor

    def __repr__(self) -> str:
        before, after = self.parameters
        count, groups = int(self.table["removed"].sum()), int((self.table["removed"] > 0).sum())
        stayed = int(self.table["idle"].sum())
        words = f"{before:,} parameters became {after:,}: {count:,} units of {groups} groups were removed"
        words += f", {stayed:,} without use stay (see table)" if stayed else ""
        return f"{words}; outputs differ by {self.change:.1e} of the largest"

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """Write the network into a folder, in forms that load without this package.

        Args:
            folder: new or empty, or with such files; see :mod:`snows_core.export.files`.
            overwrite: replace what an earlier call wrote.

        Returns:
            The folder.
        """
        from snows_core.export.files import save

        return save(self, folder, overwrite)


def compact(model: nn.Module | PruneResult, images: Tensor | Iterable[Any]) -> Compacted:
    """Take channels, neurons and attention heads that do nothing out of a network.

    A unit goes where the network computes the same without it: its weights are zero in the layers that read it, or in
    those that compute it, in all layers of a residual group together. What a removed channel still gave behind its
    bias, batch norm and activation is added to the bias of the layer that reads it. The outputs are compared on the
    images before and after; a network that would change is never returned.

    Args:
        model: a network in eval mode, or a result; not changed.
        images: one or more example images (N, C, H, W), in the size that the network is used with.

    Returns:
        The smaller network with a table of what went and why other units without use stayed.

    Raises:
        SnowsError: on a network that cannot be traced, or images that do not fit it.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    >>> _ = net[1].weight.data[1].zero_()
    >>> small = compact(net, torch.randn(2, 1, 2, 2))
    >>> small.model[1], int(small.table["removed"].sum())
    (Linear(in_features=4, out_features=2, bias=True), 1)
    """
    if isinstance(model, PruneResult):
        model = model.module
    check_tensors(model)
    if any(parameter.is_complex() for parameter in model.parameters()):
        raise invalid_argument("model", "a network with complex weights", "one of real weights")
    original = plain_copy(unwrap(model))
    example = _example(original, images)
    run_on_example(original, example.to(next((p.dtype for p in original.parameters()), example.dtype)))
    current, rows = original, dict[str, dict[str, Any]]()
    for _ in range(MOST_PASSES):
        network = Network(current, example=example)
        found = removals(network, unit_groups(network, current, example))
        current, done = _narrowed(current, found, example)
        _note(rows, done)
        if not any(removal.count for removal in done):
            break
    change = same_function(original, current, example)
    if not change.passes:
        raise SnowsError(
            f"model: got outputs that differ by {change.largest:.1e} after its units were removed; expected rounding "
            "alone. The network may compute something else each time it is called: is it in eval mode?"
        )
    sizes = (_parameters(original), _parameters(current))
    return Compacted(current, _table(rows), sizes, change.largest, example)


def _example(model: nn.Module, images: Tensor | Iterable[Any]) -> Tensor:
    example = first_images(calibration_parts(images, limit=2, few=0), 2)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is None:
        return example
    return example.to(first.device, torch.float64 if first.dtype == torch.float64 else torch.float32)


def _narrowed(model: nn.Module, found: list[Removal], example: Tensor) -> tuple[nn.Module, list[Removal]]:
    """Return a copy without the units, and what was really done: groups that the forward pass needs whole stay."""
    if not any(removal.count for removal in found):
        return model, found
    smaller = plain_copy(model)
    narrow(smaller, found)
    if _is_same(model, smaller, example):
        return smaller, found
    current, done = model, list[Removal]()
    for removal in found:
        if removal.count:
            trial = plain_copy(current)
            narrow(trial, [removal])
            if _is_same(model, trial, example):
                current = trial
            else:
                nothing = torch.zeros_like(removal.dropped)
                removal = Removal(removal.group, nothing, removal.idle + removal.count, REFUSED)
        done.append(removal)
    return current, done


def _is_same(model: nn.Module, other: nn.Module, example: Tensor) -> bool:
    try:
        return same_function(model, other, example).passes
    except Exception:  # a forward pass of anybody's, in which a size of before is written down, may say so in any way
        return False


def _note(rows: dict[str, dict[str, Any]], done: list[Removal]) -> None:
    """Add what one pass did to what the passes before did."""
    for removal in done:
        group = removal.group
        row = rows.setdefault(
            f"{group.kind} {group.name}",
            {"group": group.name, "kind": group.kind, "units": group.units, "removed": 0},
        )
        row["removed"] += removal.count
        row |= {"idle": removal.idle, "reason": removal.why if removal.idle else ""}


def _table(rows: dict[str, dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    columns = ["group", "kind", "units", "removed", "idle", "reason"]
    return pd.DataFrame([row for row in rows.values() if row["removed"] or row["idle"]], columns=columns)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
