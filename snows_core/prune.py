"""The sweep: layers front to back, each re-fitted on its mask to keep the representations behind it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from snows_core.calibration import calibration_batches
from snows_core.errors import bad
from snows_core.graph import Network
from snows_core.layer_solver import LayerOutcome, solve_layer
from snows_core.masks import Masks, Pattern, Saliency, parse_pattern
from snows_core.plan import LayerChoice, PlannedLayer, choose_masks, plan_layers
from snows_core.provenance import provenance, tensor_digest
from snows_core.recipe import Recipe, get_recipe
from snows_core.result import PruneResult
from snows_core.stream import Stream

DEFAULT_K = 5


@dataclass
class _Sweep:
    """The state of one run over the layers."""

    network: Network
    plan: list[PlannedLayer]
    masks: Masks
    outcomes: dict[str, LayerOutcome] = field(default_factory=dict)
    interrupted: bool = False


def prune(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = "2:4",
    *,
    k: int | None = None,
    recipe: str | Recipe = "fast",
    masks: Mapping[str, Tensor] | nn.Module | None = None,
    saliency: str | Saliency = "magnitude",
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    device: torch.device | str | None = None,
    max_images: int | None = None,
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
        k: how many operations behind a layer its loss looks; 0 is layer-wise least squares; default 5.
        recipe: "fast" or "paper", or a :class:`~snows_core.recipe.Recipe`.
        masks: masks made elsewhere, used as they are instead of ``pattern``: bool tensors by layer or parameter name, or
            a pruned model or state dict whose zeros define them.
        saliency: how weights are scored: "magnitude", or a function of (name, weight).
        layers: names, globs, or a predicate of (name, module); default all convolution and linear layers but the first
            and the classifier.
        exclude: likewise, to be left dense.
        leaf_modules: modules that torch.fx must not look into (classes, names, globs).
        device: where to compute; default: where the model is. The result's model is where the model was.
        max_images: use at most this many images.
        seed: of the curvature probes; calibration images are used in the order given.
        progress: show a progress bar.
        resume: an interrupted result of the same call; its solved layers are taken over.
        **options: single fields of the recipe, for instance ``steps=2`` or ``curvature="gauss-newton"``.

    Returns:
        Result with the pruned model, masks, and a report with one row per layer: layer, kind, shape, weights, kept,
        sparsity, status ("pruned", "skipped", "not reached"), reason, k, loss_masked (loss of the masked dense weights),
        loss_start (where Newton starts), loss_end, newton_steps, products, image_products, seconds, stop.
        After Ctrl-C the result holds the layers solved so far; the others are dense and "not reached".

    Raises:
        SnowsError: on any argument that cannot work; nothing is changed then.
    """
    recipe = get_recipe(recipe, **options)
    k = DEFAULT_K if k is None else k
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise bad("k", k, "an integer >= 0", "k=0 is layer-wise least squares.")
    pattern = parse_pattern(pattern)
    network = Network(model, leaf_modules)
    place = torch.device(device) if device is not None else next(model.parameters()).device
    batches = calibration_batches(images, recipe.batch_size, place, max_images)
    home = next(model.parameters()).device
    plan = plan_layers(network, model, batches[0][:2].to(home), layers, exclude)
    plan, chosen = choose_masks(network, plan, pattern, saliency, masks)
    if resume is not None:
        _check_resume(resume, chosen)
    network.module.to(place)
    sweep = _Sweep(network, plan, {name: mask.to(place) for name, mask in chosen.items()})
    _run(sweep, batches, k, recipe, seed, progress, resume)
    count = sum(len(batch) for batch in batches)
    record = {
        "pattern": str(pattern) if masks is None else "given masks",
        "k": k,
        "recipe": asdict(recipe),
        "complete": not sweep.interrupted,
        "calibration": {"images": count, "digest": tensor_digest(torch.cat(batches))},
        **provenance(seed=seed, device=str(place)),
    }
    return _result(model, sweep, record)


def _check_resume(resume: PruneResult, masks: Masks) -> None:
    for name, mask in resume.masks.items():
        if name not in masks or not torch.equal(masks[name].cpu(), mask.cpu()):
            raise bad("resume", f"a result with another mask for '{name}'", "an interrupted result of the same call")


def _run(
    sweep: _Sweep, batches: list[Tensor], k: int, recipe: Recipe, seed: int, progress: bool, resume: PruneResult | None
) -> None:
    network = sweep.network
    pruned = Stream(network, batches)
    dense = Stream(network, batches) if recipe.targets == "dense" else pruned
    todo = [entry for entry in sweep.plan if not entry.reason]
    bar = tqdm(todo, desc="pruning", unit="layer", disable=not progress)
    generator = torch.Generator().manual_seed(seed)
    try:
        for entry in bar:
            assert entry.layer is not None  # entries without a layer carry a reason
            bar.set_postfix_str(entry.name)
            start = time.perf_counter()
            for stream in {id(pruned): pruned, id(dense): dense}.values():
                stream.advance(network.index[entry.layer.node])
            done = _taken_over(resume, entry, pruned)
            if done is None:
                done = solve_layer(network, entry, sweep.masks[entry.name], pruned, dense, k, recipe, generator)
            done.seconds = time.perf_counter() - start
            pruned.weights[entry.layer.weight_name] = done.weight
            sweep.outcomes[entry.name] = done
            bar.set_postfix_str(f"{entry.name} loss {done.loss_end:.3g} {done.seconds:.1f} s")
    except KeyboardInterrupt:
        sweep.interrupted = True
        bar.write("interrupted: the layers solved so far are kept, the others stay dense")
    finally:
        bar.close()


def _taken_over(resume: PruneResult | None, entry: PlannedLayer, stream: Stream) -> LayerOutcome | None:
    """Return the outcome of a layer that an interrupted run has solved already."""
    if resume is None or entry.name not in resume.masks or entry.layer is None:
        return None
    row = resume.report.set_index("layer").loc[entry.name]
    weight = resume.state[entry.layer.weight_name].to(stream.device)
    fields = ("loss_masked", "loss_start", "loss_end", "newton_steps", "products", "image_products", "stop")
    return LayerOutcome(weight=weight, k=int(row["k"]), **{name: row[name] for name in fields})


def _result(model: nn.Module, sweep: _Sweep, record: dict[str, Any]) -> PruneResult:
    pruned = copy.deepcopy(model)
    parameters = dict(pruned.named_parameters())
    names = {entry.name: entry.layer.weight_name for entry in sweep.plan if entry.layer is not None}
    rows = []
    for entry in sweep.plan:
        outcome = sweep.outcomes.get(entry.name)
        weights = int(torch.Size(entry.shape).numel()) if entry.shape else 0
        kept = int(sweep.masks[entry.name].sum()) if outcome else weights
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
    masks = {name: sweep.masks[name].cpu() for name in sweep.outcomes}
    state = {name: tensor.detach() for name, tensor in pruned.state_dict().items()}
    return PruneResult(pruned, masks, report, record, state, {name: names[name] for name in sweep.outcomes})
