"""Results as text for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

WIDTH = 100
_COLUMNS = ("shape", "sparsity", "k", "loss_start", "loss_end", "products", "seconds")


def table(frame: pd.DataFrame, index: bool = False) -> str:
    """Return a table as text: four digits, empty where there is no value."""

    def cell(value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if not isinstance(value, float):
            return str(value)
        return f"{value:.0f}" if value.is_integer() else f"{value:.4g}"

    return frame.astype(object).map(cell).to_string(index=index)


def layer_table(report: pd.DataFrame) -> str:
    """Return the report of a result as text, at most 100 columns wide.

    One line a pruned layer; below them what all pruned layers share, the layers left dense by their reason, and the
    sparsity of the pruned layers and of all weights listed.
    """
    pruned = report[report["status"] == "pruned"]
    lines = [] if pruned.empty else _pruned_lines(pruned)
    for status, words in (("skipped", "left dense"), ("not reached", "not reached")):
        rest = report[report["status"] == status]
        for reason, group in rest.groupby("reason", sort=False, dropna=False):
            lines += _wrapped(f"{words}: {reason}: {', '.join(map(_shown_name, group['layer']))}")
    return "\n".join([*lines, *_wrapped(_overall(report))])


def _pruned_lines(pruned: pd.DataFrame) -> list[str]:
    """Return one line a pruned layer, and below them what is the same in all or too long for a line."""
    shown = pruned.reindex(columns=[name for name in _COLUMNS if name in pruned])
    shown = shown.loc[:, shown.notna().any() & (shown != "").any()]
    notes: list[str] = []
    if len(shown) > 1 and "k" in shown and shown["k"].nunique(dropna=False) == 1:
        notes += [f"k = {shown.pop('k').iloc[0]:g} in every layer"]
    stops = pruned["stop"].fillna("").astype(str) if "stop" in pruned else pruned["layer"].map(lambda _: "")
    kinds = [stop for stop in dict.fromkeys(stops) if stop]
    if len(kinds) == 1 and (stops == kinds[0]).all():
        notes += _wrapped(f"{'every layer ' if len(shown) > 1 else ''}stopped because {kinds[0]}")
    elif kinds:
        marks = {stop: _mark(number) for number, stop in enumerate(kinds)}
        shown["stop"] = [marks.get(stop, "") for stop in stops]
        notes += [line for stop, mark in marks.items() for line in _wrapped(f"stop {mark}: {stop}")]
    names = [_shown_name(name) for name in pruned["layer"]]
    others = table(shown).splitlines()
    room = max(12, WIDTH - max(map(len, others)) - 1)
    names = [_shortened(name, room) for name in ("layer", *names)]
    width = max(map(len, names))
    lines = [f"{name:<{width}} {rest}".rstrip() for name, rest in zip(names, others, strict=True)]
    return lines + notes


def _mark(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else str(number)


def _shown_name(name: Any) -> str:
    """Return a layer's name for reading: the network itself, where it is a single layer, has none."""
    return str(name) or "(the model)"


def _shortened(name: str, width: int) -> str:
    """Cut the middle out of a name that is too long; layers differ at their ends."""
    if len(name) <= width:
        return name
    front = (width - 3) // 3
    return f"{name[:front]}...{name[len(name) - (width - 3 - front) :]}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _overall(report: pd.DataFrame) -> str:
    """Return a line on the sparsity of the pruned layers and of all weights listed."""
    pruned = report[report["status"] == "pruned"]
    removed = int(report["weights"].sum() - report["kept"].sum())
    every, inside = int(report["weights"].sum()), int(pruned["weights"].sum())
    layers = "1 pruned layer" if len(pruned) == 1 else f"{len(pruned)} pruned layers"
    if not len(pruned):
        return f"sparsity: no layer pruned; {every:,} weights listed"
    return (
        f"sparsity: {removed / max(1, inside):.1%} of the weights of the {layers}, "
        f"{removed / max(1, every):.1%} of all {every:,} weights listed"
    )


