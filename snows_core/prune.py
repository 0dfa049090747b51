"""The main entry: check, plan, sweep, and gather the result."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from snows_core.activations.calibration import calibration_parts, first_images, shuffled
from snows_core.activations.offload import remove_abandoned
from snows_core.devices import peak_memory, resolve_device
from snows_core.distributed import current, joined, on_main
from snows_core.errors import invalid_argument
from snows_core.files.journal import check_journal
from snows_core.interruption import interruptible
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks
from snows_core.network.determinism import deterministic_where_asked
from snows_core.network.memory_format import channels_last
from snows_core.outcome import gathered, reached_by, refine_result
from snows_core.provenance import images_digest, provenance, state_digest
from snows_core.result import PruneResult, check_resume
from snows_core.settings import PruneSettings, Sparsities, SparsityPattern, takes_settings
from snows_core.sweep.checkpoint import Checkpoint, opened_checkpoint
from snows_core.sweep.image_scores import needs_images
from snows_core.sweep.joint_problem import joint_options
from snows_core.sweep.layer_budgets import MEASURED
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.measured_allocation import measured, with_sparsities
from snows_core.sweep.network_steps import (
    check_label_count,
    chooses_network_masks,
    labels_record,
    with_labels_in_order,
)
from snows_core.sweep.prepare import Prepared, checked_settings, prepare, with_refinement
from snows_core.sweep.stages import StagedSweep
from snows_core.sweep.steps import LayerSteps

SAID_APART = ("pattern", "k", "recipe", "saliency", "mask", "update", "stages", "stage_k", "sweep_images")
"""Settings that a manifest holds under their own names, and the others under ``settings``."""


@takes_settings
@interruptible()
@plain_numerics()
@joined()
@deterministic_where_asked
def prune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | Sparsities | str | float = PruneSettings.pattern,
    *,
    resume: PruneResult | None = None,
    checkpoint_dir: str | Path | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a trained network once, without retraining, keeping the representations behind each layer.

    No method needs labels; those that take gradients of the loss can use them.

    Args:
        model: network in eval mode; not changed.
        images: calibration images as the network expects them: tensor (N, C, H, W), DataLoader, or batches.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        resume: an interrupted result of the same call; its solved layers are taken over.
        checkpoint_dir: folder that keeps what is done, layer by layer and through the joint stage: the same call, made
            again after a kill, goes on there and ends with the same result. It stays until it is removed.
        **options: single fields of the recipe, for instance ``steps=2`` or ``curvature="hessian"``.

    Returns:
        Result with the pruned model, masks, and a report with one row per layer: layer, kind, shape, weights, kept,
        sparsity, status ("pruned", "skipped", "not reached"), reason, stage (in which the row's weights were solved),
        k, loss_masked (of the masked dense weights), loss_start (where Newton starts), loss_end, newton_steps,
        products, image_products, seconds (these three over all stages), stop.
        After Ctrl-C, SIGTERM or SIGHUP the result holds the layers solved so far; the others are "not reached", and
        dense or as the stage before left them.

    Raises:
        SnowsError: on any argument that cannot work; nothing is changed then.
    """
    settings = checked_settings(prune, pattern=pattern, **options)
    if checkpoint_dir is not None:
        if resume is not None:
            fix = "The folder knows how far its run had come: leave resume out."
            raise invalid_argument("resume", "a result beside checkpoint_dir", "one of the two", fix)
        on_main(check_journal, checkpoint_dir)
    steps = layer_steps(settings)
    parts = calibration_parts(images, settings.max_images)
    check_label_count(settings, sum(map(len, parts)))
    prepared = prepare(model, parts, settings)
    settings = with_refinement(settings, prepared, sum(map(len, parts)))
    record = _record_before(prepared, parts, settings)
    asked, of_one = settings.record(), ("device", "max_memory", "progress")  # what processes may have of their own
    common = {name: value for name, value in asked.items() if name not in of_one}
    common |= {"images": record["calibration"], "model": record["weights"], "checkpoint_dir": str(checkpoint_dir)}
    current().check_same(common | record)
    if resume is not None:
        # Masks that a method chooses, or that are made from images, come with the result.
        from_images = needs_images(settings) or chooses_network_masks(settings)
        by_weights = steps.choose is None and settings.allocation != MEASURED and not from_images
        known = by_weights and len(prepared.schedule) == 1
        check_resume(resume, record | {"seed": settings.seed}, prepared.masks if known else None)
    remove_abandoned()
    with opened_checkpoint(checkpoint_dir, record, prepared, settings) as checkpoint:
        return _pruned(prepared, parts, settings, record, resume or checkpoint)


def _record_before(prepared: Prepared, parts: list[Tensor], settings: PruneSettings) -> dict[str, Any]:
    """Return what the manifest says of a run before it begins, and what has to be the same for another to go on."""
    asked = settings.record()
    return {
        **{name: asked[name] for name in SAID_APART},
        "calibration": {"images": sum(map(len, parts)), "digest": images_digest(parts)},
        "weights": state_digest(prepared.model),
        "allocation": None if settings.allocation is None else {"name": settings.allocation},
        "permutations": [done.record() for done in prepared.permutations] if settings.permute else None,
        "labels": labels_record(settings),
        "flops": None if settings.flops is None else {"at most": asked["flops"]},
    }


