"""The main entry: check, plan, sweep, and gather the result."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images, shuffled
from snows_core.devices import peak_memory, resolve_device
from snows_core.errors import invalid_argument
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks
from snows_core.methods.base import LayerSolution, LayerStatistics
from snows_core.network.copies import plain_copy, snapshot
from snows_core.network.graph import Network
from snows_core.network.memory_format import channels_last
from snows_core.provenance import images_digest, provenance, state_digest
from snows_core.result import PruneResult, check_resume
from snows_core.settings import PruneSettings, SparsityPattern, takes_settings
from snows_core.sweep.joint_problem import JointOptions, Remask
from snows_core.sweep.prepare import Prepared, checked_settings, layer_steps, prepare
from snows_core.sweep.refine import check_refinable
from snows_core.sweep.refine import refine as refine_jointly
from snows_core.sweep.select import DenseLayer, PrunableLayer
from snows_core.sweep.sweep import Sweep


@takes_settings
@plain_numerics()
def prune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | str | float = PruneSettings.pattern,
    *,
    resume: PruneResult | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a trained network once, without labels or retraining, keeping the representations behind each layer.

    Args:
        model: network in eval mode; not changed.
        images: calibration images as the network expects them: tensor (N, C, H, W), DataLoader, or batches.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        resume: an interrupted result of the same call; its solved layers are taken over.
        **options: single fields of the recipe, for instance ``steps=2`` or ``curvature="hessian"``.

    Returns:
        Result with the pruned model, masks, and a report with one row per layer: layer, kind, shape, weights, kept,
        sparsity, status ("pruned", "skipped", "not reached"), reason, k, loss_masked (of the masked dense weights),
        loss_start (where Newton starts), loss_end, newton_steps, products, image_products, seconds, stop.
        After Ctrl-C the result holds the layers solved so far; the others are dense and "not reached".

    Raises:
        SnowsError: on any argument that cannot work; nothing is changed then.
    """
    settings = checked_settings(prune, pattern=pattern, **options)
    steps = layer_steps(settings)
    parts = calibration_parts(images, settings.max_images)
    prepared = prepare(model, parts, settings)
    network = prepared.network
    device = resolve_device(settings.device, next(network.module.parameters()).device)
    asked = settings.record()
    record = {name: asked.pop(name) for name in ("pattern", "k", "recipe", "mask", "update")}
    record["calibration"] = {"images": sum(map(len, parts)), "digest": images_digest(parts)}
    record["weights"] = state_digest(prepared.model)
    if resume is not None:
        # Masks that a method chooses come with the result.
        masks = prepared.masks if steps.choose is None else resume.masks
        check_resume(resume, record | {"seed": settings.seed}, masks)
    placed = prepared.move(device)
    like = channels_last(network, first_images(parts, 2).to(device, next(network.module.parameters()).dtype))
    if settings.refine:
        check_refinable(network, [entry.layer.weight_name for entry in prepared.layers], like)
    whole, order = shuffled(parts, settings.seed, like if parts[0].device == device else like.cpu())
    record["calibration"]["order"] = order.tolist()
    sweep = Sweep(network, prepared.layers, placed, steps, whole, settings.max_memory, settings.seed)
    sweep.run(settings.progress, _known_solutions(resume, prepared.layers, device))
    record |= {
        "complete": not sweep.interrupted,
        "memory": {
            "batch_size": sweep.batch_size,
            "storage": str(sweep.memory.storage or device),
            "peak": peak_memory(device),
        },
        "settings": asked,
        **provenance(seed=settings.seed, device=str(device)),
    }
    result = _result(prepared, sweep, record)
    if settings.refine and not sweep.interrupted:
        joint = JointOptions(
            settings.refine,
            augment=settings.augment,
            seed=settings.seed,
            progress=settings.progress,
            solver=settings.refine_solver,
            moving_masks=settings.moving_masks,
        )
        refine_result(result, network, whole, joint, prepared.remask(settings) if settings.moving_masks else None)
    return result


