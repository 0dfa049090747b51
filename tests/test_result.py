"""result.py: a result is written whole or not at all, and comes back as it was."""

import importlib
import json

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from toys import random_images, random_mask, small_resnet, torch_attention

import snows_core as snows
from snows_core.errors import SnowsError

result_module = importlib.import_module("snows_core.result")
FILES = ["manifest.json", "masks.safetensors", "model.safetensors", "report.csv"]


@pytest.fixture(scope="module")
def result():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return snows.prune(small_resnet(), random_images(8), k=2, progress=False)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_save_and_load_round_trip(result, tmp_path):
    folder = result.save(tmp_path / "deep" / "pruned")
    assert folder == tmp_path / "deep" / "pruned" and names(folder) == FILES
    assert names(folder.parent) == ["pruned"], "nothing temporary is left"
    model = small_resnet(seed=9)
    back = snows.load(folder, model)
    assert back.model is model
    images = random_images(3)
    assert torch.equal(model(images), result.model(images))
    assert back.masks.keys() == result.masks.keys()
    assert all(torch.equal(back.masks[name], mask) for name, mask in result.masks.items())
    assert back.manifest == json.loads(json.dumps(result.manifest)) and back.weight_names == result.weight_names
    assert (back.complete, back.sparsity) == (result.complete, result.sparsity)
    pd.testing.assert_frame_equal(back.report, result.report.fillna({"stop": ""}), check_dtype=False)
    assert back.report["reason"].tolist() == result.report["reason"].tolist()


def test_loading_without_a_model_gives_the_weights(result, tmp_path):
    back = snows.load(result.save(tmp_path / "a"))
    assert back.model is None
    assert all(torch.equal(back.state[key], value) for key, value in result.state.items())


def test_weights_load_with_plain_load_state_dict(result, tmp_path):
    folder = result.save(tmp_path / "a")
    model = small_resnet(seed=9)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    assert torch.equal(model.layer1.conv1.weight, result.model.layer1.conv1.weight)


def test_a_loaded_result_can_be_saved_again(result, tmp_path):
    again = snows.load(result.save(tmp_path / "a")).save(tmp_path / "b")
    first, second = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert names(again) == FILES and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"notes.txt": "mine"}, r"folder: got .*, which holds other files; expected a new or empty folder"),
        (dict.fromkeys(FILES, "x"), r"folder: got .*, which holds a result already; .*overwrite=True"),
    ],
)
def test_save_refuses_to_overwrite(result, tmp_path, content, message):
    folder = tmp_path / "a"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(SnowsError, match=message):
        result.save(folder)
    assert {path.name: path.read_text() for path in folder.iterdir()} == content
    if "notes.txt" in content:
        with pytest.raises(SnowsError, match="which holds other files"):
            result.save(folder, overwrite=True)


def test_save_refuses_a_file_and_takes_an_empty_folder(result, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SnowsError, match=r"folder: got the file .*; expected a folder"):
        result.save(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert names(result.save(tmp_path / "empty")) == FILES


def test_overwriting_replaces_the_result(result, tmp_path):
    folder = result.save(tmp_path / "a")
    (folder / "report.csv").write_text("old")
    assert (result.save(folder, overwrite=True) / "report.csv").read_text() != "old"
    assert names(tmp_path) == ["a"]


def _fail(*args, **kwargs):
    raise OSError("no space left on device")


BREAKS = {
    "weights": lambda patch: patch.setattr(result_module, "save_file", _fail),
    "masks": lambda patch: patch.setattr(
        result_module, "save_file",
        lambda tensors, path, write=result_module.save_file: _fail() if "masks" in str(path) else write(tensors, path),
    ),
    "manifest": lambda patch: patch.setattr(result_module.json, "dumps", _fail),
    "report": lambda patch: patch.setattr(pd.DataFrame, "to_csv", _fail),
}  # fmt: skip


@pytest.mark.parametrize("what", BREAKS)
@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_nothing_half_written(result, tmp_path, monkeypatch, what, there):
    folder = tmp_path / "a"
    if there:
        result.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()} if there else None
    BREAKS[what](monkeypatch)
    with pytest.raises(OSError, match="no space"):
        result.save(folder, overwrite=there)
    assert names(tmp_path) == (["a"] if there else [])
    if there:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_last_rename_that_fails_leaves_the_old_result(result, tmp_path, monkeypatch):
    folder = result.save(tmp_path / "a")
    rename = type(folder).rename

    def fail(self, target):
        return _fail() if self.name == "new" else rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fail)
    with pytest.raises(OSError, match="no space"):
        result.save(folder, overwrite=True)
    assert names(tmp_path) == ["a"] and names(folder) == FILES


def test_load_refuses_what_is_no_result(result, tmp_path):
    with pytest.raises(SnowsError, match=r"folder: got .*nowhere without model\.safetensors, .*; expected a folder"):
        snows.load(tmp_path / "nowhere")
    folder = result.save(tmp_path / "a")
    (folder / "report.csv").unlink()
    with pytest.raises(SnowsError, match=r"without report\.csv"):
        snows.load(folder)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_load_refuses_damaged_files(result, tmp_path, name):
    folder = result.save(tmp_path / "a")
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(SnowsError, match=rf"folder: got .*{name}"):
        snows.load(folder)


@pytest.mark.parametrize("make", [lambda: small_resnet(width=8), torch_attention])
def test_load_refuses_another_architecture(result, tmp_path, make):
    folder = result.save(tmp_path / "a")
    with pytest.raises(SnowsError, match=r"model: got a network that the saved weights do not fit \(.+\); exp"):
        snows.load(folder, make())


def test_fault_6_every_saved_weight_reaches_the_model(result, tmp_path):
    # Fault 6 of the published code: strict=False loads that load nothing.
    folder = result.save(tmp_path / "a")
    model = small_resnet(seed=9)
    del model.fc
    with pytest.raises(SnowsError, match="do not fit"):
        snows.load(folder, model)


def test_apply_masks_only_zeroes_and_leaves_the_model_alone():
    model = small_resnet()
    before = model.layer1.conv1.weight.detach().clone()
    masks = {"layer1.conv1": random_mask((4, 4, 3, 3)), "fc.weight": random_mask((3, 8))}
    pruned = snows.apply_masks(model, masks)
    assert torch.equal(model.layer1.conv1.weight, before)
    assert torch.equal(pruned.layer1.conv1.weight, before * masks["layer1.conv1"])
    assert torch.equal(pruned.fc.weight, model.fc.weight * masks["fc.weight"])
    assert torch.equal(pruned.layer1.conv2.weight, model.layer1.conv2.weight)


def test_apply_masks_takes_the_masks_of_a_result(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = snows.prune(torch_attention(), random_images(8), k=0, progress=False)
    masked = snows.apply_masks(torch_attention(), made.masks, made.weight_names)
    assert float((masked.attn.in_proj_weight == 0).float().mean()) == 0.5


@pytest.mark.parametrize("masks", [{"conv9": torch.ones(1)}, {"fc": torch.ones(2, 2)}])
def test_apply_masks_refuses_names_and_shapes_it_does_not_know(masks):
    with pytest.raises(SnowsError, match=r"masks: got '.+' of shape \(.+\); expected names and shapes of this model"):
        snows.apply_masks(small_resnet(), masks)
