"""What pruning will cost, before anything is pruned: seconds, products and peak memory per layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.devices import resolve_device
from snows_core.errors import invalid_argument
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Pattern, Saliency, parse_pattern
from snows_core.methods.choose_k import K, ladder, read_k
from snows_core.methods.enough import Enough, enough_for
from snows_core.methods.snows import Snows
from snows_core.network.memory_format import channels_last
from snows_core.settings import Recipe, get_recipe
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors
from snows_core.sweep.choice import LayerChoice
from snows_core.sweep.memory import Probe, memory_budget, plan_memory, probe_layers, shortest
from snows_core.sweep.prepare import Choice, arguments_of, prepare

# Mean over the layers of ResNet-20 on CIFAR-10 and of the digits networks; tests/benchmarks compares with real runs.
PRODUCTS_PER_LAYER = 7.0
LINEARISATIONS_PER_LAYER = 1.2
REPEATS = 3
# Images of the two measurements, and of a third in place of the second where a product takes less than SHORT seconds:
# fixed costs and noise would hide what an image costs.
FEW = (2, 8, 32)
SHORT = 0.02


@plain_numerics()
def estimate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: Pattern | str | float = "2:4",
    *,
    count: int | None = None,
    k: K | None = None,
    recipe: str | Recipe = "fast",
    masks: Mapping[str, Tensor] | nn.Module | None = None,
    saliency: str | Saliency = "magnitude",
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    device: torch.device | str | None = None,
    max_memory: float | None = None,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """Foretell the cost of :func:`snows_core.prune.prune` with the same arguments.

    Every layer's product is timed on two small batches (2 and 8 images, or 32 in a small network); the line through
    the two gives the cost per image and the fixed cost. Row factors are timed once for each size of layer. How many
    products a layer will take is not knowable beforehand: the recipe "fast" is charged its measured mean (7 a layer),
    "paper" its cap.

    Args:
        model: network in eval mode; not changed.
        images: a few example images; up to 32 are used.
        pattern: as in ``prune``.
        count: how many calibration images the run will have; default: as many as given.
        k: as in ``prune``; "auto" is charged the longest segment it may choose, an upper bound.
        recipe: as in ``prune``.
        masks: as in ``prune``.
        saliency: as in ``prune``.
        layers: as in ``prune``.
        exclude: as in ``prune``.
        leaf_modules: as in ``prune``.
        device: as in ``prune``.
        max_memory: as in ``prune``.
        seed: as in ``prune``.
        **options: as in ``prune``.

    Returns:
        One row per layer to be pruned: layer, k, products, image_products, seconds, graph_bytes (what the graphs of a
        layer take), peak_bytes (with resting values, beside the network itself).

    Raises:
        SnowsError: as ``prune``.
    """
    recipe = get_recipe(recipe, arguments_of(estimate), **options)
    k = read_k(k)
    choice = Choice(parse_pattern(pattern), saliency, masks, layers, exclude, leaf_modules, seed)
    parts = calibration_parts(images, FEW[-1] if count is not None else None, few=0)
    count = sum(map(len, parts)) if count is None else count
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise invalid_argument("count", repr(count), "an integer >= 1")
    prepared = prepare(model, parts, choice)
    network = prepared.network
    place = resolve_device(device, next(network.module.parameters()).device)
    masks = prepared.move(place)
    needs = Snows(recipe, k).needs
    segments = {e.name: ladder(network, e.layer, k, recipe.taps)[-1] for e in prepared.layers}
    example = first_images(parts, FEW[-1]).to(place, next(network.module.parameters()).dtype)
    example = channels_last(network, example)
    few, many = (min(size, len(example)) for size in FEW[:2])
    small = probe_layers(network, segments, masks, example[:few], needs.loss, REPEATS)
    large = probe_layers(network, segments, masks, example[:many], needs.loss, REPEATS)
    if len(example) > many and sum(probe.product for probe in large.values()) * many < SHORT * len(large):
        many = len(example)
        large = probe_layers(network, segments, masks, example, needs.loss, REPEATS)
    memory = plan_memory(large, count, recipe.batch_size, memory_budget(max_memory, place), place)
    rows: list[dict[str, Any]] = []
    known: dict[tuple[int, ...], float] = {}
    curvature = recipe.newton.curvature_images
    for name, segment in segments.items():
        lines = _lines(small[name], few, large[name], many)
        closed = segment.k == 0 and recipe.warm_start
        enough = None if closed else Enough(curvature=curvature)
        if segment.k:
            enough = enough_for(recipe, masks[name], large[name].positions, count)
        cost = _cost(lines, large[name], count, memory.batch_size, recipe, enough)
        if recipe.warm_start or recipe.precondition:
            cost["seconds"] += _factor_seconds(masks[name].flatten(1), memory.factors, known)
        rows.append({"layer": name, "k": segment.k, **cost})
    return pd.DataFrame(rows)


def _factor_seconds(mask: Tensor, max_bytes: float, known: dict[tuple[int, ...], float]) -> float:
    """Return the seconds of a layer's row factors and its least-squares start, which no image changes."""
    key = (*mask.shape, int(mask.sum(1).max()))
    if key not in known:
        gram = torch.eye(mask.shape[1], device=mask.device)[None]

        def start() -> Tensor:
            return masked_least_squares(RowFactors(gram, mask, max_bytes=max_bytes), mask.to(gram.dtype))

        known[key] = shortest(start, 1, mask.device)
    return known[key]


def _lines(small: Probe, few: int, large: Probe, many: int) -> Mapping[str, tuple[float, float]]:
    """Return (seconds per batch, seconds per image) of a linearisation and of a product."""
    lines = {}
    for name in ("linearise", "product"):
        first, second = getattr(small, name) * few, getattr(large, name) * many
        slope = max(second - first, 0.0) / (many - few) if many > few else second / many
        lines[name] = (max(first - few * slope, 0.0), slope)
    return lines


def _cost(
    lines: Mapping[str, tuple[float, float]],
    probe: Probe,
    count: int,
    batch_size: int,
    recipe: Recipe,
    enough: Enough | None,
) -> dict[str, float]:
    """Return a layer's row; ``enough`` is None where it is solved in closed form, without a product."""
    batches = -(-count // (recipe.batch_size if recipe.mini_batches else batch_size))
    if enough is None:
        products, linearisations, every, curved = 0.0, 0.0, float(count), 0.0
    elif recipe.mini_batches:
        steps = recipe.passes * batches
        products, linearisations = float(recipe.newton.cg_iterations * steps), float(steps)
        every = curved = count / batches
    else:
        products = min(PRODUCTS_PER_LAYER, float(recipe.newton.cg_iterations * recipe.newton.steps))
        linearisations, every = LINEARISATIONS_PER_LAYER, _rounded(enough.loss, count, batch_size)
        curved = _rounded(enough.curvature, every, batch_size)

    def seconds(name: str, times: float, images: float) -> float:
        fixed, per_image = lines[name]
        return times * (fixed * -(-images // batch_size) + per_image * images)

    graph = probe.graph * curved
    # Beside products: two evaluations and the curvature probe, each about half a linearisation.
    total = seconds("product", products, curved) + seconds("linearise", linearisations + 1.5, every)
    return {
        "products": products,
        "image_products": products * curved,
        "seconds": total,
        "graph_bytes": graph,
        "peak_bytes": graph + probe.live * count,
    }


def _rounded(images: int | None, count: float, batch_size: int) -> float:
    """Return the images that whole batches hold."""
    return float(count) if images is None else min(float(count), float(-(-images // batch_size) * batch_size))
