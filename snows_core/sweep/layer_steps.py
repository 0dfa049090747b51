"""What is done with each layer, by the names of the methods that a caller gave."""

from __future__ import annotations

from dataclasses import replace

from snows_core.errors import closest, invalid_argument
from snows_core.masks.patterns import NM, Structured, Unstructured, parse_pattern
from snows_core.methods import METHODS, NETWORK_METHODS, BetweenStages, GivenWeights
from snows_core.methods.base import LayerMethod
from snows_core.settings import OWN, PruneSettings, Recipe, get_recipe
from snows_core.sweep.steps import LayerSteps

# Updates that are least squares at K = 0.
LEAST_SQUARES = ("layerwise", *(name for name, method in METHODS.items() if issubclass(method, METHODS["snows"])))
# Curvature products of the one Newton step that a layer takes between two stages: what these weights are for is the
# choice of a mask, which more products hardly change (figures/steps).
PRODUCTS_BETWEEN = 4


def layer_steps(settings: PruneSettings) -> LayerSteps:
    """Return what is done with each layer, by the names of its methods.

    Args:
        settings: what the caller asked for; ``mask`` is "magnitude" for masks that are made, or given, before the
            sweep, else a method that chooses masks, of one layer or of the whole network; ``update`` is a method that
            re-fits weights.

    Returns:
        The methods; one object where both are the same. What looks at the whole network comes before the sweep
        (:mod:`snows_core.sweep.network_steps`).

    Raises:
        SnowsError: on an unknown name, or a method that does not do what is asked of it.
    """
    mask, update = settings.mask or "magnitude", settings.update
    _check_names(mask, update)
    _check_labels(settings, mask, update)
    _check_flops(settings, mask)
    recipe, k, between_k = get_recipe(settings.recipe), settings.k, settings.stage_k or 0
    fitted: LayerMethod
    between: LayerMethod
    update = NETWORK_METHODS[update].layer_update or update if update in NETWORK_METHODS else update
    if update in NETWORK_METHODS:
        fitted, between = GivenWeights(recipe, k), GivenWeights(recipe, between_k)
    else:
        fitted, between = METHODS[update](recipe, k), _between(update, recipe, between_k)
    own_start = recipe.warm_start == OWN
    if own_start:
        _check_own_start(settings, mask)
    if mask == "magnitude":
        return LayerSteps(fitted, between=between)
    improves = mask in METHODS and METHODS[mask].improves_masks
    if settings.masks is not None and not improves:
        raise invalid_argument("mask", repr(mask), "no masks= beside it", "Masks are either given or chosen.")
    _check_groups(settings, mask)
    if mask in NETWORK_METHODS:
        return LayerSteps(fitted, between=between, own_start=own_start)
    if update in NETWORK_METHODS:
        got = f"{update!r} with mask={mask!r}, which chooses during the sweep"
        raise invalid_argument("update", got, f"masks made before the sweep, as by 'magnitude' or {update!r}")
    pattern = parse_pattern(settings.pattern)
    of_one_layer = improves or settings.allocation is not None
    if isinstance(pattern, Unstructured) and pattern.scope == "global" and not of_one_layer:
        fix = f"For instance pattern={pattern.sparsity:g}: the same share in every layer."
        raise invalid_argument("mask", f"{mask!r} with the pattern {pattern}", "a pattern of one layer", fix)
    return LayerSteps(fitted, fitted if mask == update else METHODS[mask](recipe, k), pattern, between, own_start)


def _check_names(mask: str, update: str) -> None:
    choosers = ["magnitude", *(name for name, method in METHODS.items() if method.chooses_masks)]
    updates = [name for name, method in METHODS.items() if method.updates_weights]
    whole = list(NETWORK_METHODS)
    whole_updates = [name for name, method in NETWORK_METHODS.items() if method.updates_weights]
    asked = (("update", update, updates, whole_updates), ("mask", mask, choosers, whole))
    for argument, name, known, of_the_network in asked:
        if name not in known and name not in of_the_network:
            expected = f"one of {known}, or of the whole network one of {of_the_network}"
            raise invalid_argument(argument, repr(name), expected, closest(name, [*known, *of_the_network]))


