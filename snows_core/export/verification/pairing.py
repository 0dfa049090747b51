"""Which weight each promise means, which layers are looked at, and what a caller holds them to instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from snows_core.errors import closest, invalid_argument, shown
from snows_core.export.promise import LayerPromise, Promise, share_text, support_digest
from snows_core.export.verification.stored import StoredWeight
from snows_core.export.verification.violations import check_weight
from snows_core.masks.names import Names
from snows_core.masks.patterns import Pattern, PerLayer, Structured, Unstructured, parse_pattern

Layers = str | Sequence[str] | None
Pair = tuple[LayerPromise, StoredWeight | None]


def paired(promise: Promise | None, weights: Sequence[StoredWeight]) -> tuple[list[Pair], list[StoredWeight]]:
    """Find the weights that promises mean: by the weight's name, then the layer's, then by where the zeros are.

    Args:
        promise: what is promised; None for nothing.
        weights: of the source.

    Returns:
        Each promise with its weight, several times where the file has several readings of it, None where it has none;
        the weights of which nothing is promised.
    """
    if promise is None:
        return [], list(weights)
    names = Names({weight.weight: weight.weight for weight in weights}, "source")
    found: dict[int, list[StoredWeight]] = {}
    for number, one in enumerate(promise.layers):
        key = names.find(one.weight)
        found[number] = [weight for weight in weights if weight.weight == key]
    for same in (_same_layer, _same_zeros):
        taken = {id(weight) for hits in found.values() for weight in hits}
        for number, one in enumerate(promise.layers):
            if not found[number]:
                hits = [weight for weight in weights if id(weight) not in taken and same(one, weight)]
                found[number] = hits[:1]
                taken |= {id(weight) for weight in hits[:1]}
    pairs = [(one, weight) for number, one in enumerate(promise.layers) for weight in (found[number] or (None,))]
    taken = {id(weight) for hits in found.values() for weight in hits}
    return pairs, [weight for weight in weights if id(weight) not in taken]


def _size(one: LayerPromise) -> int | None:
    shape = one.mask.shape if one.mask is not None else one.shape
    return None if shape is None else math.prod(shape)


def _same_layer(one: LayerPromise, weight: StoredWeight) -> bool:
    return weight.layer in (one.layer, one.weight.rpartition(".")[0]) and _size(one) == weight.values.numel()


def _same_zeros(one: LayerPromise, weight: StoredWeight) -> bool:
    if _size(one) != weight.values.numel() or not weight.zeros:
        return False
    if one.mask is not None:
        return one.mask.numel() - int(one.mask.sum()) == weight.zeros and check_weight(one, weight).findings == ()
    return bool(one.support) and support_digest(weight.values) == one.support


def are_chosen(items: Sequence[tuple[str, ...]], layers: Layers, exclude: Layers) -> list[bool]:
    """Tell which layers are looked at.

    Args:
        items: the names of each layer: its own, and those of its weight.
        layers: names or globs of those that are; None for all.
        exclude: names or globs of those that are not.

    Returns:
        One answer for each.

    Raises:
        SnowsError: on a name or glob that no layer has, or where none is left.
    """
    chosen = set(range(len(items))) if layers is None else _named("layers", layers, items)
    chosen -= set() if exclude is None else _named("exclude", exclude, items)
    if not chosen:
        argument = "layers" if exclude is None else "exclude"
        raise invalid_argument(argument, "a choice that leaves no layer", "at least one layer of the source")
    return [number in chosen for number in range(len(items))]


def _named(argument: str, given: Layers, items: Sequence[tuple[str, ...]]) -> set[int]:
    """Return the numbers of the items that names or globs mean."""
    if not isinstance(given, str | Sequence):
        raise invalid_argument(argument, shown(given), "names or globs of layers, as texts")
    found: set[int] = set()
    for entry in [given] if isinstance(given, str) else given:
        hits = {i for i, names in enumerate(items) if isinstance(entry, str) and PerLayer.named_by(entry, names)}
        if not hits:
            expected = f"names or globs of the {len(items)} layers of the source"
            fix = closest(entry, (names[0] for names in items)) if isinstance(entry, str) else ""
            raise invalid_argument(argument, shown(entry), expected, fix)
        found |= hits
    return found


def read_pattern(pattern: Any) -> Pattern:
    """Read a pattern that weights alone can be held to.

    Args:
        pattern: as :func:`~snows_core.masks.parse_pattern` takes it.

    Returns:
        The pattern.

    Raises:
        SnowsError: on anything else.
    """
    asked = parse_pattern(pattern)
    if isinstance(asked, Structured):
        fix = (
            "against= takes the masks of the result; without a pattern the table says which rows and columns are zero."
        )
        expected = "a pattern of single layers: weights alone do not say which rows and columns form a unit"
        raise invalid_argument("pattern", f"'{asked}'", expected, fix)
    return asked


def with_pattern(asked: Pattern, pairs: Sequence[Pair], notes: dict[str, str]) -> tuple[list[Pair], list[StoredWeight]]:
    """Hold layers to a pattern that the caller asks for, in place of what they promised.

    Args:
        asked: the pattern.
        pairs: the layers; masks and digests that they promised count on.
        notes: layer name to a note, which gets the reasons why layers cannot have the pattern.

    Returns:
        The layers of which anything is promised now; the weights of the others.

    Raises:
        SnowsError: where no layer can have the pattern.
    """
    if isinstance(asked, PerLayer):
        asked = asked.resolved([one.layer for one, _ in pairs])
    kept, others, fitting = list[Pair](), list[StoredWeight](), 0
    for one, weight in pairs:
        misfit = "" if weight is None else asked.misfit(weight.values)
        if isinstance(asked, PerLayer) and one.layer not in asked.sparsities:
            misfit = "no entry of the pattern names it"
        fitting += not misfit
        if misfit:
            notes[one.layer] = f"pattern not checked: {misfit}"
        if misfit and weight is not None and one.mask is None and not one.support:
            others.append(weight)
        else:
            kept.append((replace(one, pattern="" if misfit else _own_text(asked, one.layer)), weight))
    if not fitting:
        got = f"'{asked}', which no layer can have ({next(iter(notes.values()), 'there is none')})"
        raise invalid_argument("pattern", got, "a pattern that fits at least one layer of the source")
    return kept, others


def _own_text(asked: Pattern, layer: str) -> str:
    if isinstance(asked, PerLayer):
        return share_text(asked.sparsities[layer])
    if isinstance(asked, Unstructured) and asked.scope == "layer":
        return share_text(asked.sparsity)
    return str(asked)
