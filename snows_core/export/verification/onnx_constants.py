"""Tensors that an ONNX file holds, followed through what only moves, casts or scales them; nothing else is computed.

The file is read by the onnx library, which also keeps external data inside of the file's folder. Moves are done by its
reference implementation, once on the values and once on their places, so that each value is known by its place in the
file's tensor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from snows_core.errors import SnowsError, cannot_go_on, invalid_argument, reason_of, require_extra
from snows_core.files import is_file
from snows_core.files.bounded import check_file

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

MOVES = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split"})
"""Operations after which values stand elsewhere; none makes more of them."""
SCALES = frozenset({"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"})
"""Operations that change values one by one."""
SCALES_SINCE = 19  # the oldest of their versions that onnx can evaluate; it knows all that older ones do
DOMAINS = ("", "ai.onnx", "com.microsoft")  # the last has older forms of the operations that scale
LONGEST = 32  # operations between tensors and their reader; exporters write three or four
SHARED = 16  # how often a byte of the files may be read: several tensors may share one, and many readers one tensor
_EXPECTED = "a model in ONNX"


def read_model(path: Path) -> ModelProto:
    """Read an ONNX file without its external data, functions written out.

    Args:
        path: the file.

    Returns:
        The model.

    Raises:
        SnowsError: when there is no such file, it is damaged, or onnx is not installed.
    """
    if not is_file(path):
        raise invalid_argument("source", f"'{path}', which is no file", "a file of ONNX", "Check the path.")
    require_extra("export", "onnx")
    import onnx
    from onnx import inliner

    try:
        model = onnx.load(str(check_file(path)), format="protobuf", load_external_data=False)
        if model.functions:
            model = inliner.inline_local_functions(model)
    except Exception as error:  # a damaged file can fail anywhere in protobuf
        raise damaged(path, reason_of(error)) from error
    if not model.graph.node:
        raise damaged(path, "no graph in it")
    return model


def damaged(path: Path, reason: str) -> SnowsError:
    """Build (not raise) the error for a file that is no ONNX, or contradicts itself."""
    got = f"'{path}', which cannot be read as ONNX ({reason})"
    return cannot_go_on("source", got, _EXPECTED, "Export the network again.")


@dataclass
class File:
    """What tensors are read from.

    Attributes:
        path: the file.
        opsets: domain to version, as the file asks for.
        budget: bytes that may yet be read.
    """

    path: Path
    opsets: Mapping[str, int]
    budget: int

    @classmethod
    def of(cls, path: Path, model: ModelProto) -> File:
        """Return the file of a model that was read from a path."""
        import onnx

        opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in model.opset_import}
        external = {
            entry.value
            for tensor in model.graph.initializer
            for entry in tensor.external_data
            if entry.key == "location" and is_file(path.parent / entry.value)
        }
        size = path.stat().st_size + sum((path.parent / name).stat().st_size for name in external)
        return cls(path, {"": onnx.defs.onnx_opset_version()} | opsets, SHARED * size)

    def array(self, tensor: TensorProto) -> NDArray[Any]:
        """Return the values of a tensor, in its own type.

        Raises:
            SnowsError: where they are not as many as its shape says, or lie outside of the file's folder.
        """
        from onnx import external_data_helper, helper, numpy_helper

        try:
            count = math.prod(tensor.dims)
            if count < 0 or any(size < 0 for size in tensor.dims):
                raise ValueError("negative sizes")
            self.budget -= count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            if self.budget < 0:
                raise ValueError("more values than the files can hold")
            if external_data_helper.uses_external_data(tensor):
                copy = type(tensor)()
                copy.CopyFrom(tensor)
                external_data_helper.load_external_data_for_tensor(copy, str(self.path.parent))
                tensor = copy
            return numpy_helper.to_array(tensor)
        except Exception as error:  # of protobuf, of onnx's checker, of NumPy or the file system
            raise damaged(self.path, f"tensor '{tensor.name[:100]}': {reason_of(error)}") from error


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor of the file behind some operations.

    Attributes:
        name: of the tensor.
        tensor: itself.
        steps: the operations, with the number of the output that goes on, and their other inputs.
    """

    name: str
    tensor: TensorProto
    steps: tuple[tuple[NodeProto, int, tuple[Constant | None, ...]], ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        return tuple(self.tensor.dims)

    @property
    def operations(self) -> int:
        """How many operations it takes, those of other inputs included."""
        others = (one.operations for _, _, inputs in self.steps for one in inputs if one is not None)
        return len(self.steps) + sum(others)

    @property
    def way(self) -> tuple[Any, ...]:
        """What tells it from other ways to read the same tensor."""
        return (self.name, *(node.output[output] for node, output, _ in self.steps))

    @property
    def scaled(self) -> bool:
        """Whether the file holds other numbers than the operations give."""
        return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node, _, _ in self.steps)

    def read(self, file: File) -> NDArray[Any]:
        """Return the values behind the operations."""
        return self.values_and_places(file, places=False)[0]

    def values_and_places(self, file: File, places: bool = True) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Return values behind the operations, and where each stands in the tensor of the file.

        Args:
            file: where they come from.
            places: whether places are asked for.

        Returns:
            The values; int64 of their shape, or None.

        Raises:
            SnowsError: on an operation that does not fit its tensors.
        """
        values = file.array(self.tensor)
        where = np.arange(values.size, dtype=np.int64).reshape(values.shape) if places else None
        for node, output, others in self.steps:
            rest = [None if one is None else one.read(file) for one in others]
            before = values.shape
            values = _run(file, node, output, values, rest)
            if node.op_type in MOVES:
                where = None if where is None else _run(file, node, output, where, rest)
            elif values.shape != before:
                raise damaged(file.path, f"'{node.name[:100]}' ({node.op_type}) gives {values.shape} for {before}")
        return values, where


def _run(
    file: File, node: NodeProto, output: int, values: NDArray[Any], others: Sequence[NDArray[Any] | None]
) -> NDArray[Any]:
    """Return what one operation makes of values, by onnx's reference implementation."""
    from onnx import helper
    from onnx.reference import ReferenceEvaluator

    copy = type(node)()
    copy.CopyFrom(node)
    copy.domain = ""
    rest = (one for one in others if one is not None)
    given = dict(zip((name for name in node.input[1:] if name), rest, strict=True))
    try:
        infos = [helper.make_empty_tensor_value_info(name) for name in dict.fromkeys([node.input[0], *given])]
        outputs = [helper.make_empty_tensor_value_info(node.output[output])]
        graph = helper.make_graph([copy], "step", infos, outputs)
        version = file.opsets[""]
        if node.op_type in SCALES:
            version = max(version, SCALES_SINCE)
        [done] = ReferenceEvaluator(graph, opsets={"": version}).run(None, {**given, node.input[0]: values})
        return np.asarray(done)
    except Exception as error:  # attributes and sizes are anybody's
        raise damaged(file.path, f"'{node.name[:100]}' ({node.op_type}): {reason_of(error)}") from error


