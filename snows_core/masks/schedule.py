"""Stages: the way from the dense network to a sparsity pattern, a little at a time.

Between two stages the kept weights are re-fitted, and the re-fitted weights choose the next mask. A schedule is a list
of patterns, each sparser than the one before, that ends at the pattern asked for. Gradual schedules of a mask chosen
again from updated weights are those of Zhu & Gupta 2017 (with training) and of CHITA++ (Benbaki et al. 2023, one-shot).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise

from snows_core.errors import integer, invalid_argument
from snows_core.masks.patterns import NM, Pattern, Unstructured, parse_pattern
from snows_core.settings import Stages


def schedule(pattern: Pattern, stages: Stages = 1) -> tuple[Pattern, ...]:
    """Return the patterns of all stages, the one asked for last.

    A number of stages divides the way geometrically: every stage keeps the same share of what the one before kept, so
    that a sparsity s in n stages keeps ``(1 - s)^(i / n)`` after stage i. N:M goes through milder N of the same M.

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
    listed = tuple(parse_pattern(stage) for stage in stages)
    return _checked(listed, pattern)


def most_stages(pattern: Pattern, wanted: int) -> int:
    """Return ``wanted``, or how many stages the pattern can have where that is fewer.

    >>> most_stages(NM(2, 4), 5), most_stages(Unstructured(0.9), 5)
    (2, 5)
    """
    return min(wanted, pattern.m - pattern.n) if isinstance(pattern, NM) else wanted


def _geometric(pattern: Unstructured, count: int) -> tuple[Pattern, ...]:
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
        fix = f"{other[0]} is of another kind."
        raise invalid_argument("stages", words, f"stages of the kind of the pattern, {pattern}", fix)
    if not listed or listed[-1] != pattern:
        raise invalid_argument("stages", words, f"a list that ends with the pattern, {pattern}", "Add it at the end.")
    for before, after in pairwise(listed):
        if not _kept(after) < _kept(before):
            raise invalid_argument("stages", words, "increasing sparsity", f"{after} comes after {before}.")
    return listed


def _of_one_kind(stage: Pattern, pattern: Pattern) -> bool:
    """Tell whether two patterns differ in how much they keep alone (and in the cap of a layer)."""
    if isinstance(stage, NM) and isinstance(pattern, NM):
        return stage.m == pattern.m
    if isinstance(stage, Unstructured) and isinstance(pattern, Unstructured):
        return stage.scope == pattern.scope
    return False


def _kept(pattern: Pattern) -> float:
    return pattern.n / pattern.m if isinstance(pattern, NM) else 1 - pattern.sparsity
