"""Stages: the way from the dense network to a sparsity pattern, a little at a time.

Between two stages the kept weights are re-fitted, and the re-fitted weights choose the next mask. A schedule is a list
of patterns, each sparser than the one before, that ends at the pattern asked for. Gradual schedules of a mask chosen
again from updated weights are those of Zhu & Gupta 2017 (with training) and of CHITA++ (Benbaki et al. 2023, one-shot).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from snows_core.errors import SnowsError, integer, invalid_argument, shown
from snows_core.masks.patterns import NM, Pattern, PerLayer, Structured, Unstructured, parse_pattern
from snows_core.settings import Stages


def schedule(pattern: Pattern, stages: Stages = 1) -> tuple[Pattern, ...]:
    """Return the patterns of all stages, the one asked for last.

    A number of stages divides the way geometrically: every stage keeps the same share of what the one before kept, so
    that a sparsity s in n stages keeps ``(1 - s)^(i / n)`` after stage i, in each layer where each has its own s. N:M
    goes through milder N of the same M.

    Args:
        pattern: the pattern of the last stage.
        stages: how many, or all of them as patterns of the same kind, or as texts that name patterns.

    Returns:
        One pattern a stage.

    Raises:
        SnowsError: on more stages than N:M has steps, or on a list that does not lead to the pattern.

    >>> [str(stage) for stage in schedule(NM(1, 4), 3)]
    ['3:4', '2:4', '1:4']
    >>> [str(stage) for stage in schedule(parse_pattern("global:0.9"), ["global:0.5", "global:0.8", "global:0.9"])]
    ['unstructured 0.5 global', 'unstructured 0.8 global', 'unstructured 0.9 global']
    """
    if isinstance(stages, str) or not isinstance(stages, Iterable):
        count = integer("stages", stages, 1, "a number of stages", ", or a list of patterns")
        return _milder(pattern, count) if isinstance(pattern, NM) else _geometric(pattern, count)
    return _checked(tuple(map(_read, stages)), pattern)


def _read(stage: Any) -> Pattern:
    """Return the pattern of one stage."""
    try:
        return parse_pattern(stage)
    except SnowsError as error:
        raise invalid_argument(
            "stages", f"{shown(stage)} among them", "patterns", f"It was refused: {error}"
        ) from error


def most_stages(pattern: Pattern, wanted: int) -> int:
    """Return ``wanted``, or how many stages the pattern can have where that is fewer.

    >>> most_stages(NM(2, 4), 5), most_stages(Unstructured(0.9), 5)
    (2, 5)
    """
    return min(wanted, pattern.m - pattern.n) if isinstance(pattern, NM) else wanted


def allocated(stages: Sequence[Pattern], shares: PerLayer) -> tuple[Pattern, ...]:
    """Return the stages of an overall sparsity with a sparsity of its own for each layer.

    Where a stage keeps the share ``c^t`` of all weights and the last one c, a layer that keeps the share d in the last
    one keeps ``d^t``.

    Args:
        stages: from :func:`schedule`, of one sparsity for all.
        shares: what each layer loses in the last.

    >>> [str(stage) for stage in allocated(schedule(Unstructured(0.75), 2), PerLayer({"a": 0.64, "b": 0.84}))]
    ['a=0.4,b=0.6', 'a=0.64,b=0.84']
    """
    last = math.log(_kept(stages[-1]))
    return (*(shares.towards(math.log(_kept(stage)) / last) for stage in stages[:-1]), shares)


def share_at(share: float, stage: Pattern, last: Pattern) -> float:
    """Return what share a stage may keep of something of which the last one keeps ``share``, as weights go.

    Where a stage keeps the share ``c^t`` of all weights and the last one c, it is ``share^t``.

    Args:
        share: of the last stage, in (0, 1).
        stage: one sparsity for all.
        last: pattern of the last stage.

    >>> round(share_at(0.16, Unstructured(0.5), Unstructured(0.75)), 12)
    0.4
    """
    return math.exp(math.log(share) * math.log(_kept(stage)) / math.log(_kept(last)))


def _geometric(pattern: Unstructured | PerLayer | Structured, count: int) -> tuple[Pattern, ...]:
    if isinstance(pattern, PerLayer):
        return (*(pattern.towards(i / count) for i in range(1, count)), pattern)
    kept = 1 - pattern.sparsity
    milder = (1 - kept ** (i / count) for i in range(1, count))
    return (*(replace(pattern, sparsity=round(sparsity, 6)) for sparsity in milder), pattern)


def _milder(pattern: NM, count: int) -> tuple[Pattern, ...]:
    """Return N:M stages, their N as close to geometric as whole numbers allow, each smaller than the one before."""
    most = most_stages(pattern, count)
    if count > most:
        fix = f"At most {most}: {', '.join(f'{n}:{pattern.m}' for n in range(pattern.m - 1, pattern.n - 1, -1))}."
        raise invalid_argument("stages", count, f"no more stages than {pattern} has steps", fix)
    kept = [pattern.n]
    for i in range(count - 1, 0, -1):  # from the last stage back: each keeps at least one more
        share = pattern.m * (pattern.n / pattern.m) ** (i / count)
        kept.insert(0, min(max(round(share), kept[0] + 1), pattern.m - i))
    return tuple(NM(n, pattern.m) for n in kept)


def _checked(listed: tuple[Pattern, ...], pattern: Pattern) -> tuple[Pattern, ...]:
    """Refuse a list that mixes kinds, is not increasing, or ends elsewhere than the pattern."""
    words = f"[{', '.join(map(str, listed))}]"
    if other := [stage for stage in listed if not _of_one_kind(stage, pattern)]:
        detail = " or names other layers" if isinstance(pattern, PerLayer) else ""
        fix = f"{other[0]} is of another kind{detail}."
        raise invalid_argument("stages", words, f"stages of the kind of the pattern, {pattern}", fix)
    if not listed or listed[-1] != pattern:
        raise invalid_argument("stages", words, f"a list that ends with the pattern, {pattern}", "Add it at the end.")
    for before, after in pairwise(listed):
        if not _sparser(after, before):
            raise invalid_argument("stages", words, "increasing sparsity", f"{after} comes after {before}.")
    return listed


def _of_one_kind(stage: Pattern, pattern: Pattern) -> bool:
    """Tell whether two patterns differ in how much they keep alone (and in the cap of a layer), not in which layers."""
    if isinstance(stage, NM) and isinstance(pattern, NM):
        return stage.m == pattern.m
    if isinstance(stage, Structured) and isinstance(pattern, Structured):
        return True
    if isinstance(stage, Unstructured) and isinstance(pattern, Unstructured):
        return stage.scope == pattern.scope
    if isinstance(stage, PerLayer) and isinstance(pattern, PerLayer):
        return stage.sparsities.keys() == pattern.sparsities.keys()
    return False


def _sparser(after: Pattern, before: Pattern) -> bool:
    """Tell whether a stage takes away more than the one before, and from no layer less."""
    if isinstance(after, PerLayer) and isinstance(before, PerLayer):
        gains = [after.sparsities[name] - sparsity for name, sparsity in before.sparsities.items()]
        return min(gains) >= 0 and max(gains) > 0
    return _kept(after) < _kept(before)


def _kept(pattern: Pattern) -> float:
    if isinstance(pattern, PerLayer):
        raise TypeError("layers of several sizes: no share of all weights is known")
    return pattern.n / pattern.m if isinstance(pattern, NM) else 1 - pattern.sparsity
