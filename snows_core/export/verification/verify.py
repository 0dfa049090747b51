"""Whether the zeros of a pruned network are where they were promised to be, in whatever file it is.

A promise comes from a saved result (masks and manifest), from the metadata that an exported file carries
(:mod:`snows_core.export.promise`), or from the caller. Each layer's weight is held against it along the axis of its
inputs, which for ONNX depends on the operation that reads it (:mod:`snows_core.export.verification.onnx_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snows_core.errors import invalid_argument
from snows_core.export.promise import LayerPromise, Promise
from snows_core.export.verification.findings import Verification, layer_table
from snows_core.export.verification.opened import open_source, result_folder
from snows_core.export.verification.pairing import Layers, are_chosen, paired, read_pattern, with_pattern
from snows_core.export.verification.violations import Checked, check_together, check_weight
from snows_core.files import as_path
from snows_core.masks.patterns import PerLayer
from snows_core.result import PruneResult
from snows_core.settings import SparsityPattern


def verify(
    source: str | Path | PruneResult | nn.Module | Mapping[str, Tensor],
    pattern: SparsityPattern | Mapping[str, float] | str | float | None = None,
    *,
    layers: Layers = None,
    exclude: Layers = None,
    against: str | Path | PruneResult | None = None,
) -> Verification:
    """Look whether a pruned network has its zeros where they are promised.

    What is promised comes from the result's masks and manifest, from the metadata of an exported file, from ``against``
    or ``pattern``. Where nothing is, the table says what pattern each layer has.

    Args:
        source: a result or its folder, a .safetensors, .pth or .onnx file, a folder with a model.safetensors, a network
            or a state dict. Nothing in them is run.
        pattern: holds the promised layers, or where nothing is promised every layer that it fits, to this pattern
            instead of the promised one. N:M groups run along the inputs, at each kernel position.
        layers: names or globs of layers (or of their weights); the others are left aside.
        exclude: names or globs of layers that are left aside.
        against: a result or its folder, whose promise counts in place of the source's own.

    Returns:
        A table of the layers, and all violations with their places.

    Raises:
        SnowsError: on a missing or damaged file, a name that no layer has, or a pattern that nothing can be held to.

    >>> import torch
    >>> done = verify({"fc.weight": torch.tensor([[1.0, 0.0, 2.0, 3.0]])}, "2:4")
    >>> done.ok, done.violations["words"][0].split(" (")[0]
    (False, 'inputs 0 to 3 of output 0: 3 of 4 weights are not zero, 2:4 allows 2')
    """
    opened = open_source(source)
    promise = opened.promise if against is None else _promise_of(against)
    asked = None if pattern is None else read_pattern(pattern)
    pairs, rest = paired(promise, opened.weights)
    items = [(one.layer, one.weight, "" if weight is None else weight.weight) for one, weight in pairs]
    chosen = are_chosen([*items, *((weight.layer, weight.weight) for weight in rest)], layers, exclude)
    left, right = chosen[: len(pairs)], chosen[len(pairs) :]
    pairs = [pair for pair, stays in zip(pairs, left, strict=True) if stays]
    rest = [weight for weight, stays in zip(rest, right, strict=True) if stays]
    notes, text = dict(opened.notes), promise.pattern if promise is not None and all(left) else ""
    origins = [] if promise is None else [promise.origin]
    if asked is not None:
        if layers is not None or not pairs or isinstance(asked, PerLayer):
            pairs, rest = [*pairs, *((LayerPromise(one.layer, one.weight), one) for one in rest)], []
        pairs, others = with_pattern(asked, pairs, notes)
        rest, text, origins = [*rest, *others], str(asked), [f"pattern {asked}", *origins]
    checked = [check_weight(one, weight) for one, weight in pairs]
    together = check_together(text, checked)
    findings = (*(finding for one in checked for finding in one.findings), *together)
    rows = [*checked, *(Checked(None, weight) for weight in rest)]
    table = layer_table(rows, opened.weights, together, notes)
    return Verification(opened.name, " and ".join(origins) if pairs else "", table, findings, opened.advice)


def _promise_of(against: Any) -> Promise:
    """Return the promise of a result or its folder."""
    expected = "a result, or a folder that `snows prune` or result.save() wrote"
    if isinstance(against, PruneResult):
        opened = open_source(against)
    elif isinstance(against, str | Path):
        opened = result_folder(as_path("against", against, expected).expanduser(), "against")
    else:
        raise invalid_argument("against", f"a {type(against).__name__}", expected)
    if opened.promise is None:
        raise invalid_argument("against", f"{opened.name}, in which no layer is pruned", expected)
    return opened.promise
