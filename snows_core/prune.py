"""The main entry: check, plan, sweep, and gather the result."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.calibration import calibration_batches
from snows_core.choose_k import K, read_k
from snows_core.errors import bad
from snows_core.graph import Network
from snows_core.layer_solver import LayerOutcome
from snows_core.layout import channels_last
from snows_core.masks import Masks, Pattern, Saliency, parse_pattern
from snows_core.memory import peak_memory
from snows_core.plan import LayerChoice, PlannedLayer, choose_masks, plan_layers
from snows_core.provenance import provenance, tensor_digest
from snows_core.recipe import Recipe, get_recipe
from snows_core.refine import Augment
from snows_core.refine import refine as refine_jointly
from snows_core.result import PruneResult
from snows_core.sweep import Sweep


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
            per layer by gain per cost (:mod:`snows_core.choose_k`).
        recipe: "fast" or "paper", or a :class:`~snows_core.recipe.Recipe`.
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
            3 GB of a host. Batches get smaller, graphs are rebuilt, values rest in host memory or on disk as needed.
        refine: steps of joint refinement after the sweep (:mod:`snows_core.refine`), 0 for none; it pays at high
            unstructured sparsity, and also changes scales and shifts of normalisation layers.
        augment: changes calibration images at random during refinement, for instance ``snows.flip_and_shift``.
        seed: of the curvature probes; calibration images are used in the order given.
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
    recipe = get_recipe(recipe, **options)
    if isinstance(refine, bool) or not isinstance(refine, int) or refine < 0:
        raise bad("refine", refine, "a number of steps >= 0")
    if augment is not None and not callable(augment):
        raise bad("augment", type(augment).__name__, "a function of (images, generator)")
    k = read_k(k)
    pattern = parse_pattern(pattern)
    network = Network(model, leaf_modules)
    home = next(model.parameters()).device
    place = resolve_device(device, home)
    batches = calibration_batches(images, recipe.batch_size, place, max_images)
    plan = plan_layers(network, model, batches[0][:2].to(home), layers, exclude, keep_ends=masks is None)
    plan, chosen = choose_masks(network, plan, pattern, saliency, masks)
    whole = torch.cat(batches)
    record = {
        "pattern": str(pattern) if masks is None else "given masks",
        "k": k,
        "recipe": asdict(recipe),
        "calibration": {"images": len(whole), "digest": tensor_digest(whole)},
    }
    if resume is not None:
        _check_resume(resume, chosen, record | {"seed": seed})
    network.module.to(place)
    whole = channels_last(network, whole)
    todo = [entry for entry in plan if not entry.reason]
    placed = {name: mask.to(place) for name, mask in chosen.items()}
    sweep = Sweep(network, todo, placed, k, recipe, whole, max_memory, seed)
    sweep.run(progress, _known_outcomes(resume, todo, place))
    record |= {
        "complete": not sweep.interrupted,
        "memory": {
            "batch_size": sweep.batch_size,
            "storage": str(sweep.memory.storage or place),
            "peak": peak_memory(place),
        },
        **provenance(seed=seed, device=str(place)),
    }
    result = _result(model, plan, chosen, sweep, record)
    if refine and not sweep.interrupted:
        _refine_result(result, network, whole, refine, augment, seed, progress)
    return result


def _refine_result(
    result: PruneResult,
    network: Network,
    images: Tensor,
    steps: int,
    augment: Augment | None,
    seed: int,
    progress: bool,
) -> None:
    """Refine a result's weights jointly, in place."""
    done = refine_jointly(
        network, result.model, result.masks, result.weight_names, images,
        steps=steps, augment=augment, seed=seed, progress=progress,
    )  # fmt: skip
    parameters = dict(result.model.named_parameters())
    with torch.no_grad():
        for name, value in done.state.items():
            parameters[name].copy_(value.to(parameters[name]))
    result.state = {name: tensor.detach() for name, tensor in result.model.state_dict().items()}
    result.manifest["refinement"] = {
        "steps": done.steps,
        "loss": list(done.loss),
        "augment": None if augment is None else getattr(augment, "__name__", str(augment)),
    }


def make_masks(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = "2:4",
    *,
    saliency: str | Saliency = "magnitude",
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
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

    Returns:
        Layer name to bool tensor; ``snows.apply_masks(model, masks)`` is then pruning without any re-fit.

    Raises:
        SnowsError: as :func:`prune`.
    """
    pattern = parse_pattern(pattern)
    network = Network(model, leaf_modules)
    example = calibration_batches(images, 2, next(model.parameters()).device, limit=2, few=0)[0]
    plan = plan_layers(network, model, example, layers, exclude)
    return choose_masks(network, plan, pattern, saliency)[1]


def resolve_device(device: torch.device | str | None, home: torch.device) -> torch.device:
    """Return the device to compute on: ``home`` unless another one is named.

    Raises:
        SnowsError: when this machine does not have it.
    """
    if device is None:
        return home
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise bad("device", repr(device), f"a device of this machine ({reason})", 'For instance "cpu".') from error


def _check_resume(resume: PruneResult, masks: Masks, record: dict[str, Any]) -> None:
    for key, value in json.loads(json.dumps(record)).items():
        if json.loads(json.dumps(resume.manifest.get(key))) != value:
            raise bad("resume", f"a result with another {key}", "an interrupted result of the same call")
    for name, mask in resume.masks.items():
        if name not in masks or not torch.equal(masks[name].cpu(), mask.cpu()):
            raise bad("resume", f"a result with another mask for '{name}'", "an interrupted result of the same call")


def _known_outcomes(
    resume: PruneResult | None, todo: list[PlannedLayer], device: torch.device
) -> dict[str, LayerOutcome]:
    """Return the outcomes of the layers that an interrupted run has solved already."""
    if resume is None:
        return {}
    rows = resume.report.set_index("layer")
    fields = ("loss_masked", "loss_start", "loss_end", "newton_steps", "products", "image_products", "stop")
    return {
        entry.name: LayerOutcome(
            weight=resume.state[entry.layer.weight_name].to(device).clone(),  # aligned: rounding as in one run
            k=int(rows.loc[entry.name, "k"]),
            **{name: rows.loc[entry.name, name] for name in fields},
        )
        for entry in todo
        if entry.name in resume.masks
    }


def _result(
    model: nn.Module, plan: list[PlannedLayer], chosen: Masks, sweep: Sweep, record: dict[str, Any]
) -> PruneResult:
    pruned = copy.deepcopy(model)
    parameters = dict(pruned.named_parameters())
    names = {entry.name: entry.layer.weight_name for entry in plan if entry.layer is not None}
    rows = []
    for entry in plan:
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
        if outcome:
            row |= outcome.as_row()
            with torch.no_grad():
                target = parameters[names[entry.name]]
                target.copy_(outcome.weight.to(target))
        rows.append(row)
    report = pd.DataFrame(rows)
    masks = {name: chosen[name].cpu() for name in sweep.outcomes}
    state = {name: tensor.detach() for name, tensor in pruned.state_dict().items()}
    return PruneResult(pruned, masks, report, record, state, {name: names[name] for name in sweep.outcomes})
