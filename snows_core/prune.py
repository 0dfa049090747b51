"""The main entry: check, plan, sweep, and gather the result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images, shuffled
from snows_core.devices import peak_memory, resolve_device
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks, Pattern
from snows_core.methods.snows import LayerOutcome
from snows_core.network.copies import plain_copy, snapshot
from snows_core.network.memory_format import channels_last
from snows_core.provenance import images_digest, provenance, state_digest
from snows_core.result import PruneResult, check_resume
from snows_core.settings import PruneSettings, get_recipe, takes_settings
from snows_core.sweep.prepare import Prepared, checked_settings, prepare
from snows_core.sweep.refine import JointOptions, refine_result
from snows_core.sweep.select import LayerSelection
from snows_core.sweep.sweep import Sweep


@takes_settings
@plain_numerics()
def prune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = PruneSettings.pattern,
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
    recipe = get_recipe(settings.recipe)
    parts = calibration_parts(images, settings.max_images)
    prepared = prepare(model, parts, settings)
    network = prepared.network
    place = resolve_device(settings.device, next(network.module.parameters()).device)
    asked = settings.record()
    record = {name: asked.pop(name) for name in ("pattern", "k", "recipe")}
    record["calibration"] = {"images": sum(map(len, parts)), "digest": images_digest(parts)}
    record["weights"] = state_digest(prepared.model)
    if resume is not None:
        check_resume(resume, record | {"seed": settings.seed}, prepared.masks)
    placed = prepared.move(place)
    like = channels_last(network, first_images(parts, 2).to(place, next(network.module.parameters()).dtype))
    whole, order = shuffled(parts, settings.seed, like if parts[0].device == place else like.cpu())
    record["calibration"]["order"] = order.tolist()
    sweep = Sweep(network, prepared.todo, placed, settings.k, recipe, whole, settings.max_memory, settings.seed)
    sweep.run(settings.progress, _known_outcomes(resume, prepared.todo, place))
    record |= {
        "complete": not sweep.interrupted,
        "memory": {
            "batch_size": sweep.batch_size,
            "storage": str(sweep.memory.storage or place),
            "peak": peak_memory(place),
        },
        "settings": asked,
        **provenance(seed=settings.seed, device=str(place)),
    }
    result = _result(prepared, sweep, record)
    if settings.refine and not sweep.interrupted:
        joint = JointOptions(settings.refine, augment=settings.augment, seed=settings.seed, progress=settings.progress)
        refine_result(result, network, whole, joint)
    return result


@takes_settings
@plain_numerics()
def make_masks(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = PruneSettings.pattern,
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
    return prepare(model, calibration_parts(images, limit=2, few=0), settings).masks


def _known_outcomes(
    resume: PruneResult | None, todo: list[LayerSelection], device: torch.device
) -> dict[str, LayerOutcome]:
    """Return the outcomes of the layers that an interrupted run has solved already."""
    if resume is None:
        return {}
    rows = resume.report.set_index("layer")
    fields = ("loss_masked", "loss_start", "loss_end", "newton_steps", "products", "image_products", "stop", "seconds")
    return {
        entry.name: LayerOutcome(
            weight=resume.state[entry.layer.weight_name].to(device).clone(),  # aligned: rounding as in one run
            k=int(rows.loc[entry.name, "k"]),
            **{name: rows.loc[entry.name, name] for name in fields},
        )
        for entry in todo
        if entry.name in resume.masks
    }


def _result(prepared: Prepared, sweep: Sweep, record: dict[str, Any]) -> PruneResult:
    pruned = plain_copy(prepared.model)
    parameters = dict(pruned.named_parameters(remove_duplicate=False))  # a tied weight has several names
    names = {entry.name: entry.layer.weight_name for entry in prepared.plan if entry.layer is not None}
    chosen = prepared.masks
    solved = [field.name for field in fields(LayerOutcome) if field.name != "weight"]  # there whatever was solved
    rows = []
    for entry in prepared.plan:
        outcome = sweep.outcomes.get(entry.name)
        weights = int(torch.Size(entry.shape).numel()) if entry.shape else 0
        kept = int(chosen[entry.name].sum()) if outcome else weights
        row = {
            "layer": entry.name,
            "kind": entry.layer.kind.value if entry.layer is not None else "hidden",
            "shape": "x".join(map(str, entry.shape)),
            "weights": weights,
            "kept": kept,
            "sparsity": 1 - kept / weights if weights else 0.0,
            "status": "pruned" if outcome else "skipped" if entry.reason else "not reached",
            "reason": entry.reason or ("" if outcome else "interrupted"),
        }
        row |= outcome.as_row() if outcome else {"stop": ""}
        if outcome:
            with torch.no_grad():
                target = parameters[names[entry.name]]
                target.copy_(outcome.weight.to(target))
        rows.append(row)
    report = pd.DataFrame(rows, columns=[*(name for name in rows[0] if name not in solved), *solved])
    masks = {name: chosen[name].cpu() for name in sweep.outcomes}
    return PruneResult(pruned, masks, report, record, snapshot(pruned), {name: names[name] for name in sweep.outcomes})