def _pruned(
    prepared: Prepared,
    parts: list[Tensor],
    settings: PruneSettings,
    record: dict[str, Any],
    begun: PruneResult | Checkpoint | None,
) -> PruneResult:
    """Run all stages and the joint one.

    Args:
        prepared: network, layers and masks.
        parts: calibration images; emptied.
        settings: of the run.
        record: of the manifest.
        begun: an interrupted result, or the checkpoint of a run that may have been killed.

    Returns:
        The result.
    """
    device = resolve_device(settings.device, next(prepared.network.module.parameters()).device)
    run, order = _staged_sweep(prepared, parts, layer_steps(settings), settings, device, begun)
    record["calibration"]["order"] = order.tolist()
    record["allocation"] = run.prepared.allocation
    checkpoint = begun if isinstance(begun, Checkpoint) else None
    if checkpoint is not None and not checkpoint.is_new:
        record["resumed"] = checkpoint.found
        if settings.progress:
            tqdm.write(checkpoint.words(len(run.prepared.schedule)), file=sys.stderr)
    run.run(reached_by(begun, prepared.layers, device))
    record |= {
        "complete": not run.interrupted,
        "stage_records": run.records,
        "gradients": None if run.whole is None else run.whole.record,
        "flops": None if run.whole is None or not record["flops"] else record["flops"] | run.whole.operations,
        "memory": {
            "batch_size": run.sweep.batch_size,
            "storage": str(run.sweep.memory.storage or device),
            "peak": peak_memory(device),
        },
        "settings": {name: value for name, value in settings.record().items() if name not in SAID_APART},
        **provenance(seed=settings.seed, device=str(device)),
    }
    result = gathered(run.prepared, run, record)
    if settings.refine and not run.interrupted:
        joint = joint_options(settings)
        remask = run.prepared.remask(settings) if settings.moving_masks else None
        refine_result(result, prepared.network, run.images, joint, remask, checkpoint)
    return result


@takes_settings
@plain_numerics()
@joined()
@deterministic_where_asked
def make_masks(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | Sparsities | str | float = PruneSettings.pattern,
    **options: Any,
) -> Masks:
    """Return the masks that :func:`prune` would use for one sweep (``effort="quick"``), without pruning.

    Args:
        model: network in eval mode; not changed.
        images: one or more example images, to see which layer is which; a saliency or mask that looks at images takes
            all.
        pattern: see :class:`~snows_core.settings.PruneSettings`.
        **options: single fields of the recipe; they change masks only where the saliency or mask looks at images.

    Returns:
        Layer name to bool tensor; ``snows.apply_masks(model, masks)`` is then pruning without any re-fit.

    Raises:
        SnowsError: as :func:`prune`.
    """
    settings = checked_settings(make_masks, pattern=pattern, **{"effort": "quick", **options})
    if settings.stages != 1:
        got, fix = f"{settings.stages!r}", "prune(...).masks holds those of the last stage."
        raise invalid_argument("stages", got, "1: later masks are chosen by weights re-fitted before", fix)
    if settings.permute:
        fix = "Permute first, with snows.permute_channels, and pass its model."
        raise invalid_argument("permute", "True", "False: the masks would be those of a permuted copy", fix)
    if settings.allocation == MEASURED:
        fix = "prune(..., update='none').masks holds them."
        got, expected = f"{MEASURED!r}", "another: these sparsities are chosen on the calibration images of a run"
        raise invalid_argument("allocation", got, expected, fix)
    if layer_steps(settings).choose is not None:
        fix = "prune(..., update='none').masks holds them."
        expected = "'magnitude' or a method of the whole network: other masks are chosen during the sweep"
        raise invalid_argument("mask", repr(settings.mask), expected, fix)
    if not needs_images(settings) and not chooses_network_masks(settings):
        return prepare(model, calibration_parts(images, limit=2, few=0), settings).masks
    parts = calibration_parts(images, settings.max_images)
    check_label_count(settings, sum(map(len, parts)))
    prepared = prepare(model, parts, settings)
    device = resolve_device(settings.device, next(prepared.network.module.parameters()).device)
    run, _ = _staged_sweep(prepared, parts, layer_steps(settings), settings, device)
    return {name: mask.cpu() for name, mask in run.stage_masks(1).items()}


def _staged_sweep(
    prepared: Prepared,
    parts: list[Tensor],
    steps: LayerSteps,
    settings: PruneSettings,
    device: torch.device,
    begun: PruneResult | Checkpoint | None = None,
) -> tuple[StagedSweep, Tensor]:
    """Bring network, masks and images where they are needed; return what is to be run, and the order of the images."""
    network, is_measured = prepared.network, settings.allocation == MEASURED
    checkpoint = begun if isinstance(begun, Checkpoint) else None
    known: Mapping[str, Any] | None = None if checkpoint is None else checkpoint.allocation
    if isinstance(begun, PruneResult):
        known = begun.manifest["allocation"]
    if is_measured and known is not None:
        prepared = with_sparsities(prepared, known, settings)
    placed = prepared.move(device)
    like = channels_last(network, first_images(parts, 2).to(device, next(network.module.parameters()).dtype))
    whole, order = shuffled(parts, settings.seed, like if parts[0].device == device else like.cpu())
    settings = with_labels_in_order(settings, order)
    if is_measured and known is None:
        prepared = measured(prepared, whole[: settings.sweep_images], settings)
        placed = prepared.move(device)
        if checkpoint is not None:
            checkpoint.keep_allocation(prepared.allocation or {})
    return StagedSweep(prepared, placed, steps, whole, settings, checkpoint), order
