"""Where a weight breaks what is promised of it, and what pattern it really has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from snows_core.export.promise import LayerPromise, known_pattern, support_digest
from snows_core.export.verification.stored import StoredWeight
from snows_core.masks.lowest import exactly
from snows_core.masks.patterns import NM, Pattern, Unstructured

GROUP_SIZES = (2, 4, 8, 16, 32)
"""Sizes of groups that are looked for in a weight of which nothing is known."""
BY_CHANCE = 0.1  # share of zeros beyond those that N:M asks for; with more, N:M holds by chance or not on purpose


@dataclass(frozen=True, eq=False)
class Finding:
    """One way in which a weight breaks its promise, at one place or many.

    Attributes:
        layer: name of the layer.
        weight: name of the tensor in the file; empty where it is not there.
        kind: "pattern", "mask", "support", "zeros", "cap", "not finite", "shape", "missing" or "promise".
        sentence: what is wrong; at places with ``{index}``, ``{value}`` and ``{where}`` for those of each.
        index: (n, axes) places in the file's tensor; None for what concerns the weight as a whole.
        own: (n, axes) the same as (output, input, *kernel position).
        values: (n,) what stands there.
        width: how many inputs from that place on are meant.
    """

    layer: str
    weight: str
    kind: str
    sentence: str
    index: Tensor | None = None
    own: Tensor | None = None
    values: Tensor | None = None
    width: int = 1

    @property
    def count(self) -> int:
        """How many violations it stands for."""
        return 1 if self.index is None else len(self.index)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each place: layer, weight, kind, index, words."""
        common = {"layer": self.layer, "weight": self.weight, "kind": self.kind}
        if self.index is None or self.own is None or self.values is None:
            yield {**common, "index": (), "words": self.sentence}
            return
        for index, own, value in zip(self.index, self.own, self.values, strict=True):
            place = tuple(index.tolist())
            shown = f"{self.weight}[{', '.join(map(str, place))}]"
            where = _where(own.tolist(), self.width)
            words = self.sentence.format(index=shown, where=where, value=f"{value.item():.6g}")
            yield {**common, "index": place, "words": words}


def _where(own: Sequence[int], width: int) -> str:
    """Return words for some inputs of an output.

    >>> _where([3, 4, 0, 2], 4)
    'inputs 4 to 7 of output 3 at kernel position (0, 2)'
    """
    output, first, *kernel = own
    inputs = f"inputs {first} to {first + width - 1}" if width > 1 else f"input {first}"
    return f"{inputs} of output {output}" + (f" at kernel position ({', '.join(map(str, kernel))})" if kernel else "")


@dataclass(frozen=True, eq=False)
class Checked:
    """A weight beside its promise.

    Attributes:
        promise: what is promised; None where nothing is.
        weight: what is there; None where it is not.
        findings: what does not hold.
    """

    promise: LayerPromise | None
    weight: StoredWeight | None
    findings: tuple[Finding, ...] = field(default=())


def check_weight(promise: LayerPromise, weight: StoredWeight | None) -> Checked:
    """Hold a weight against what is promised of it.

    Args:
        promise: its pattern, and mask or digest where these are known.
        weight: as a file holds it; None where no file does.

    Returns:
        Both, with what does not hold.
    """
    name = weight.weight if weight is not None else ""
    found = [Finding(promise.layer, name, "promise", promise.fault)] if promise.fault else []
    if weight is None:
        words = f"the layer is promised, but there is no weight '{promise.weight}'"
        return Checked(promise, None, (*found, Finding(promise.layer, promise.weight, "missing", words)))
    if (wrong := _shape_fault(promise, weight)) is not None:
        return Checked(promise, weight, (*found, wrong))
    found += filter(None, [_not_finite(promise, weight), _off_mask(promise, weight)])
    if (pattern := known_pattern(promise.pattern)) is not None:
        found += filter(None, [_off_pattern(promise, weight, pattern)])
    if promise.zeros is not None or promise.support:
        found += filter(None, [_other_support(promise, weight)])
    return Checked(promise, weight, tuple(found))


