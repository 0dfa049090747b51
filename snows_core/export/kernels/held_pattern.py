"""Which pattern of zeros a weight really holds, whatever it was meant to be.

Hardware reads 2:4 as "at most two of every four consecutive inputs": 1:4, 1:8 and 2:8 comply with it, 4:8 does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from snows_core.export.kernels.rules import PATTERNS
from snows_core.masks.patterns import NM

_LENGTHS = (2, 4, 8, 16, 32)  # groups that are looked for
_TIGHT = 0.9  # kept weights, as a share of those that an N:M allows, from which on a weight counts as N:M
_DENSE = 0.95  # share of kept weights from which on zeros are taken for chance: trained networks have some
_ENDS = ", which brings no speed on these kernels"


@dataclass(frozen=True)
class Held:
    """What a weight holds.

    Attributes:
        label: a word for tables: "2:4", "1:4", "unstructured", "channels", "dense" (or with a few zeros by chance).
        zeros: share of its weights that are zero.
        patterns: which of the patterns that hardware computes with it holds.
        sentence: the label in words, with what it means for speed where no pattern is held.
    """

    label: str
    zeros: float
    patterns: frozenset[str]
    sentence: str


def most_of(nonzero: Tensor, length: int) -> int | None:
    """Return the most weights that a group of consecutive inputs keeps; None where inputs do not divide into groups.

    Args:
        nonzero: bool, (out, in, *kernel).
        length: of a group.
    """
    if nonzero.shape[1] % length:
        return None
    last = nonzero.movedim(1, -1)  # (out, *kernel, in)
    return int(last.reshape(-1, length).sum(1).max()) if nonzero.numel() else 0


def held_pattern(weight: Tensor) -> Held:
    """Return what a weight (out, in, *kernel) holds.

    >>> import torch
    >>> held_pattern(torch.tensor([[1.0, 0.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0]])).label
    '1:4'
    >>> held_pattern(torch.tensor([[1.0, 0.0, 0.0, 2.0]])).patterns >= {"2:4", "1:2"}
    True
    """
    nonzero = weight != 0
    kept = int(nonzero.count_nonzero()) / max(1, nonzero.numel())
    patterns = frozenset(text for text in PATTERNS if _holds(nonzero, text))
    label = _label(nonzero, kept, patterns)
    return Held(label, 1 - kept, patterns, _sentence(nonzero, label, 1 - kept, patterns))


def _holds(nonzero: Tensor, text: str) -> bool:
    n, m = map(int, text.split(":"))
    most = most_of(nonzero, m)
    return most is not None and most <= n


def _label(nonzero: Tensor, kept: float, patterns: frozenset[str]) -> str:
    if kept == 1:
        return "dense"
    if kept == 0:
        return "all zero"
    best = ""
    ratio = 1.0
    for length in _LENGTHS:
        most = most_of(nonzero, length)
        if most and most / length < ratio and kept >= _TIGHT * most / length:
            best, ratio = f"{most}:{length}", most / length
    if best:
        return best
    rows, columns = nonzero.flatten(1).any(1), nonzero.movedim(1, 0).flatten(1).any(1)
    if kept <= _DENSE and bool(nonzero[rows][:, columns].all()):
        return "channels"
    if "2:4" in patterns:
        return "within 2:4"
    return "dense" if kept > _DENSE else "unstructured"


def _sentence(nonzero: Tensor, label: str, zeros: float, patterns: frozenset[str]) -> str:
    inputs = nonzero.shape[1]
    if label == "dense":
        return "it is dense"
    if label == "channels":
        return f"whole channels are zero ({zeros:.0%}), which `snows compact` takes out"
    if label == "unstructured" and inputs % 4:
        return f"its {inputs} inputs do not divide into groups of four{_ENDS}"
    if label == "unstructured":
        return f"its zeros ({zeros:.0%}) are unstructured{_ENDS}"
    if "2:4" in patterns:
        return f"it is {label}"
    return f"it is {label}, with up to {most_of(nonzero, 4)} kept in a group of four{_ENDS}"


def held_by(pattern: NM, inputs: int) -> Held:
    """Return what a weight will hold that is pruned to N:M, from the pattern alone.

    Args:
        pattern: N:M along the inputs.
        inputs: of the weight.

    >>> [sorted(held_by(NM(n, m), 64).patterns) for n, m in ((1, 4), (2, 4), (4, 8))]
    [['1:2', '2:4'], ['2:4'], []]
    """
    if inputs % pattern.m:
        sentence = f"its {inputs} inputs do not divide into groups of {pattern.m}, so that it stays dense"
        return Held("dense", 0.0, frozenset(), sentence)
    held = frozenset(text for text in PATTERNS if _always(pattern, text, inputs))
    sentence = f"it would be {pattern}" + ("" if held else _ENDS)
    return Held(str(pattern), 1 - pattern.n / pattern.m, held, sentence)


def _always(pattern: NM, text: str, inputs: int) -> bool:
    """Tell whether each weight of a pattern holds the one of a text: the fullest group that it allows is looked at."""
    n, m = map(int, text.split(":"))
    if inputs % m:
        return False
    for start in range(0, math.lcm(m, pattern.m), m):
        owners = [place // pattern.m for place in range(start, start + m)]
        if sum(min(pattern.n, owners.count(owner)) for owner in set(owners)) > n:
            return False
    return True
