"""verify on what PyTorch's exporters write: names are found again, moved weights too, INT8 may have more zeros."""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F
from toys import random_images

import snows_core as snows
from snows_core.export import METADATA_KEY, support_digest
from snows_core.export.verification.onnx_file import read_onnx


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