@takes_settings
@plain_numerics()
def make_masks(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | str | float = PruneSettings.pattern,
    **options: Any,
) -> Masks:
    """Return the masks that :func:`prune` would use with the same arguments, without pruning.

    Args:
        model: network in eval mode; not changed.
        images: one or more example images, to see which layer is which.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        **options: single fields of the recipe, which change no mask.

    Returns:
        Layer name to bool tensor; ``snows.apply_masks(model, masks)`` is then pruning without any re-fit.

    Raises:
        SnowsError: as :func:`prune`.
    """
    settings = checked_settings(make_masks, pattern=pattern, **options)
    if layer_steps(settings).choose is not None:
        fix = "prune(..., update='none').masks holds them."
        raise invalid_argument("mask", repr(settings.mask), "'magnitude': other masks are chosen during the sweep", fix)
    return prepare(model, calibration_parts(images, limit=2, few=0), settings).masks


def _known_solutions(
    resume: PruneResult | None, layers: Sequence[PrunableLayer], device: torch.device
) -> dict[str, LayerSolution]:
    """Return the solutions of the layers that an interrupted run has solved already."""
    if resume is None:
        return {}
    rows = resume.report.set_index("layer")
    names = [field.name for field in fields(LayerStatistics) if field.name != "k"]
    return {
        entry.name: LayerSolution(
            resume.state[entry.layer.weight_name].to(device).clone(),  # aligned: rounding as in one run
            resume.masks[entry.name].to(device),
            LayerStatistics(int(rows.loc[entry.name, "k"]), **{name: rows.loc[entry.name, name] for name in names}),
        )
        for entry in layers
        if entry.name in resume.masks
    }


def _result(prepared: Prepared, sweep: Sweep, record: dict[str, Any]) -> PruneResult:
    """Write the new weights into a copy of the model, and gather the report."""
    pruned = plain_copy(prepared.model)
    parameters = dict(pruned.named_parameters(remove_duplicate=False))  # a tied weight has several names
    names = {entry.name: entry.layer.weight_name for entry in prepared.layers if entry.name in sweep.solutions}
    with torch.no_grad():
        for layer, name in names.items():
            parameters[name].copy_(sweep.solutions[layer].weight.to(parameters[name]))
    rows = [_row(entry, sweep.solutions.get(entry.name)) for entry in prepared.selection.entries]
    solved = [field.name for field in fields(LayerStatistics)]  # there whatever was solved
    report = pd.DataFrame(rows, columns=[*(name for name in rows[0] if name not in solved), *solved])
    masks = {layer: sweep.solutions[layer].mask.cpu() for layer in names}
    return PruneResult(pruned, masks, report, record, snapshot(pruned), names)


def _row(entry: PrunableLayer | DenseLayer, solution: LayerSolution | None) -> dict[str, Any]:
    """Return one row of the report."""
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
        return row | {"status": "skipped", "reason": entry.sentence, "stop": ""}
    if solution is None:
        return row | {"status": "not reached", "reason": "interrupted", "stop": ""}
    return row | {"status": "pruned", "reason": ""} | solution.statistics.as_row()


def refine_result(
    result: PruneResult, network: Network, images: Tensor, options: JointOptions, remask: Remask | None = None
) -> None:
    """Refine a result's weights in place and say so in its manifest; a failure leaves the weights of the sweep."""
    record: dict[str, Any] = {
        "steps": 0,
        "solver": options.solver,
        "moving_masks": options.moving_masks,
        "augment": None if options.augment is None else getattr(options.augment, "__name__", str(options.augment)),
    }
    result.manifest["refinement"] = record
    try:
        done = refine_jointly(network, result.module, result.masks, result.weight_names, images, options, remask)
    except (RuntimeError, KeyboardInterrupt) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        record["failed"] = reason
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