def result_summary(report: pd.DataFrame, record: Mapping[str, Any], network: nn.Module | None) -> str:
    """Return what a result is on one screen: what was done to which layers, at what loss, on what, and what comes next.

    Args:
        report: of the result, one row a layer.
        record: its manifest; that of a loaded result may lack anything.
        network: the pruned network, or None where a result was loaded without one.

    Returns:
        About ten lines, at most 100 columns wide.
    """
    counts = report["status"].value_counts()
    made, recipe = record.get("calibration"), record.get("recipe")
    images = made.get("images", "unknown") if isinstance(made, Mapping) else "unknown"
    recipe = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    model = "weights without a model" if network is None else type(network).__name__
    facts = {
        "pattern": f"{record.get('pattern', 'unknown')}{_stage_words(record.get('stage_records'))}, "
        f"recipe {recipe or 'unknown'}, k {record.get('k', 'unknown')}",
        "layers": f"{counts.get('pruned', 0)} pruned, {counts.get('skipped', 0)} left dense, "
        f"{counts.get('not reached', 0)} not reached",
        "sparsity": _overall(report).removeprefix("sparsity: "),
        "channels": _permutation_words(record.get("permutations")),
        "loss": _loss_words(report),
        "refined": _refinement_words(record.get("refinement")),
        "fine-tuned": _finetune_words(record.get("finetune")),
        "made with": f"{images} calibration images, on {record.get('device', 'unknown')}, "
        f"seed {record.get('seed', 'unknown')}",
        "complete": "no, interrupted: pass it as resume= in the same call to go on"
        if counts.get("not reached", 0)
        else "yes",
        "next": _next_step(network),
    }
    lines = [f"PruneResult: {model}"]
    for name, words in facts.items():
        if words:
            indent = " " * 13
            lines += textwrap.wrap(f"  {name:<11}{words}", WIDTH, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


def _stage_words(records: Any) -> str:
    """Say in how many stages a pattern was reached, where there was more than one."""
    if not isinstance(records, list | tuple) or len(records) < 2:
        return ""
    way = " ".join(str(record.get("pattern", "?")) for record in records[:-1] if isinstance(record, Mapping))
    return f" in {len(records)} stages (through {way})" if len(way) < 60 else f" in {len(records)} stages"


def _loss_words(report: pd.DataFrame) -> str:
    """Return how the losses of the solved layers changed, added up."""
    pruned = report[report["status"] == "pruned"]
    if not {"loss_masked", "loss_end"} <= set(report.columns) or pruned.empty:
        return ""
    before, after = (float(pruned[name].astype(float).sum()) for name in ("loss_masked", "loss_end"))
    share = f" ({after / before:.1%} of it)" if before > 0 else ""
    return f"{before:.4g} with the masked dense weights, {after:.4g} after the solve{share}, sums over layers"


def _permutation_words(done: Any) -> str:
    """Say that weights and masks are not in the order of the network that was given, where they are not."""
    if not isinstance(done, list | tuple) or not done:
        return ""
    between = "1 layer is" if len(done) == 1 else f"{len(done)} layers are"
    return f"those behind {between} in a new order (manifest['permutations']); the function is the same"


def _refinement_words(done: Any) -> str:
    if not isinstance(done, Mapping):
        return ""
    losses = [value for value in done.get("loss") or () if isinstance(value, int | float)]
    fall = f", loss {losses[0]:.4g} before, {losses[-1]:.4g} after" if len(losses) > 1 else ""
    return f"{done.get('steps', 'unknown')} joint steps{fall}"


def _finetune_words(done: Any) -> str:
    if not isinstance(done, Mapping):
        return ""
    images = (done.get("images") or {}).get("count", "unknown")
    words = f"{done.get('epochs', 'unknown')} epochs on {images} images, by {done.get('objective', 'unknown')}"
    found = [(done.get(when) or {}).get("accuracy") for when in ("before", "after")]
    shown = [f"{value:.2f} %" for value in found if isinstance(value, int | float)]
    return words + (f", accuracy {' before, '.join(shown)} after" if len(shown) == 2 else "")


def _next_step(network: nn.Module | None) -> str:
    if network is None:
        return 'result.state (the pruned weights), result.report, or snows.load("folder", model)'
    return 'result.model (the pruned network), print(result.report), result.save("folder")'
