"""A grid of masks and updates on one network, judged on the same images: the entry ``snows.compare``."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from snows_core.comparison.cells import Cell, cells_of, known_masks, known_updates, misfit, read_names, read_patterns
from snows_core.comparison.folder import Output
from snows_core.comparison.judge import Judge
from snows_core.comparison.results import CRASHED, DONE, MISFIT, Comparison, Row
from snows_core.comparison.runs import SharedRuns
from snows_core.devices import resolve_device
from snows_core.distributed import refuse_several
from snows_core.errors import SnowsError, blamed, invalid_argument, switch
from snows_core.interruption import interruptible
from snows_core.masks.patterns import Pattern
from snows_core.methods import NETWORK_METHODS
from snows_core.network.check_model import check_model, check_tensors
from snows_core.network.copies import unwrap
from snows_core.network.determinism import deterministic_where_asked
from snows_core.provenance import provenance, state_digest, tensor_digest
from snows_core.settings import PruneSettings, changeable
from snows_core.sweep.network_steps import check_label_count
from snows_core.sweep.prepare import checked_settings, stages_of

# Settings of every cell; the others say what a grid varies, or are for one run.
SHARED = (
    *("k", "recipe", "layers", "exclude", "leaf_modules", "stages", "stage_k", "flops", "labels"),
    *("seed", "max_images", "max_memory", "device", "deterministic", "progress"),
)
_CHANGE_NO_NUMBER = ("max_memory", "device", "deterministic", "progress")


@interruptible()
@deterministic_where_asked
def compare(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    patterns: Any = PruneSettings.pattern,
    *,
    test: Any,
    masks: str | Sequence[str] = ("magnitude", "wanda", "sparsegpt"),
    updates: str | Sequence[str] = ("none", "layerwise", "snows"),
    out: str | Path | Output | None = None,
    fixed_masks: bool = False,
    **options: Any,
) -> Comparison:
    """Prune a network by every mask with every update, and judge all on the same test images.

    A cell is ``prune(model, images, pattern, mask=mask, update=update, effort="quick")``, to the last bit: one sweep,
    or as many as there are ``stages``. In it a method chooses a layer's mask behind layers that the update has
    re-fitted, so that one method's masks differ from update to update. With ``fixed_masks`` it chooses them once a
    pattern, on the dense network's inputs, and every update re-fits the same:
    ``prune(model, images, pattern, masks=masks, update=update)``. (Chosen behind layers that are pruned and not
    re-fitted, as by ``update="none"``, masks are much worse.) The update "own" is always the method itself,
    ``prune(..., mask=mask, update=mask)``, and "own+snows" is SNOWS from its weights, ``prune(..., mask=mask,
    update="snows", warm_start="own")``.

    A cell that fails is recorded and the next one goes on. Ctrl-C, SIGTERM or SIGHUP end the comparison and keep what
    is done; the same call with the same ``out`` goes on there, and so it does after a kill.

    Args:
        model: network in eval mode; not changed.
        images: calibration images, as :func:`snows_core.prune.prune` takes them.
        patterns: one pattern, or a list of them.
        test: test images: a tensor (N, C, H, W), a tuple of it and labels (N,), or a DataLoader or list of batches
            that gives the same images each time it is read.
        masks: names of :func:`snows_core.methods.methods` that give masks; also one text with commas.
        updates: names that give weights, "own" and "own+snows".
        out: folder for results.csv, results.json and per_image.safetensors, written after each cell; an
            :class:`~snows_core.comparison.Output` adds a drawing. Default: nothing is written.
        fixed_masks: choose each mask once a pattern, for all updates.
        **options: of ``prune`` for all cells: k, recipe and its fields, layers, exclude, leaf_modules, stages, stage_k,
            seed, max_images, max_memory, device, deterministic, progress; flops, for the cells whose masks bound it
            ("falcon"); and labels, for those whose methods read them.

    Returns:
        The comparison; its ``table`` has one row a cell, with the best cell of each pattern and those that the test
        images do not tell apart from it.

    Raises:
        SnowsError: on an unknown name, images or labels that do not fit, another option, a folder with another
            comparison, or in a process group of several; nothing is pruned then.
    """
    refuse_several("compare")
    read = read_patterns(patterns)
    names = read_names("masks", masks, known_masks()), read_names("updates", updates, known_updates())
    settings = _settings(options, list(read.values()), names, switch("fixed_masks", fixed_masks))
    output = out if isinstance(out, Output | None) else Output(out)
    if output is not None:
        output.check()
    check_tensors(model)
    check_model(unwrap(model))
    with blamed("images", on="test"), blamed("labels", on="test: labels"):
        judge = Judge(model, test, settings.device)
    runs = SharedRuns(model, images, settings, bool(fixed_masks))
    check_label_count(settings, runs.count)
    first = next(model.parameters(), torch.empty(0))
    device = resolve_device(settings.device, first.device)
    configuration = {
        **{"patterns": list(read), "masks": list(names[0]), "updates": list(names[1])},
        "fixed_masks": runs.fixed_masks,
        "settings": {name: settings.record()[name] for name in SHARED if name not in _CHANGE_NO_NUMBER},
        "device": str(device),
        "weights": state_digest(unwrap(model)),
        "calibration": {"images": runs.count, "digest": runs.digest},
        "labels": None if settings.labels is None else tensor_digest(torch.tensor(settings.labels)),
        "test": {"images": judge.count, "digest": judge.digest},
    }
    configuration = json.loads(json.dumps(configuration))
    done, earlier = ({}, []) if output is None else output.known(configuration)
    record = {
        "configuration": configuration,
        "dense": {name: 100 * float(values.mean()) for name, values in judge.dense.items()},
        "runs": [*earlier, provenance(seed=settings.seed, device=str(device))],
    }
    rows = {cell: done.get(cell, Row()) for cell in cells_of(read, *names)}
    found = Comparison(rows, record)
    _run(found, read, runs, judge, output)
    return found


def _settings(
    options: dict[str, Any], patterns: Sequence[Pattern], names: Sequence[Sequence[str]], fixed: bool
) -> PruneSettings:
    """Return the settings of all cells, for a first one that any network allows.

    Args:
        options: of the caller.
        patterns: those that are compared; stages have to lead to each.
        names: masks and updates that are compared.
        fixed: whether each mask is chosen once.
    """
    for name in options:
        if name not in (*SHARED, *changeable()) and hasattr(PruneSettings, name):
            fix = "Cells differ in pattern, mask and update alone."
            raise invalid_argument(name, repr(options[name]), f"options among {', '.join(SHARED)}", fix)
    plain = {name: value for name, value in options.items() if name not in ("flops", "labels")}
    first = {"pattern": patterns[0], "effort": "quick", "update": "none", "mask": "magnitude"}
    settings = checked_settings(compare, **first, **plain)
    for pattern in patterns:
        stages_of(replace(settings, pattern=pattern))
    if fixed and settings.stages != 1:
        fix = "Leave one of the two out."
        expected = "one stage: the masks of a later one are chosen from re-fitted weights"
        raise invalid_argument("fixed_masks", f"True beside stages={options['stages']!r}", expected, fix)
    bounding = [name for name, method in NETWORK_METHODS.items() if method.bounds_flops]
    reading = [name for name, method in NETWORK_METHODS.items() if method.reads_labels]
    asked = {"flops": (bounding, names[0]), "labels": (reading, (*names[0], *names[1]))}
    for name, (able, compared) in asked.items():
        if options.get(name) is not None and not set(able) & set(compared):
            raise invalid_argument(name, "a value", f"one of {able} to be compared", f"Leave {name} out.")
    return replace(settings, flops=options.get("flops"), labels=options.get("labels"))


def _run(
    found: Comparison, patterns: dict[str, Pattern], runs: SharedRuns, judge: Judge, output: Output | None
) -> None:
    """Fill the rows that are not done yet; write after each."""
    begun = unfit = ""
    todo = [cell for cell, row in found.rows.items() if row.status != DONE]
    bar = tqdm(todo, desc="comparing", unit="cell", disable=not runs.settings.progress)
    runs.settings = replace(runs.settings, progress=False)  # one bar is enough
    try:
        if not todo and output is not None:
            output.write(found)
        for cell in bar:
            bar.set_postfix_str(str(cell))
            pattern = patterns[cell.pattern]
            reason = misfit(cell, pattern, runs.settings)
            if not reason and begun != cell.pattern:
                begun, unfit = cell.pattern, _begin(runs, pattern)
            reason = reason or unfit
            found.rows[cell] = Row(MISFIT, reason) if reason else _judged(cell, runs, judge)
            if output is not None:
                output.write(found)
    except KeyboardInterrupt:
        pass  # what is done is kept; the others are "not run"
    finally:
        bar.close()


def _begin(runs: SharedRuns, pattern: Pattern) -> str:
    """Make ready for a pattern; return why it fits no layer, or an empty text."""
    try:
        runs.begin(pattern)
    except SnowsError as error:
        if str(error).startswith("pattern: "):
            return str(error)
        raise
    return ""


def _judged(cell: Cell, runs: SharedRuns, judge: Judge) -> Row:
    """Return the row of a cell, whatever becomes of it."""
    try:
        pruned = runs.run(cell)
        return Row(DONE, figures=pruned.figures, values=judge(runs.write(pruned)))
    except Exception as error:  # a grid is not given up for one cell
        words = str(error).strip().splitlines() or [""]
        reason = words[0] if isinstance(error, SnowsError) else f"{type(error).__name__}: {words[0]}"
        return Row(CRASHED, reason, trace=traceback.format_exc())
