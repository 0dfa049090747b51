"""The weights of an ONNX file, by the operation that reads them: along which axis its inputs run follows from that.

Conv has them on axis 1; Gemm on axis 0 of its second tensor, or on axis 1 with ``transB``; MatMul on the last axis but
one of a constant on the right, and on the last one of a constant on the left. Transpose, Reshape and their like between
the tensor and its reader are followed back into the file, so that every place is one of the tensor in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from snows_core.errors import SnowsError, reason_of
from snows_core.export.promise import METADATA_KEY, Promise, read_promise
from snows_core.export.verification.onnx_constants import Constant, File, constants_of, damaged, read_model
from snows_core.export.verification.stored import StoredWeight

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto

_READERS: dict[str, dict[int, int | None]] = {  # operation: place of a weight among its inputs, and of its zero point
    "Conv": {1: None},
    "FusedConv": {1: None},
    "ConvInteger": {1: 3},
    "QLinearConv": {3: 5},
    "Gemm": {1: None, 0: None},
    "FusedGemm": {1: None, 0: None},
    "MatMul": {1: None, 0: None},
    "FusedMatMul": {1: None, 0: None},
    "MatMulInteger": {1: 3, 0: 2},
    "QLinearMatMul": {3: 5, 0: 2},
}
_SCOPES = "namespace"  # where PyTorch's newer exporter writes the modules around an operation
_TURN = {"Gemm": ("transA", "transB"), "FusedGemm": ("transA", "transB"), "FusedMatMul": ("transA", "transB")}


def read_onnx(path: Path) -> tuple[list[StoredWeight], Promise | None]:
    """Return the weights of an ONNX file, and what it promises of them.

    Args:
        path: the file; external data lie beside it.

    Returns:
        One entry for each tensor and way to read it, in the order of the graph; the promise in the file's metadata,
        or None.

    Raises:
        SnowsError: when the file is missing or damaged, or onnx is not installed.
    """
    model = read_model(path)
    try:
        weights = _weights(model.graph, File.of(path, model))
    except (SnowsError, MemoryError):
        raise
    except Exception as error:  # a graph may contradict itself in any way
        raise damaged(path, reason_of(error)) from error
    texts = {entry.key: entry.value for entry in model.metadata_props}
    return weights, read_promise(texts[METADATA_KEY], str(path)) if METADATA_KEY in texts else None


def _weights(graph: GraphProto, file: File) -> list[StoredWeight]:
    """Return the weights of a graph, each way to read a tensor once."""
    found: dict[str, list[StoredWeight]] = {}
    uses = {use.way: use for use in reversed(list(_uses(graph, {})))}  # the first of those that read alike
    for use in reversed(uses.values()):
        weight = use.read(file)
        known = found.setdefault(f"{weight.weight} along {weight.axis}", [])
        if not any(_same_place(weight, other) for other in known):
            known.append(weight)
    return [weight for known in found.values() for weight in _joined(known)]


@dataclass(frozen=True, eq=False)
class _Use:
    """A tensor of the file as one operation reads it.

    Attributes:
        node: the operation.
        place: of the weight among its inputs.
        constant: the weight.
        zero: its zero point, where it is of whole numbers.
    """

    node: NodeProto
    place: int
    constant: Constant
    zero: Constant | None

    @property
    def way(self) -> tuple[Any, ...]:
        """What tells it from other ways to read the same tensor."""
        zero = None if self.zero is None else self.zero.way
        turned = "convolution" if _is_convolution(self.node) else _input_axis(2, self.node, self.place)
        return (self.constant.way, zero, turned)

    def read(self, file: File) -> StoredWeight:
        """Return the weight with its outputs first."""
        values, places = self.constant.values_and_places(file)
        assert places is not None  # they were asked for
        exact = not self.constant.scaled and self.zero is None and values.dtype.kind not in "iu"
        numbers = _plain(values)
        if self.zero is not None:
            numbers = numbers - _zero_point(self.zero.read(file), numbers, self.node, self.place)
        turned, moved = (_outputs_first(array, self.node, self.place) for array in (numbers, places))
        axis, shape = _axis_of(moved, self.constant, self.node, self.place), self.constant.shape
        in_order = moved.size == np.prod(shape) and bool((moved.ravel() == np.arange(moved.size)).all())
        kind = self.node.op_type + ("".join(f", {name}=1" for name in _turns(self.node)))
        return StoredWeight(
            _layer_of(self.node, self.constant.name),
            self.constant.name,
            torch.from_numpy(np.require(turned, requirements=["C", "W"])),
            shape,
            axis,
            kind,
            None if in_order else torch.from_numpy(np.ascontiguousarray(moved)),
            exact,
        )


def _uses(graph: GraphProto, outer: Mapping[str, Constant]) -> Iterator[_Use]:
    """Yield the weights that the operations of a graph read, and of the graphs inside of them."""
    from onnx import AttributeProto

    constants = constants_of(graph, outer)
    for node in graph.node:
        readers = _READERS.get(node.op_type, {})
        there = {place: constants.get(node.input[place]) for place in readers if place < len(node.input)}
        if any(one is None for one in there.values()) or len(readers) == 1:  # two constants make one constant
            for place, constant in there.items():
                if constant is not None and _is_matrix(constant):
                    zero = readers[place]
                    has_zero = zero is not None and zero < len(node.input)
                    yield _Use(node, place, constant, constants.get(node.input[zero]) if has_zero else None)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _uses(attribute.g, constants)


def _is_matrix(constant: Constant) -> bool:
    return len(constant.shape) > 1 or bool(constant.steps)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return values in a type that PyTorch knows: kinds of floats that NumPy lacks become float32."""
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    return values if values.dtype in (np.float16, np.float32, np.float64) else values.astype(np.float32)


