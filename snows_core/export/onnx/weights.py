"""The weights of a network in its ONNX file: found again, named as in the network, their zeros compared.

Exporters rename weights, transpose the matrices of linear layers, and multiply the rows of a convolution by the scale
of the batch norm behind it. Zeros stay where they are in all of that, and whole rows may become zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from snows_core.export.onnx.exporters import PREFIX
from snows_core.export.promise import support_digest

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

    Array = np.ndarray[Any, Any]
    _Comparison = Callable[[Array, Array], bool]

_ROUNDING = {"float16": 4e-3}  # of a row that was multiplied by one number, as a share of its largest weight
_USUAL_ROUNDING = 1e-5
_KEPT_METADATA = ("namespace",)  # which module a node comes from; the others hold paths of the machine


@dataclass(frozen=True)
class FoundWeight:
    """Where the file holds a weight.

    Attributes:
        name: of the initializer.
        operator: what uses it first, for instance "Conv".
        transposed: whether it is stored as (in, out).
        scaled: whether its rows were multiplied by numbers: a batch norm was folded into it.
        array: the weight as stored, in PyTorch's orientation (out, in, ...).
    """

    name: str
    operator: str
    transposed: bool
    scaled: bool
    array: Array

    def entry(self) -> dict[str, Any]:
        """Return what a promise says of the weight as stored: shape, number of zeros, digest of where they are not."""
        weight = torch.tensor(self.array)
        zeros = int((weight == 0).sum())
        return {"shape": list(weight.shape), "zeros": zeros, "support": support_digest(weight)}


def name_weights(model: ModelProto, weights: Mapping[str, Tensor]) -> dict[str, FoundWeight]:
    """Find weights among a file's initializers, and give these the names of the network's parameters.

    Args:
        model: the file; initializers are renamed in it.
        weights: parameter name to what the network computes with, of two axes or more, the pruned ones first.

    Returns:
        Parameter name to where it is; those that are not there as one initializer are left out.
    """
    from onnx import numpy_helper

    _without_prefix(model.graph)
    shapes = {tuple(weight.shape) for weight in weights.values()}
    shapes |= {shape[::-1] for shape in shapes if len(shape) == 2}
    held = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer if tuple(i.dims) in shapes}
    free, found = dict(held), dict[str, FoundWeight]()
    users = {
        name: node.op_type for graph in _graphs(model.graph) for node in reversed(graph.node) for name in node.input
    }
    for name, weight in weights.items():
        dense = weight.detach().cpu().numpy()
        own = {name: held[name]} if name in held else {}
        others = free if weight[0].numel() > 1 else {}  # any row of one number is any other's multiple
        searches = ((own, _equals), (own, _is_scaled), (free, _equals), (others, _is_scaled), (held, _equals))
        for candidates, is_it in (*searches, (own, _is_empty), (free, _is_empty), (held, _is_empty)):
            place = _first(candidates, dense, is_it)
            if place is not None:
                where, transposed = place
                array = held[where].T if transposed else held[where]
                found[name] = FoundWeight(where, users.get(where, ""), transposed, is_it is not _equals, array)
                free.pop(where, None)
                break
    names = _rename(model.graph, {place.name: name for name, place in reversed(found.items())})
    return {
        name: FoundWeight(names.get(p.name, p.name), p.operator, p.transposed, p.scaled, p.array)
        for name, p in found.items()
    }


def read_weight(model: ModelProto, place: FoundWeight) -> FoundWeight:
    """Read a weight that was found once more, from a file that was written since.

    Args:
        model: as read from the file.
        place: where it was found.

    Returns:
        The place with what the file holds there.
    """
    from onnx import numpy_helper

    [array] = [numpy_helper.to_array(i) for i in model.graph.initializer if i.name == place.name]
    array = array.T if place.transposed else array
    return FoundWeight(place.name, place.operator, place.transposed, place.scaled, array)


def clean(model: ModelProto) -> None:
    """Take texts out of a file that speak of the machine it was made on: places in source files, records of a trace."""
    for graph in _graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            kept = [(entry.key, entry.value) for entry in node.metadata_props if entry.key in _KEPT_METADATA]
            del node.metadata_props[:]
            for key, value in kept:
                node.metadata_props.add(key=key, value=value)


def _first(candidates: Mapping[str, Array], weight: Array, is_it: _Comparison) -> tuple[str, bool] | None:
    """Return the name of the first candidate that is a weight, and whether it is transposed."""
    for name, array in candidates.items():
        if array.shape == weight.shape and is_it(array, weight):
            return name, False
        if weight.ndim == 2 and array.shape == weight.shape[::-1] and is_it(array.T, weight):
            return name, True
    return None


def _equals(array: Array, weight: Array) -> bool:
    return bool(np.array_equal(array, weight))


def _is_scaled(array: Array, weight: Array) -> bool:
    """Tell whether an array is a weight (out, in, ...) with its rows multiplied by one number each, not all by zero."""
    if array.dtype != weight.dtype or not array.any():
        return False
    stored = array.reshape(len(array), -1).astype(np.float32)  # (out, d)
    dense = weight.reshape(len(weight), -1).astype(np.float32)
    if stored[dense == 0].any():
        return False
    scale = (stored * dense).sum(1) / np.maximum((dense * dense).sum(1), np.finfo(np.float32).tiny)  # (out,)
    gap, largest = np.abs(stored - scale[:, None] * dense).max(1), np.abs(stored).max(1)
    rounding = _ROUNDING.get(str(array.dtype), _USUAL_ROUNDING)
    return bool((gap <= rounding * largest + np.finfo(array.dtype).tiny).all())


def _is_empty(array: Array, weight: Array) -> bool:
    """Tell whether an array is all that is left of a weight behind a batch norm whose scales are all zero."""
    return bool(array.dtype == weight.dtype and not array.any())


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and those inside of its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _without_prefix(graph: GraphProto) -> None:
    """Take the wrapper's name out of the names of parameters."""
    names = [i.name for i in graph.initializer if i.name.startswith(PREFIX)]
    _rename(graph, {name: name.removeprefix(PREFIX) for name in names})


def _rename(graph: GraphProto, names: Mapping[str, str]) -> dict[str, str]:
    """Rename initializers where nothing else has the new name; return what was done, old name to new name."""
    graphs = list(_graphs(graph))
    taken = {name for inner in graphs for node in inner.node for name in node.output}
    taken |= {value.name for inner in graphs for value in (*inner.input, *inner.initializer)}
    asked = Counter(names.values())
    done = {old: new for old, new in names.items() if new not in taken and asked[new] == 1}
    for inner in graphs:
        for value in (*inner.initializer, *inner.value_info):
            value.name = done.get(value.name, value.name)
        for node in inner.node:
            for place, name in enumerate(node.input):
                if name in done:
                    node.input[place] = done[name]
    return done