def constants_of(graph: GraphProto, outer: Mapping[str, Constant] | None = None) -> dict[str, Constant]:
    """Return every tensor of a graph that the file holds, and what operations make of it alone, by name.

    Args:
        graph: of a model, or of a branch or loop in one.
        outer: of the graph around it.
    """
    inputs = {entry.name for entry in graph.input}
    found = {name: constant for name, constant in (outer or {}).items() if name not in inputs}
    found |= {tensor.name: Constant(tensor.name, tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            if (tensor := _tensor_of(node)) is not None:
                found[node.output[0]] = Constant(node.output[0], tensor)
        elif node.op_type in MOVES | SCALES and node.domain in DOMAINS and node.input and node.input[0] in found:
            if all(not name or name in found for name in node.input):
                first, others = found[node.input[0]], tuple(found.get(name) for name in node.input[1:])
                if first.operations + sum(one.operations for one in others if one is not None) < LONGEST:
                    for output, name in enumerate(node.output):
                        found[name] = replace(first, steps=(*first.steps, (node, output, others)))
    return found


def _tensor_of(node: NodeProto) -> TensorProto | None:
    """Return what a Constant node holds as a tensor; None for texts and sparse tensors."""
    from onnx import helper, numpy_helper

    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.name == "value":
            return value
        kind = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        if attribute.name in kind:
            return numpy_helper.from_array(np.array(value, dtype=kind[attribute.name]), node.output[0])
    return None