def _shape_fault(promise: LayerPromise, weight: StoredWeight) -> Finding | None:
    """Return that sizes differ; axes of size one may come and go, as where a 1 x 1 convolution is a product."""
    want = tuple(promise.mask.shape) if promise.mask is not None else promise.shape
    have = tuple(weight.values.shape)
    if want is None or [size for size in want if size != 1] == [size for size in have if size != 1]:
        return None
    words = f"it has the shape {_times(have)} in the order of PyTorch, where {_times(want)} is promised"
    return Finding(promise.layer, weight.weight, "shape", words)


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


def _at(promise: LayerPromise, weight: StoredWeight, kind: str, sentence: str, bad: Tensor) -> Finding | None:
    """Return a finding of the places where ``bad``, bool of the values' shape, is True."""
    positions = bad.flatten().nonzero().flatten()
    if not len(positions):
        return None
    index, own = weight.stored_index(positions), weight.own_index(positions)
    return Finding(promise.layer, weight.weight, kind, sentence, index, own, weight.values.flatten()[positions])


def _not_finite(promise: LayerPromise, weight: StoredWeight) -> Finding | None:
    return _at(promise, weight, "not finite", "{index} is {value}", ~weight.values.isfinite())


def _off_mask(promise: LayerPromise, weight: StoredWeight) -> Finding | None:
    if promise.mask is None:
        return None
    bad = (weight.values != 0) & ~promise.mask.cpu().reshape(weight.values.shape)
    return _at(promise, weight, "mask", "{index} is {value}, where the mask has a zero ({where})", bad)


def _off_pattern(promise: LayerPromise, weight: StoredWeight, pattern: Pattern) -> Finding | None:
    """Return where a pattern of single layers does not hold; structured and global ones are seen elsewhere."""
    if isinstance(pattern, NM):
        return _full_groups(promise, weight, pattern)
    if isinstance(pattern, Unstructured) and pattern.scope == "layer":
        size = weight.values.numel()
        wanted = min(round(exactly(pattern.sparsity) * size), size - 1)
        if weight.zeros < wanted - _rounding(promise, weight):
            words = f"{weight.zeros:,} of {size:,} weights are zero, where {pattern} promises {wanted:,}"
            return Finding(promise.layer, weight.weight, "pattern", words)
    return None


