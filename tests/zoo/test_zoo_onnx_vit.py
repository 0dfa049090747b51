"""onnx_vit.py: tensors of an ONNX file written here, as PyTorch's exporter writes DINOv2, under timm's names."""

import dataclasses
import json

import pytest
import timm
import torch
from typer.testing import CliRunner

from snows_core.cli import app as cli
from snows_core.errors import SnowsError
from snows_core.zoo import experiment, packaged, registry, sources
from snows_core.zoo.onnx_vit import state_of_vit

onnx = pytest.importorskip("onnx")
SMALL = {"img_size": 28, "embed_dim": 12, "depth": 2, "num_heads": 2, "num_classes": 0}  # 2 x 2 patches
BLOCKS = "backbone.encoder.layer"


def small_vit():
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch14_dinov2", **SMALL).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def written(state, path, order=("key", "value", "query")):
    """Write tensors as the exporter does: names of vectors kept, matrices transposed and nameless."""
    tensors, nodes = {}, []

    def matrix(name, value):
        nameless = f"onnx::MatMul_{len(tensors)}"
        tensors[nameless] = value.T
        place = "/" + name.replace("layer.", "layer#").replace(".", "/").replace("#", ".") + "/MatMul"
        nodes.append(onnx.helper.make_node("MatMul", ["before", nameless], ["out"], name=place))

    tensors["backbone.embeddings.cls_token"] = state["cls_token"]
    tensors["onnx::Concat_1"], tensors["onnx::Reshape_2"] = state["pos_embed"][:, :1], state["pos_embed"][:, 1:]
    for kind, name in (("Concat", "onnx::Concat_1"), ("Reshape", "onnx::Reshape_2")):
        nodes.append(onnx.helper.make_node(kind, [name, "x"], ["out"], name=f"/backbone/embeddings/{kind}_1"))
    for part in ("weight", "bias"):
        projection = state[f"patch_embed.proj.{part}"]
        tensors[f"backbone.embeddings.patch_embeddings.projection.{part}"] = projection
        tensors[f"backbone.layernorm.{part}"] = state[f"norm.{part}"]
    for block in range(2):
        old, new = f"{BLOCKS}.{block}", f"blocks.{block}"
        parts = dict(zip(("query", "key", "value"), state[f"{new}.attn.qkv.weight"].chunk(3), strict=True))
        biases = dict(zip(("query", "key", "value"), state[f"{new}.attn.qkv.bias"].chunk(3), strict=True))
        for part in order:
            matrix(f"{old}.attention.attention.{part}", parts[part])
            tensors[f"{old}.attention.attention.{part}.bias"] = biases[part]
        for mine, theirs in (("attn.proj", "attention.output.dense"), ("mlp.fc1", "mlp.fc1"), ("mlp.fc2", "mlp.fc2")):
            matrix(f"{old}.{theirs}", state[f"{new}.{mine}.weight"])
            tensors[f"{old}.{theirs}.bias"] = state[f"{new}.{mine}.bias"]
        for number in (1, 2):
            tensors[f"{old}.layer_scale{number}.lambda1"] = state[f"{new}.ls{number}.gamma"]
            for part in ("weight", "bias"):
                tensors[f"{old}.norm{number}.{part}"] = state[f"{new}.norm{number}.{part}"]
    tensors["decoder.bn1.weight"] = torch.ones(3)  # another part of the network, which is left
    arrays = [onnx.numpy_helper.from_array(v.detach().contiguous().numpy(), name) for name, v in tensors.items()]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "vit", [], [], arrays)), str(path))
    return path


def test_every_tensor_comes_under_timms_name_and_the_network_computes_the_same(tmp_path):
    model = small_vit()
    found = state_of_vit(written(model.state_dict(), tmp_path / "vit.onnx"), 2)
    other = timm.create_model("vit_small_patch14_dinov2", **SMALL).eval()
    other.load_state_dict(found)
    image = torch.randn(1, 3, 28, 28)
    assert torch.equal(other(image), model(image))


def test_positions_are_resampled_to_the_grid(tmp_path):
    found = state_of_vit(written(small_vit().state_dict(), tmp_path / "vit.onnx"), 3)
    assert found["pos_embed"].shape == (1, 10, 12)
    assert torch.equal(found["pos_embed"][:, :1], small_vit().pos_embed[:, :1])


