"""verify on damaged and hostile ONNX files: one error, nothing read from elsewhere, nothing that goes on for ever."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_graphs import W, node, written

import snows_core as snows
from snows_core.errors import SnowsError


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
