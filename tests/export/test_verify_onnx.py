"""verify on ONNX: the axis of the inputs follows from the operation, whatever lies between it and its tensor."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F
from toys import random_images

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import METADATA_KEY, support_digest
from snows_core.export.verification.onnx_file import read_onnx
from snows_core.masks.patterns import NM


def two_of_four(out=8, inputs=8, *kernel, seed=0):
    """Return a 2:4 weight in which no groups of four along another axis are 2:4."""
    weight = torch.randn(out, inputs, *kernel, generator=torch.Generator().manual_seed(seed)).abs() + 0.1
    return (weight * NM(2, 4).mask(weight)).numpy()


def written(path, nodes, tensors, inputs=("x",), outputs=("y",), opset=17, external=False, metadata=None, **constants):
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    known = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
        for name, value in tensors.items()
    ]
    graph = helper.make_graph(nodes, "graph", infos, results, known)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    if external:
        onnx.save(model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=0)
    else:
        onnx.save(model, path)
    return path


def node(op, *inputs, output="y", **attributes):
    return helper.make_node(op, list(inputs), [output], **attributes)


W = two_of_four()
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


class Net(nn.Module):
    """Convolutions with batch norm, one grouped and one depthwise, attention, an MLP, a classifier without bias."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.dw, self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.blocks = nn.Sequential(Block(), Block())
        self.fc = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = self.grouped(self.dw(F.relu(self.bn(self.conv(x)))))
        return self.fc(self.blocks(x.flatten(2).transpose(1, 2)).mean(1))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(x)


PRUNED = [f"blocks.{i}.{name}" for i in range(2) for name in ("qkv", "proj", "mlp.0", "mlp.2")] + ["conv", "grouped"]


@pytest.fixture(scope="module", params=[False, True], ids=["older exporter", "newer exporter"])
def exported(request, tmp_path_factory):
    """Return a pruned network's result and its ONNX file."""
    torch.manual_seed(0)
    net, images = Net().eval(), random_images(8, size=4, channels=4, dtype=torch.float32)
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"layers": [name for name in PRUNED if name != "grouped"], "update": "none", "effort": "quick"}
        result = snows.prune(net, images, "2:4", **options, progress=False)
        torch.onnx.export(result.model, (images[:2],), path, dynamo=request.param, verbose=False)
    return result, path


def test_files_of_both_exporters_keep_what_a_result_promises(exported):
    result, path = exported
    done = snows.verify(path, against=result)
    assert done.ok, repr(done)
    table = done.table.set_index("layer")
    assert (table.loc[list(result.masks), "promised"] == "2:4").all() and done.promised == len(result.masks) == 9
    assert {"dw", "grouped", "fc"} <= set(table.index[table["promised"] == ""])
    assert table.loc["conv", "axis"] == "1 (Conv)" and table.loc["blocks.1.mlp.0", "axis"] == "0 (MatMul)"


def moved_in(path, target, layer, result):
    """Move one weight of a layer in a file to a zero of the same group's row."""
    model = onnx.load(path)
    name = snows.verify(path, against=result).table.set_index("layer").loc[layer, "weight"]
    [tensor] = [one for one in model.graph.initializer if one.name == name]
    values = numpy_helper.to_array(tensor).copy()
    zero, full = np.argwhere(values == 0)[5], np.argwhere(values != 0)[7]
    values[tuple(zero)], values[tuple(full)] = values[tuple(full)], 0.0
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, target)
    return name, tuple(int(i) for i in zero)


@pytest.mark.parametrize("layer", ["conv", "blocks.0.qkv", "blocks.1.mlp.2"])
def test_one_weight_that_moved_is_found_at_its_place(exported, layer, tmp_path):
    result, path = exported
    name, place = moved_in(path, tmp_path / "moved.onnx", layer, result)
    done = snows.verify(tmp_path / "moved.onnx", against=result)
    [row] = done.violations[done.violations["kind"] == "mask"].to_dict("records")
    assert (row["layer"], row["weight"], row["index"]) == (layer, name, place)


def with_promise(path, target, result):
    """Write what an exporter promises: the initializers as they are in the file."""
    model = onnx.load(path)
    rows = snows.verify(path, against=result).table
    names = dict(zip(rows["weight"], rows["layer"], strict=True))
    weights = {weight.weight: weight.values for weight in read_onnx(path)[0]}
    layers = {
        name: {
            "layer": names[name],
            "pattern": "2:4",
            "shape": list(values.shape),
            "zeros": int((values == 0).sum()),
            "support": support_digest(values),
        }
        for name, values in weights.items()
        if names[name] in result.masks
    }
    model.metadata_props.add(key=METADATA_KEY, value=json.dumps({"pattern": "2:4", "layers": layers}))
    onnx.save(model, target)
    return target


