"""The main entry: check, plan, sweep, and gather the result."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images, shuffled
from snows_core.devices import peak_memory, resolve_device
from snows_core.errors import invalid_argument
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks, Pattern, Saliency, parse_pattern
from snows_core.methods.base import LayerSolution, LayerStatistics
from snows_core.methods.choose_k import K, read_k
from snows_core.network.copies import plain_copy, snapshot
from snows_core.network.graph import Network
from snows_core.network.memory_format import channels_last
from snows_core.provenance import images_digest, provenance, state_digest
from snows_core.result import PruneResult
from snows_core.settings import Recipe, get_recipe
from snows_core.sweep.choice import LayerChoice
from snows_core.sweep.prepare import Choice, Prepared, arguments_of, layer_steps, prepare
from snows_core.sweep.refine import Augment, JointOptions
from snows_core.sweep.refine import refine as refine_jointly
from snows_core.sweep.select import DenseLayer, PrunableLayer
from snows_core.sweep.sweep import Sweep


@plain_numerics()
def prune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = "2:4",
    *,
    k: K | None = None,
    recipe: str | Recipe = "fast",
    masks: Mapping[str, Tensor] | nn.Module | None = None,
    saliency: str | Saliency = "magnitude",
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    device: torch.device | str | None = None,
    max_images: int | None = None,
    max_memory: float | None = None,
    refine: int = 0,
    augment: Augment | None = None,
    seed: int = 0,
    progress: bool = True,
    resume: PruneResult | None = None,
    **options: Any,
) -> PruneResult:
    """Prune a trained network once, without labels or retraining, keeping the representations behind each layer.

    Args:
        model: network in eval mode; not changed.
        images: calibration images as the network expects them: tensor (N, C, H, W), DataLoader, or batches.
        pattern: "2:4", 0.8, "global:0.8:0.95", ``NM(2, 4)``, ``Unstructured(0.8, "global", cap=0.95)``.
        k: how many operations behind a layer its loss looks; 0 is layer-wise least squares; default 5; "auto" chooses
            per layer by gain per cost (:mod:`snows_core.methods.choose_k`).
        recipe: "fast" or "paper", or a :class:`~snows_core.settings.Recipe`.
        masks: masks made elsewhere, used as they are instead of ``pattern``: bool tensors by layer or parameter name,
            or a pruned model or state dict whose zeros define them.
        saliency: how weights are scored: "magnitude", or a function of (name, weight).
        layers: names, globs, or a predicate of (name, module); default all convolution and linear layers but the first
            and the classifier.
        exclude: likewise, to be left dense.
        leaf_modules: modules that torch.fx must not look into (classes, names, globs).
        device: where to compute; default: where the model is. The result's model is where the model was.
        max_images: use at most this many images.
        max_memory: bytes, or a fraction below 1 of what is free, for graphs and resting values; default 0.8 of a GPU,
            2.5 GB of a host. Graphs are rebuilt, values rest in host memory or on disk as needed, with the same result.
        refine: steps of joint refinement after the sweep (:mod:`snows_core.sweep.refine`), 0 for none; it pays at high
            unstructured sparsity, and also changes scales and shifts of normalisation layers.
        augment: changes calibration images at random during refinement, for instance ``snows.flip_and_shift``.
        seed: of the order of the images, of equal scores, of the curvature probes and of refinement.
        progress: show a progress bar.
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
    recipe = get_recipe(recipe, arguments_of(prune), **options)
    joint = JointOptions(refine, augment=augment, seed=seed, progress=progress)
    k = read_k(k)
    choice = Choice(parse_pattern(pattern), saliency, masks, layers, exclude, leaf_modules, seed)
    parts = calibration_parts(images, max_images)
    digest, count = images_digest(parts), sum(map(len, parts))
    prepared = prepare(model, parts, choice)
    network = prepared.network
    home = next(network.module.parameters()).device
    place = resolve_device(device, home)
    record = {
        "pattern": str(choice.pattern) if masks is None else "given masks",
        "k": k,
        "recipe": asdict(recipe),
        "calibration": {"images": count, "digest": digest},
        "weights": state_digest(prepared.model),
    }
    if resume is not None:
        _check_resume(resume, prepared.masks, record | {"seed": seed})
    placed = prepared.move(place)
    like = channels_last(network, first_images(parts, 2).to(place, next(network.module.parameters()).dtype))
    whole, order = shuffled(parts, seed, like if parts[0].device == place else like.cpu())
    record["calibration"]["order"] = order.tolist()
    steps = layer_steps("magnitude", "snows", recipe, k, choice)
    sweep = Sweep(network, prepared.layers, placed, steps, whole, max_memory, seed)
    sweep.run(progress, _known_solutions(resume, prepared.layers, place))
    record |= {
        "complete": not sweep.interrupted,
        "memory": {
            "batch_size": sweep.batch_size,
            "storage": str(sweep.memory.storage or place),
            "peak": peak_memory(place),
        },
        **provenance(seed=seed, device=str(place)),
    }
    result = _result(prepared, sweep, record)
    if refine and not sweep.interrupted:
        refine_result(result, network, whole, joint)
    return result


