"""What each layer loses: sparsities that were given by layer, or an overall one shared out among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from snows_core.errors import invalid_argument
from snows_core.masks.allocation import allocate
from snows_core.masks.patterns import NM, Pattern, PerLayer, Structured, Unstructured, parse_pattern
from snows_core.masks.schedule import allocated
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings
from snows_core.sweep.select import LayerSelection, PrunableLayer, Reason

MEASURED = "measured"
STAND_IN = "erk"  # in place of measured sparsities until they are there: for a plan of memory, an estimate


def check_allocation(settings: PruneSettings) -> None:
    """Refuse an allocation beside what leaves nothing to allocate.

    Raises:
        SnowsError: with N:M or structured patterns, sparsities that are given by layer, or given masks.
    """
    if settings.allocation is None:
        return
    pattern, got = parse_pattern(settings.pattern), f"{settings.allocation!r}"
    expected = "an overall sparsity to share out"
    if settings.masks is not None:
        raise invalid_argument("allocation", f"{got} with masks=", expected, "Masks are either given or made.")
    if isinstance(pattern, NM):
        fix = "N:M takes the same share of every layer; for instance pattern=0.75."
        raise invalid_argument("allocation", f"{got} with the pattern {pattern}", expected, fix)
    if isinstance(pattern, Structured):
        fix = "Every group of channels, neurons or heads loses the same share."
        raise invalid_argument("allocation", f"{got} with the pattern {pattern}", expected, fix)
    if isinstance(pattern, PerLayer):
        fix = "The pattern says what each layer loses: leave allocation out."
        raise invalid_argument("allocation", f"{got} with the pattern {pattern.title}", expected, fix)


def budgeted(
    network: Network, selection: LayerSelection, stages: Sequence[Pattern], allocation: str | None
) -> tuple[LayerSelection, tuple[Pattern, ...]]:
    """Bring the patterns of all stages to the layers that there are.

    Args:
        network: the traced model.
        selection: from :func:`snows_core.sweep.select.select_layers`.
        stages: patterns as they were asked for.
        allocation: how an overall sparsity is shared out; None where its own scope says so. Measured sparsities come
            later (:mod:`snows_core.sweep.measured_allocation`); others stand in for them here.

    Returns:
        The selection without layers that no entry of a pattern names, and the patterns.

    Raises:
        SnowsError: on an entry that names no layer, or only layers that cannot be pruned.
    """
    last = stages[-1]
    if isinstance(last, PerLayer):
        names = [layer.name for layer in network.layers]
        _refuse_idle_entries(last, names, selection)
        resolved = tuple(stage.resolved(names) if isinstance(stage, PerLayer) else stage for stage in stages)
        named = last.resolved(names).sparsities
        unnamed = [entry.name for entry in selection.prunable if entry.name not in named]
        return selection.without(dict.fromkeys(unnamed, (Reason.NO_SHARE, ""))), resolved
    if allocation is None or not isinstance(last, Unstructured):
        return selection, tuple(stages)
    weights = {entry.name: network.weight(entry.layer) for entry in selection.prunable}
    weights = {name: weight for name, weight in weights.items() if weight.any()}
    if not weights:
        return selection, tuple(stages)  # each layer's reason follows where masks are made
    return selection, allocated(stages, allocate(weights, last, STAND_IN if allocation == MEASURED else allocation))


def _refuse_idle_entries(pattern: PerLayer, names: Sequence[str], selection: LayerSelection) -> None:
    """Refuse entries that name only layers that cannot be pruned; those that the caller wished dense are fine."""
    entries = {entry.name: entry for entry in selection.entries}
    for text in pattern.sparsities:
        named = [entries[name] for name in PerLayer.named_by(text, names)]
        dense = [entry for entry in named if not isinstance(entry, PrunableLayer) and not entry.reason.is_a_wish]
        if named and len(dense) == len(named):
            fix = f"'{dense[0].name}' stays dense: {dense[0].sentence}."
            if dense[0].reason in (Reason.FIRST, Reason.CLASSIFIER):
                fix += " layers= may name it."
            raise invalid_argument("pattern", f"a sparsity for '{text}'", "layers that can be pruned", fix)


def allocation_record(allocation: str | None, pattern: Pattern) -> Mapping[str, Any] | None:
    """Return what a manifest says of an allocation; only its name as long as sparsities are to be measured."""
    if allocation is None:
        return None
    if allocation == MEASURED or not isinstance(pattern, PerLayer):
        return {"name": allocation}
    return {"name": allocation, "sparsities": dict(pattern.sparsities)}