def test_a_promise_in_the_metadata_is_held(exported, tmp_path):
    result, path = exported
    own = with_promise(path, tmp_path / "own.onnx", result)
    done = snows.verify(own)
    assert done.ok and done.promised == 9, repr(done)
    moved_in(own, tmp_path / "moved.onnx", "blocks.1.proj", result)
    broken = snows.verify(tmp_path / "moved.onnx")
    assert "support" in broken.violations["kind"].tolist() and set(broken.violations["layer"]) == {"blocks.1.proj"}
    model = onnx.load(own)
    for one in model.graph.node:
        if one.op_type == "Conv" and "dw" not in one.input[1]:
            one.op_type = "Other"
    onnx.save(model, tmp_path / "lost.onnx")
    assert "missing" in snows.verify(tmp_path / "lost.onnx").violations["kind"].tolist()


def test_quantised_weights_may_have_more_zeros(exported, tmp_path):
    result, path = exported
    quantization = pytest.importorskip("onnxruntime.quantization")
    own = with_promise(path, tmp_path / "own.onnx", result)
    quantization.quantize_dynamic(own, tmp_path / "int8.onnx", op_types_to_quantize=["MatMul"])
    done = snows.verify(tmp_path / "int8.onnx", against=result)
    assert done.ok, repr(done)
    assert done.table["axis"].str.contains("MatMulInteger").sum() >= 8


def damaged(path, change):
    model = onnx.load(path, load_external_data=False)
    change(model)
    onnx.save(model, path)


def point_elsewhere(model, location, length="64", offset="0"):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=value)


DAMAGES = {
    "sizes": lambda model: model.graph.initializer[0].dims.append(3),
    "negative sizes": lambda model: model.graph.initializer[0].dims.__setitem__(0, -8),
    "huge sizes": lambda model: model.graph.initializer[0].dims.extend([2**40]),
    "type": lambda model: setattr(model.graph.initializer[0], "data_type", 99),
    "outside": lambda model: point_elsewhere(model, "../secret"),
    "absolute": lambda model: point_elsewhere(model, "/etc/passwd"),
    "nowhere": lambda model: point_elsewhere(model, "missing.data"),
    "beyond the end": lambda model: point_elsewhere(model, "a.onnx", offset="100000000"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_tensor_is_one_error(name, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    path = written(folder / "a.onnx", [node("MatMul", "x", "w")], {"w": W.T.copy()})
    damaged(path, DAMAGES[name])
    with pytest.raises(SnowsError, match="which cannot be read as ONNX"):
        snows.verify(path)


def test_damaged_files_are_one_error(tmp_path):
    path = tmp_path / "a.onnx"
    good = written(path, [node("MatMul", "x", "w")], {"w": W.T.copy()}).read_bytes()
    for content in (b"", b"nothing of the kind", good[: len(good) // 2]):
        path.write_bytes(content)
        with pytest.raises(SnowsError, match="which cannot be read as ONNX"):
            snows.verify(path)
    with pytest.raises(SnowsError, match="does not exist"):
        snows.verify(tmp_path / "none.onnx")
    bad = [node("Reshape", "w", "s", output="t"), node("MatMul", "x", "t")]
    with pytest.raises(SnowsError, match=r"\(Reshape\)"):
        snows.verify(written(path, bad, {"w": W, "s": np.array([3, 5], dtype=np.int64)}))


def test_long_ways_end_somewhere(tmp_path):
    """Nothing is evaluated along chains that no exporter writes, nor again and again for readers that are alike."""
    chain = [node("Identity", "w" if i == 0 else f"t{i - 1}", output=f"t{i}") for i in range(500)]
    nodes = [*chain, node("MatMul", "x", "t499", output="h"), node("MatMul", "h", "v")]
    path = written(tmp_path / "a.onnx", nodes, {"w": W.T.copy(), "v": W.T.copy()})
    assert snows.verify(path).table["weight"].tolist() == ["v"]
    readers = [node("MatMul", "x", "w", output=f"y{i}") for i in range(2000)]
    path = written(tmp_path / "b.onnx", readers, {"w": W.T.copy()}, outputs=[f"y{i}" for i in range(2000)])
    assert len(snows.verify(path, "2:4").table) == 1
