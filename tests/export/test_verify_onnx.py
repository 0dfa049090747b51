"""verify on ONNX: the axis of the inputs follows from the operation, whatever lies between it and its tensor."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_graphs import W, node, two_of_four, written

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import support_digest
from snows_core.export.verification.onnx_file import read_onnx

CONV = two_of_four(8, 8, 3, 1)
STACK = np.stack([two_of_four(seed=1).T, two_of_four(seed=2).T])  # (2, in, out)
SHAPE = np.array([8, 8], dtype=np.int64)

# name: nodes, tensors, axis of the inputs, (operation, place of the weight)
GRAPHS = {
    "Conv": ([node("Conv", "x", "w")], {"w": CONV}, 1),
    "grouped Conv": ([node("Conv", "x", "w", group=2)], {"w": CONV}, 1),
    "Gemm": ([node("Gemm", "x", "w", "b")], {"w": W.T.copy(), "b": np.ones(8, np.float32)}, 0),
    "Gemm, transB": ([node("Gemm", "x", "w", transB=1)], {"w": W}, 1),
    "Gemm on the left": ([node("Gemm", "w", "x")], {"w": W}, 1),
    "Gemm on the left, transA": ([node("Gemm", "w", "x", transA=1)], {"w": W.T.copy()}, 0),
    "MatMul": ([node("MatMul", "x", "w")], {"w": W.T.copy()}, 0),
    "MatMul on the left": ([node("MatMul", "w", "x")], {"w": W}, 1),
    "MatMul of many": ([node("MatMul", "x", "w")], {"w": STACK}, 1),
    "Transpose": ([node("Transpose", "w", output="t"), node("MatMul", "x", "t")], {"w": W}, 1),
    "Transpose, transB": ([node("Transpose", "w", output="t"), node("Gemm", "x", "t", transB=1)], {"w": W.T.copy()}, 0),
    "Identity": ([node("Identity", "w", output="t"), node("Gemm", "x", "t", transB=1)], {"w": W}, 1),
    "Constant": (
        [node("Constant", output="w", value=numpy_helper.from_array(W)), node("Gemm", "x", "w", transB=1)],
        {},
        1,
    ),
    "Reshape of a convolution": (
        [node("Reshape", "w", "s", output="t"), node("Gemm", "x", "t", transB=1)],
        {"w": W[:, :, None, None], "s": SHAPE},
        1,
    ),
    "Unsqueeze to a convolution": (
        [node("Unsqueeze", "w", "s", output="t"), node("Conv", "x", "t")],
        {"w": W, "s": np.array([2, 3], dtype=np.int64)},
        1,
    ),
    "Reshape and two Transposes": (
        [
            node("Transpose", "w", output="a", perm=[1, 0, 2]),
            node("Reshape", "a", "s", output="b"),
            node("Identity", "b", output="c"),
            node("MatMul", "x", "c"),
        ],
        {"w": W.reshape(2, 4, 8).transpose(0, 2, 1).reshape(2, 8, 4), "s": SHAPE},
        1,
    ),
    "half precision, cast": (
        [node("Cast", "w", output="t", to=TensorProto.FLOAT), node("MatMul", "x", "t")],
        {"w": W.T.astype(np.float16)},
        0,
    ),
    "bfloat16": (
        [node("MatMul", "x", "w")],
        {"w": helper.make_tensor("w", TensorProto.BFLOAT16, (8, 8), W.T.flatten().tolist())},
        0,
    ),
    "float_data": (
        [node("MatMul", "x", "w")],
        {"w": helper.make_tensor("w", TensorProto.FLOAT, (8, 8), W.T.flatten())},
        0,
    ),
    "two readers": ([node("MatMul", "x", "w", output="h"), node("MatMul", "h", "w")], {"w": W.T.copy()}, 0),
    "inputs that have initializers": ([node("MatMul", "x", "w")], {"w": W.T.copy()}, 0),
}


def quantised(weight, per_output=False):
    """Return int8 values and their scales, and zero points that are not zero."""
    scale = np.abs(weight).max(0 if per_output else None) / 100
    zero = np.full(np.shape(scale), 3, dtype=np.int8)
    return (np.round(weight / scale) + zero).astype(np.int8), scale.astype(np.float32), zero


for _per_output in (False, True):
    _values, _scale, _zero = quantised(W.T, _per_output)
    _tensors = {"w": _values, "s": _scale, "z": _zero}
    _name = "each output" if _per_output else "all"
    GRAPHS[f"DequantizeLinear, one scale for {_name}"] = (
        [node("DequantizeLinear", "w", "s", "z", output="t", axis=1), node("MatMul", "x", "t")],
        _tensors,
        0,
    )
    GRAPHS[f"MatMulInteger, one zero point for {_name}"] = (
        [node("MatMulInteger", "x", "w", "a", "z")],
        {"w": _values, "z": _zero, "a": np.array(0, dtype=np.uint8)},
        0,
    )


def spoiled(graph):
    """Return a graph's tensors with one zero of its weight filled, and the place."""
    nodes, tensors, _ = graph
    inside = "w" not in tensors
    weight = numpy_helper.to_array(nodes[0].attribute[0].t) if inside else tensors["w"]
    stored = weight if isinstance(weight, TensorProto) else None
    weight = (numpy_helper.to_array(weight) if stored is not None else weight).copy()
    zero = int(tensors["z"].flatten()[0]) if "z" in tensors else 0
    place = tuple(int(i[-1]) for i in np.nonzero(weight == zero))
    weight[place] = 100 if zero else 1.0
    if stored is not None:
        weight = helper.make_tensor("w", stored.data_type, stored.dims, weight.astype(np.float32).flatten().tolist())
    if inside:
        return [node("Constant", output="w", value=numpy_helper.from_array(weight)), *nodes[1:]], {}, place
    return nodes, {**tensors, "w": weight}, place