def _zero_point(zero: NDArray[Any], values: NDArray[Any], node: NodeProto, place: int) -> NDArray[Any]:
    """Return zero points so that they can be taken off: one, or one for each output."""
    zero = zero.astype(np.int64).reshape(-1)
    if len(zero) == 1 or values.ndim == 0:
        return zero.reshape(())
    outputs = 0 if node.op_type in ("ConvInteger", "QLinearConv") else values.ndim - 1 if place else values.ndim - 2
    return zero.reshape([-1 if axis == outputs else 1 for axis in range(values.ndim)])


def _turns(node: NodeProto) -> list[str]:
    """Return which of transA and transB an operation has set."""
    names = _TURN.get(node.op_type, ())
    return [entry.name for entry in node.attribute if entry.name in names and entry.i]


def _is_convolution(node: NodeProto) -> bool:
    return "Conv" in node.op_type


def _input_axis(ndim: int, node: NodeProto, place: int) -> int:
    """Return the axis along which the inputs of an output run, as the operation reads its tensor."""
    if _is_convolution(node):
        return 1
    left = place == 0
    turned = ("transA" if left else "transB") in _turns(node)
    return ndim - 1 if left != turned else ndim - 2


def _outputs_first(values: NDArray[Any], node: NodeProto, place: int) -> NDArray[Any]:
    """Return a tensor as PyTorch would hold it: (out, in, *kernel); products of many matrices one below the other."""
    if _is_convolution(node) or values.ndim < 2:
        return values if values.ndim > 1 else values.reshape(1, -1)
    last = np.moveaxis(values, _input_axis(values.ndim, node, place), -1)
    return last.reshape(-1, last.shape[-1])


def _axis_of(moved: NDArray[np.int64], constant: Constant, node: NodeProto, place: int) -> int:
    """Return the axis of the tensor in the file along which the inputs run."""
    if not constant.steps or moved.shape[1] < 2 or moved.size == 0:
        return _input_axis(max(len(constant.shape), 2), node, place)
    step = abs(int(moved[0, 1].flat[0]) - int(moved[0, 0].flat[0]))
    strides = [int(np.prod(constant.shape[axis + 1 :])) for axis in range(len(constant.shape))]
    fits = [axis for axis, stride in enumerate(strides) if stride <= step and constant.shape[axis] > 1]
    return min(fits, default=0)


def _layer_of(node: NodeProto, weight: str) -> str:
    """Return the name of the layer whose weight an operation reads, as far as the file tells it."""
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), None)
    if scopes is not None:  # each as "path: class", the operation itself behind them
        modules = [scope.partition(": ")[0] for scope in scopes.split("/")[:-1]]
        return modules[-1] if modules and modules[-1] else weight
    return _path(node.name) or weight


def _path(name: str) -> str:
    """Return the path of a module from the name that PyTorch's older exporter gives to an operation in it.

    >>> _path("/blocks/blocks.0/attn/qkv/MatMul")
    'blocks.0.attn.qkv'
    """
    parts: list[str] = []
    for part in name.split("/")[1:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def _same_place(one: StoredWeight, other: StoredWeight) -> bool:
    if one.values.shape != other.values.shape or (one.places is None) != (other.places is None):
        return False
    return one.places is None or other.places is None or torch.equal(one.places, other.places)


def _joined(parts: list[StoredWeight]) -> list[StoredWeight]:
    """Return parts of one tensor that several operations read as one weight, where together they are all of it."""
    whole = int(np.prod(parts[0].shape))
    shapes = {part.values.shape[1:] for part in parts}
    if len(parts) < 2 or len(shapes) > 1 or sum(part.values.numel() for part in parts) != whole:
        return parts
    pieces = sorted(parts, key=lambda part: int(part.places.min()) if part.places is not None else 0)
    places = torch.cat([part.places for part in pieces if part.places is not None])
    if places.numel() != whole or len(places.unique()) != whole:
        return parts
    values = torch.cat([part.values for part in pieces])
    return [replace(pieces[0], values=values, places=places)]