def _check_labels(settings: PruneSettings, mask: str, update: str) -> None:
    """Refuse labels that nothing would read."""
    readers = [name for name, method in NETWORK_METHODS.items() if method.reads_labels]
    if settings.labels is not None and mask not in readers and update not in readers:
        got = f"{len(settings.labels)} labels with mask={mask!r} and update={update!r}"
        raise invalid_argument("labels", got, f"a method that reads labels, one of {readers}", "Leave labels out.")


def _check_own_start(settings: PruneSettings, mask: str) -> None:
    """Refuse a start at the weights of a method that gives none."""
    re_fitting = [name for name, method in METHODS.items() if method.chooses_masks and method.updates_weights]
    re_fitting += [name for name, method in NETWORK_METHODS.items() if method.updates_weights]
    if settings.masks is not None or mask not in re_fitting:
        got = f"'{OWN}' with " + (f"mask={mask!r}" if settings.masks is None else "masks=")
        raise invalid_argument("warm_start", got, f"a mask whose method re-fits weights, one of {re_fitting}")


def _check_flops(settings: PruneSettings, mask: str) -> None:
    """Refuse a bound of operations that no method would keep."""
    if settings.flops is None:
        return
    able = [name for name, method in NETWORK_METHODS.items() if method.bounds_flops]
    if mask not in able:
        got = f"{settings.flops:g} with mask={mask!r}"
        raise invalid_argument("flops", got, f"a mask that bounds operations, one of {able}", "Leave flops out.")
    pattern = parse_pattern(settings.pattern)
    if not (isinstance(pattern, Unstructured) and pattern.scope == "global") or settings.allocation is not None:
        got = f"{settings.flops:g} with the pattern {pattern}"
        got += "" if settings.allocation is None else f" and allocation={settings.allocation!r}"
        expected = "a global pattern and no allocation, which leave open how much each layer keeps"
        raise invalid_argument("flops", got, expected, 'For instance pattern="global:0.8".')
    if settings.moving_masks:
        expected = "masks that stay in refinement: moving ones follow the pattern alone"
        raise invalid_argument("flops", f"{settings.flops:g} beside moving_masks", expected)


def _check_groups(settings: PruneSettings, mask: str) -> None:
    """Refuse N:M and structured masks of a method that cannot choose them, and others of one that only knows these."""
    pattern = parse_pattern(settings.pattern)
    choosers = {name: method for name, method in METHODS.items() if method.chooses_masks} | NETWORK_METHODS
    units = {name for name, method in NETWORK_METHODS.items() if method.chooses_units}
    if isinstance(pattern, Structured):
        able, expected = ["magnitude", *(name for name in choosers if name in units)], "a method that chooses units"
        fix = f"{able} choose whole channels, neurons and heads."
    elif isinstance(pattern, NM):
        able = ["magnitude", *(name for name, method in choosers.items() if method.chooses_groups)]
        expected, fix = "a pattern without groups", f"Of methods that choose masks, {able} know N:M."
    else:
        able = [name for name in choosers if name not in units or NETWORK_METHODS[name].chooses_weights]
        expected, fix = "a structured pattern", 'For instance pattern="structured:0.5".'
    if mask not in able:
        raise invalid_argument("mask", f"{mask!r} with the pattern {pattern}", expected, fix)


def _between(update: str, recipe: Recipe, k: int) -> LayerMethod:
    """Return the method that re-fits weights between two stages."""
    if k == 0 and update in LEAST_SQUARES:
        return BetweenStages(recipe, 0)
    if not recipe.mini_batches:
        newton = recipe.newton
        products = min(newton.cg_iterations, PRODUCTS_BETWEEN)
        recipe = replace(recipe, newton=replace(newton, steps=min(newton.steps, 1), cg_iterations=products))
    return METHODS[update](recipe, k)