def test_another_file_is_refused(tmp_path):
    state = small_vit().state_dict()
    with pytest.raises(SnowsError, match=r"holds no DINOv2 backbone as it was expected .*query"):
        state_of_vit(written(state, tmp_path / "vit.onnx", order=("key", "value")), 2)
    state["pos_embed"] = state["pos_embed"][:, :4]
    with pytest.raises(SnowsError, match="3 positions, which are no square"):
        state_of_vit(written(state, tmp_path / "vit.onnx"), 2)
    content = (tmp_path / "vit.onnx").read_bytes()
    for spoilt in (content[: len(content) // 2], b"no ONNX", b""):
        (tmp_path / "vit.onnx").write_bytes(spoilt)
        with pytest.raises(SnowsError, match=r"^weights: .*vit.onnx (cannot be read as ONNX|holds no DINOv2)"):
            state_of_vit(tmp_path / "vit.onnx", 2)


def test_no_other_file_is_read_for_it(tmp_path):
    """An ONNX file may say that numbers of its tensors are in another file, whichever that is."""
    import onnx

    path = written(small_vit().state_dict(), tmp_path / "vit.onnx")
    model = onnx.load(str(path))
    onnx.save(model, str(path), save_as_external_data=True, location="numbers.bin", size_threshold=0)
    assert (tmp_path / "numbers.bin").is_file()
    with pytest.raises(SnowsError, match=r"^weights: .*vit.onnx holds no DINOv2 .* is in another file"):
        state_of_vit(path, 2)


@pytest.fixture
def row(tmp_path, monkeypatch):
    """The experiment with a small network, whose package lies in a folder made here and must not be imported."""
    name = f"saliency_{tmp_path.name}"
    (tmp_path / name / "models").mkdir(parents=True)
    (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported')\n")
    written(small_vit().state_dict(), tmp_path / name / "models" / "vit.onnx")
    monkeypatch.syspath_prepend(tmp_path)

    class Small(packaged.OnnxBackbone):
        image_size = 28

        def build(self, num_classes=None):
            return timm.create_model("vit_small_patch14_dinov2", **SMALL).eval()

    known = packaged.PACKAGES["vit_small_patch14_saliency"]
    package = Small(name, "models/vit.onnx", known.weights)
    monkeypatch.setitem(packaged.PACKAGES, "vit_small_patch14_saliency", package)
    return experiment("vit_small_patch14_saliency")


def test_the_experiment_loads_the_package_without_importing_it(row):
    model = row.load_model()
    assert not model.training and torch.equal(model.cls_token, small_vit().cls_token)
    assert row.image_shape == (3, 28, 28)


def test_a_package_without_the_file_and_no_package_are_told_apart(row, monkeypatch):
    package = packaged.PACKAGES["vit_small_patch14_saliency"]
    wrong = dataclasses.replace(package, locator="models/other.onnx")
    monkeypatch.setitem(packaged.PACKAGES, "vit_small_patch14_saliency", wrong)
    with pytest.raises(SnowsError, match=r"has no file models/other.onnx"):
        row.load_model()
    missing = dataclasses.replace(package, module="no_such_package")
    monkeypatch.setitem(packaged.PACKAGES, "vit_small_patch14_saliency", missing)
    monkeypatch.setattr(sources, "_is_cached", lambda name: True)  # the hub's weights are others: never asked
    with pytest.raises(SnowsError, match=r"no_such_package is not installed.*snows-core\[imagenet-samples\]"):
        row.load_model()


def test_the_row_is_a_vit_s_of_224_pixels_without_classes():
    row = registry.EXPERIMENTS["vit_small_patch14_saliency"]
    assert row.image_shape == (3, 224, 224) and row.data == "imagenet-samples"
    model = row.load_model(pretrained=False)
    assert model.num_classes == 0 and len(model.blocks) == 12 and model.pos_embed.shape == (1, 257, 384)
    assert sources.preprocessing(row.model).mean == pytest.approx((0.485, 0.456, 0.406))


def test_the_command_line_judges_it_by_its_features(row, make_images, tmp_path):
    make_images(tmp_path / "images" / "train" / "a", 8, size=32)
    make_images(tmp_path / "images" / "test" / "a", 5, size=32)
    words = ["prune", "--model", row.name, "--data", f"folder:{tmp_path / 'images'}", "--pattern", "2:4", "--k", "1"]
    words += ["--images", "8", "--effort", "quick", "--quiet", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert "it has no classes; its features are compared" in done.output and "same neighbour %" in done.output
    found = json.loads((tmp_path / "out" / "manifest.json").read_text())["evaluation"]["pruned"]
    assert found["images"] == 5 and 0 < found["cosine"] < 1 and found["accuracy"] is None
    again = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "out"), "--quiet"])
    assert again.exit_code == 0 and f"{found['cosine']:.4g}"[:5] in again.output
