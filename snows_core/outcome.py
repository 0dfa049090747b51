"""What a run comes to: its result from the layers that are solved, refined jointly; and how far an earlier one came."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from snows_core.distributed import current
from snows_core.methods.base import LayerSolution, LayerStatistics
from snows_core.network.copies import plain_copy, snapshot
from snows_core.network.determinism import refused_kernel
from snows_core.network.graph import Network
from snows_core.result import PruneResult
from snows_core.sweep.checkpoint import Checkpoint, Reached
from snows_core.sweep.joint_problem import JointOptions, Pair, Remask
from snows_core.sweep.prepare import Prepared
from snows_core.sweep.refine import Keeper
from snows_core.sweep.refine import refine as refine_jointly
from snows_core.sweep.select import DenseLayer, PrunableLayer
from snows_core.sweep.stages import StagedSweep


def reached_by(
    begun: PruneResult | Checkpoint | None, layers: Sequence[PrunableLayer], device: torch.device
) -> Reached | None:
    """Return how far an interrupted run had come; None where there was none."""
    if not isinstance(begun, PruneResult):
        return None if begun is None else begun.reached(device)
    resume = begun
    rows = resume.report.set_index("layer")
    names = [field.name for field in fields(LayerStatistics) if field.name != "k"]
    solutions = {
        entry.name: LayerSolution(
            resume.state[entry.layer.weight_name].to(device).clone(),  # aligned: rounding as in one run
            resume.masks[entry.name].to(device),
            LayerStatistics(int(rows.loc[entry.name, "k"]), **{name: rows.loc[entry.name, name] for name in names}),
        )
        for entry in layers
        if entry.name in resume.masks
    }
    records = tuple(resume.manifest["stage_records"][: resume.stage - 1])
    pending = {name: mask.to(device) for name, mask in resume.pending.items()}
    return Reached(resume.stage, records, solutions, frozenset(resume.solved), pending)


def gathered(prepared: Prepared, run: StagedSweep, record: dict[str, Any]) -> PruneResult:
    """Write the new weights into a copy of the model, and gather the report."""
    pruned = plain_copy(prepared.model)
    parameters = dict(pruned.named_parameters(remove_duplicate=False))  # a tied weight has several names
    names = {entry.name: entry.layer.weight_name for entry in prepared.layers if entry.name in run.solutions}
    with torch.no_grad():
        for layer, name in names.items():
            parameters[name].copy_(run.solutions[layer].weight.to(parameters[name]))
    rows = [_row(entry, run) for entry in prepared.selection.entries]
    solved = [field.name for field in fields(LayerStatistics)]  # there whatever was solved
    report = pd.DataFrame(rows, columns=[*(name for name in rows[0] if name not in solved), *solved])
    masks = {layer: run.solutions[layer].mask.cpu() for layer in names}
    pending = {layer: mask.cpu() for layer, mask in run.pending.items()}
    return PruneResult(pruned, masks, report, record, snapshot(pruned), names, pending)


def _row(entry: PrunableLayer | DenseLayer, run: StagedSweep) -> dict[str, Any]:
    """Return one row of the report."""
    solution = run.solutions.get(entry.name)
    weights = math.prod(entry.shape) if entry.shape else 0
    kept = weights if solution is None else int(solution.mask.sum())
    row: dict[str, Any] = {
        "layer": entry.name,
        "kind": entry.kind,
        "shape": "x".join(map(str, entry.shape)),
        "weights": weights,
        "kept": kept,
        "sparsity": 1 - kept / weights if weights else 0.0,
    }
    if isinstance(entry, DenseLayer):
        return row | {"status": "skipped", "reason": entry.sentence, "stage": 0, "stop": ""}
    stage = len(run.records) - (entry.name not in run.solved)
    statistics = {"stop": ""} if solution is None else solution.statistics.as_row()
    if stage < len(run.prepared.schedule):
        return row | {"status": "not reached", "reason": run.where, "stage": stage} | statistics
    return row | {"status": "pruned", "reason": "", "stage": stage} | statistics


def refine_result(
    result: PruneResult,
    network: Network,
    images: Tensor,
    options: JointOptions,
    remask: Remask | None = None,
    keeper: Keeper | None = None,
) -> None:
    """Refine a result's weights in place and say so in its manifest; a failure leaves the weights of the sweep.

    Args:
        result: of a sweep.
        network: the traced dense network.
        images: calibration images.
        options: of the joint stage.
        remask: see :func:`snows_core.sweep.refine.refine`.
        keeper: likewise.
    """
    record: dict[str, Any] = {
        "steps": 0,
        "solver": options.solver,
        "moving_masks": options.moving_masks,
        "augment": None if options.augment is None else getattr(options.augment, "__name__", str(options.augment)),
    }
    result.manifest["refinement"] = record
    try:
        pair = Pair(network, result.module, result.masks, result.weight_names)
        done = refine_jointly(pair, images, options, remask, keeper)
    except (Exception, KeyboardInterrupt) as error:  # a function that augments may fail in any way
        if refused_kernel(error) is not None or current().several:  # the others have not failed, and wait
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        record |= {"failed": reason, "interrupted": isinstance(error, KeyboardInterrupt)}
        warnings.warn(f"refine: failed ({reason}); the weights are those of the sweep", stacklevel=3)
        return
    parameters = dict(result.module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in done.state.items():
            parameters[name].copy_(value.to(parameters[name]))
    result.state = snapshot(result.module)
    result.masks = {name: mask.cpu() for name, mask in done.masks.items()}
    record |= {"loss": list(done.loss), "held_back": done.held_back, **asdict(done.effort)}
    record["interrupted"] = done.steps < options.steps and not done.early