def _rounding(promise: LayerPromise, weight: StoredWeight) -> int:
    """Return how many zeros may be missing: none, unless a mask or digest says where all are.

    Methods that rank within an output, as Wanda does, round in each; so do shares of an overall sparsity in a layer.
    """
    made = promise.mask is not None or bool(promise.support)
    return -(-len(weight.values) // 2) if made else 0


def _full_groups(promise: LayerPromise, weight: StoredWeight, pattern: NM) -> Finding | None:
    """Return the groups along the inputs that have too many weights other than zero."""
    if misfit := pattern.misfit(weight.values):
        return Finding(promise.layer, weight.weight, "pattern", f"it cannot hold {pattern}: {misfit}")
    counts = group_counts(weight.values, pattern.m)  # (out, *kernel, in / m)
    out, *kernel, group = (counts > pattern.n).nonzero(as_tuple=True)
    if not len(out):
        return None
    positions = out * weight.values.shape[1] + group * pattern.m
    for place, size in zip(kernel, weight.values.shape[2:], strict=True):
        positions = positions * size + place
    sentence = f"{{where}}: {{value}} of {pattern.m} weights are not zero, {pattern} allows {pattern.n}"
    sentence += " ({index} is the first place)"
    index, own = weight.stored_index(positions), weight.own_index(positions)
    return Finding(promise.layer, weight.weight, "pattern", sentence, index, own, counts[counts > pattern.n], pattern.m)


def group_counts(values: Tensor, m: int) -> Tensor:
    """Return how many of every ``m`` consecutive inputs are not zero, (out, *kernel, in / m)."""
    last = (values != 0).movedim(1, -1)  # (out, *kernel, in)
    return last.reshape(*last.shape[:-1], last.shape[-1] // m, m).sum(-1)


def _other_support(promise: LayerPromise, weight: StoredWeight) -> Finding | None:
    """Return that zeros stand elsewhere than where the file was written, or are fewer where rounding adds some."""
    zeros, size = weight.zeros, weight.values.numel()
    if not weight.exact:
        if promise.zeros is None or zeros >= promise.zeros:
            return None
    elif not promise.support or support_digest(weight.values) == promise.support:
        return None
    if zeros == promise.zeros:
        words = f"its {zeros:,} zeros stand in other places than when it was written (the digests differ)"
    else:
        words = f"{zeros:,} of {size:,} weights are zero, where {promise.zeros:,} were when it was written"
    return Finding(promise.layer, weight.weight, "support", words)


def check_together(text: str, checked: Sequence[Checked]) -> list[Finding]:
    """Hold all layers together against a pattern of the whole network.

    Args:
        text: of the pattern; one that says nothing of all layers together is passed over.
        checked: the layers.

    Returns:
        What does not hold.
    """
    pattern = known_pattern(text)
    parts = [(one.promise, one.weight) for one in checked if one.promise is not None]
    if not isinstance(pattern, Unstructured) or pattern.scope != "global" or not parts:
        return []
    there = [(promise, weight) for promise, weight in parts if weight is not None]
    if len(there) < len(parts):
        return []  # what is missing is said already
    sizes = [weight.values.numel() for _, weight in there]
    limits = [int(exactly(pattern.cap) * size) for size in sizes]
    wanted = min(round(exactly(pattern.sparsity) * sum(sizes)), sum(limits))
    have = sum(weight.zeros for _, weight in there)
    found = []
    if have < wanted - sum(_rounding(*pair) for pair in there):
        words = f"{have:,} of their {sum(sizes):,} weights are zero ({have / sum(sizes):.2%}), fewer than {pattern}"
        found.append(Finding("all layers", "", "pattern", words))
    for (promise, weight), limit, size in zip(there, limits, sizes, strict=True):
        gone = _removed(promise, weight)
        if gone is not None and gone > limit:
            words = f"{gone:,} of {size:,} weights are removed ({gone / size:.2%}), more than the cap of {pattern}"
            found.append(Finding(promise.layer, weight.weight, "cap", words))
    return found


def _removed(promise: LayerPromise, weight: StoredWeight) -> int | None:
    """Return how many weights a pattern has removed; None where kept ones that are zero cannot be told from them."""
    if promise.mask is not None:
        return promise.mask.numel() - int(promise.mask.sum())
    return None if promise.support else weight.zeros


def found_pattern(values: Tensor) -> str:
    """Return in words what pattern a weight has.

    Args:
        values: (out, in, *kernel).

    >>> found_pattern(torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]))
    '2:4'
    """
    zeros = values.numel() - int(torch.count_nonzero(values))
    if not zeros:
        return "dense"
    if zeros == values.numel():
        return "all zero"
    there = values != 0
    rows, columns = there.flatten(1).any(1), there.movedim(1, 0).flatten(1).any(1)
    whole = {"outputs": rows, "inputs": columns}
    words = [f"{int((~kept).sum())} of {len(kept)} {what} zero" for what, kept in whole.items() if not kept.all()]
    inner = there[rows][:, columns]
    if inner.all():
        return ", ".join(words)
    share = 1 - float(there[rows].float().mean())
    full = [(_fullest(values, m), m) for m in GROUP_SIZES if values.shape[1] % m == 0]
    groups = [(n, m) for n, m in full if n < m and share - (1 - n / m) < BY_CHANCE]
    n, m = min(groups, key=lambda pair: (pair[0] / pair[1], pair[1]), default=(0, 0))
    return ", ".join([f"{n}:{m}" if groups else "unstructured", *words])


def _fullest(values: Tensor, m: int) -> int:
    return int(group_counts(values, m).max())