@pytest.mark.parametrize("external", [False, True], ids=["in the file", "beside it"])
@pytest.mark.parametrize("name", GRAPHS)
def test_two_of_four_along_the_inputs(name, external, tmp_path):
    nodes, tensors, axis = GRAPHS[name]
    inputs = ("x", "w") if name == "inputs that have initializers" else ("x",)
    done = snows.verify(written(tmp_path / "a.onnx", nodes, tensors, inputs, external=external), "2:4")
    assert done.ok, repr(done)
    [row] = done.table.to_dict("records")
    assert row["found"] == "2:4" and row["weight"] == "w" and row["axis"].startswith(f"{axis} (")
    nodes, tensors, place = spoiled(GRAPHS[name])
    broken = snows.verify(written(tmp_path / "a.onnx", nodes, tensors, inputs, external=external), "2:4")
    [violation] = broken.violations.to_dict("records")
    first = violation["index"]
    differing = [number for number, (one, other) in enumerate(zip(first, place, strict=True)) if one != other]
    if name != "Reshape and two Transposes":  # there a group of inputs is no slice of the tensor
        assert set(differing) <= {axis} and first[axis] // 4 == place[axis] // 4


def test_turned_the_other_way_nothing_holds(tmp_path):
    for name in ("Gemm", "Gemm, transB", "MatMul", "MatMul on the left"):
        nodes, tensors, _ = GRAPHS[name]
        turned = {**tensors, "w": tensors["w"].T.copy()}
        assert not snows.verify(written(tmp_path / "a.onnx", nodes, turned), "2:4").ok


def test_values_and_places_are_those_of_the_file(tmp_path):
    """Each value of a weight with outputs first is found in the file's tensor at the place that is told."""
    for name, (nodes, tensors, _) in GRAPHS.items():
        if "z" in tensors or "w" not in tensors or isinstance(tensors["w"], TensorProto):
            continue
        [weight], _ = read_onnx(written(tmp_path / "a.onnx", nodes, tensors))
        positions = torch.arange(weight.values.numel())
        stored = tensors["w"][tuple(weight.stored_index(positions).T.numpy())]
        assert np.array_equal(stored.astype(np.float32), weight.values.flatten().float().numpy()), name


def test_one_tensor_read_in_two_ways_is_two_rows(tmp_path):
    nodes = [node("MatMul", "x", "w", output="h"), node("Gemm", "h", "w", transB=1)]
    done = snows.verify(written(tmp_path / "a.onnx", nodes, {"w": W.T.copy()}), "2:4")
    assert done.table["axis"].tolist() == ["0 (MatMul)", "1 (Gemm, transB=1)"]
    assert done.table["violations"].tolist()[0] == 0 and not done.ok


def test_parts_that_are_read_one_by_one_are_one_weight(tmp_path):
    whole = two_of_four(12, 8)
    split = helper.make_node("Split", ["w"], ["q", "k", "v"], axis=0)
    gemms = [node("Gemm", "x", part, output=f"y{part}", transB=1) for part in "qkv"]
    sizes = np.array([4, 4, 4], dtype=np.int64)
    split.input.append("s")
    path = written(tmp_path / "a.onnx", [split, *gemms], {"w": whole, "s": sizes}, outputs=["yq", "yk", "yv"])
    [weight], _ = read_onnx(path)
    assert support_digest(weight.values) == support_digest(torch.tensor(whole)) and snows.verify(path, "2:4").ok


def test_products_of_two_values_are_no_layers(tmp_path):
    nodes = [node("MatMul", "x", "x", output="h"), node("MatMul", "h", "w")]
    path = written(tmp_path / "a.onnx", nodes, {"w": W.T.copy()})
    assert len(snows.verify(path).table) == 1
    with pytest.raises(SnowsError, match="in which no layer reads a weight"):
        snows.verify(written(tmp_path / "b.onnx", nodes[:1], {}, outputs=["h"]))


def test_branches_and_functions_are_looked_into(tmp_path):
    inner = helper.make_graph(
        [node("MatMul", "x", "w", output="o")],
        "then",
        [],
        [helper.make_tensor_value_info("o", TensorProto.FLOAT, None)],
    )
    branch = node("If", "c", then_branch=inner, else_branch=inner)
    path = written(tmp_path / "a.onnx", [branch], {"w": W.T.copy(), "c": np.array(True)})
    assert snows.verify(path, "2:4").promised == 1
    function = helper.make_function(
        "own", "Linear", ["a", "b"], ["c"], [node("MatMul", "a", "b", output="c")], [helper.make_opsetid("", 17)]
    )
    model = onnx.load(written(tmp_path / "b.onnx", [node("Linear", "x", "w", domain="own")], {"w": W.T.copy()}))
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    onnx.save(model, tmp_path / "b.onnx")
    assert snows.verify(tmp_path / "b.onnx", "2:4").promised == 1