@plain_numerics()
def make_masks(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = "2:4",
    *,
    saliency: str | Saliency = "magnitude",
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    seed: int = 0,
) -> Masks:
    """Return the masks that :func:`prune` would use, without pruning.

    Args:
        model: network in eval mode; not changed.
        images: one or more example images, to see which layer is which.
        pattern: as in :func:`prune`.
        saliency: as in :func:`prune`.
        layers: as in :func:`prune`.
        exclude: as in :func:`prune`.
        leaf_modules: as in :func:`prune`.
        seed: decides between equal scores, as in :func:`prune`.

    Returns:
        Layer name to bool tensor; ``snows.apply_masks(model, masks)`` is then pruning without any re-fit.

    Raises:
        SnowsError: as :func:`prune`.
    """
    choice = Choice(parse_pattern(pattern), saliency, None, layers, exclude, leaf_modules, seed)
    return prepare(model, calibration_parts(images, limit=2, few=0), choice).masks


def _check_resume(resume: PruneResult, masks: Masks, record: dict[str, Any]) -> None:
    for key, value in json.loads(json.dumps(record)).items():
        known = json.loads(json.dumps(resume.manifest.get(key)))
        if isinstance(value, dict) and isinstance(known, dict):  # a saved record may say more, of where images are from
            known = {name: known.get(name) for name in value}
        if known != value:
            words = {"weights": "dense weights", "calibration": "calibration images"}.get(key, key)
            raise invalid_argument("resume", f"a result with another {words}", "an interrupted result of the same call")
    for name, mask in resume.masks.items():
        if name not in masks or not torch.equal(masks[name].cpu(), mask.cpu()):
            raise invalid_argument(
                "resume", f"a result with another mask for '{name}'", "an interrupted result of the same call"
            )


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


def refine_result(result: PruneResult, network: Network, images: Tensor, options: JointOptions) -> None:
    """Refine a result's weights in place and say so in its manifest; a failure leaves the weights of the sweep."""
    record: dict[str, Any] = {
        "steps": 0,
        "augment": None if options.augment is None else getattr(options.augment, "__name__", str(options.augment)),
    }
    result.manifest["refinement"] = record
    try:
        done = refine_jointly(network, result.model, result.masks, result.weight_names, images, options)
    except (RuntimeError, KeyboardInterrupt) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        record["failed"] = reason
        warnings.warn(f"refine: failed ({reason}); the weights are those of the sweep", stacklevel=3)
        return
    parameters = dict(result.model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in done.state.items():
            parameters[name].copy_(value.to(parameters[name]))
    result.state = snapshot(result.model)
    record |= {"steps": done.steps, "loss": list(done.loss), "interrupted": done.steps < options.steps}
