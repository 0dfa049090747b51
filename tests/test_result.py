"""result.py: a result is written whole or not at all, and comes back as it was."""

import importlib
import json

import pandas as pd
import pytest
import torch
from results import FILES, WithExtra, made_up, small_result
from safetensors.torch import load_file
from spies import stop_after
from torch import nn
from toys import random_images, random_mask, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError

result_module = importlib.import_module("snows_core.result")


@pytest.fixture(scope="module")
def result():
    return small_result()


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
    exact = back.report.select_dtypes("number").astype(float)
    pd.testing.assert_frame_equal(exact, result.report[exact.columns].astype(float), check_exact=True)
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
        result_module,
        "save_file",
        lambda tensors, path, write=result_module.save_file: _fail() if "masks" in str(path) else write(tensors, path),
    ),
    "manifest": lambda patch: patch.setattr(result_module.json, "dumps", _fail),
    "report": lambda patch: patch.setattr(pd.DataFrame, "to_csv", _fail),
}


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


ODD_NAMES = [
    "0.10",
    "0.1",
    "nan",
    "None",
    "NA",
    "null",
    "1e5",
    "",
    "true",
    "007",
    "inf",
    "-",
    " a ",
    "a,b",
    'say "x"',
    "line\nbreak",
    "return\rhere",
    "#",
    "größe",
]


def test_texts_of_the_report_come_back_as_texts(tmp_path):
    made = made_up(ODD_NAMES, reason=ODD_NAMES[::-1], note=["", "0.5", *ODD_NAMES[2:]])
    back = snows.load(made.save(tmp_path / "a"))
    assert back.report["layer"].tolist() == ODD_NAMES and back.report["reason"].tolist() == ODD_NAMES[::-1]
    assert back.report["note"].tolist() == made.report["note"].tolist(), "a column that is no number throughout"
    assert back.masks.keys() == set(ODD_NAMES) and back.weight_names == made.weight_names
    assert back.report["loss_end"].tolist() == made.report["loss_end"].tolist(), "exactly"
    assert all(pd.api.types.is_numeric_dtype(back.report[name]) for name in ("weights", "kept", "k", "sparsity"))


def test_an_interrupted_run_goes_on_from_a_loaded_result(tmp_path, monkeypatch, few_images_are_fine):
    options = {"pattern": "2:4", "k": 1, "progress": False}
    net = nn.Sequential(*[m for i in range(12) for m in (nn.Conv2d(4 if i else 3, 4, 3, padding=1), nn.ReLU())])
    net = nn.Sequential(net, nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    images = random_images(8, size=6)
    whole = snows.prune(net, images, **options, effort="quick")
    stop_after(monkeypatch, 5)
    part = snows.prune(net, images, **options, effort="quick")
    assert not part.complete and len(part.masks) == 5
    monkeypatch.undo()
    back = snows.load(part.save(tmp_path / "part"))
    rest = snows.prune(net, images, resume=back, **options, effort="quick")
    assert rest.complete and rest.report["layer"].tolist() == whole.report["layer"].tolist()
    assert "0.10" in rest.masks
    for key, value in whole.state.items():
        assert torch.allclose(rest.state[key], value, atol=1e-10)


def test_extra_state_that_is_no_tensor_is_left_out_and_the_models_own_stays(tmp_path):
    made = made_up(["fc"])
    made.state = nn.Sequential(WithExtra({"step": 3})).state_dict()
    made.state["0.fc.weight"] *= random_mask((2, 4))
    made.weight_names = {"fc": "0.fc.weight"}
    folder = made.save(tmp_path / "a")
    assert load_file(folder / "model.safetensors").keys() == {"0.fc.weight", "0.fc.bias"}
    own = nn.Sequential(WithExtra("own", fails=True))
    back = snows.load(folder, own)
    assert back.model[0].extra == "own" and torch.equal(own[0].fc.weight, made.state["0.fc.weight"])
    assert all(isinstance(value, torch.Tensor) for value in back.state.values())
    own = nn.Sequential(WithExtra(torch.ones(3), fails=True))
    assert snows.load(folder, own).model[0].extra.tolist() == [1, 1, 1]


def test_extra_state_that_is_a_tensor_comes_back(tmp_path):
    made = made_up(["fc"])
    made.state, made.weight_names = WithExtra(torch.arange(3)).state_dict(), {"fc": "fc.weight"}
    made.state["fc.weight"] *= random_mask((2, 4))
    model = WithExtra(torch.zeros(7))
    snows.load(made.save(tmp_path / "a"), model)
    assert model.extra.tolist() == [0, 1, 2]


def test_a_record_with_numbers_of_other_libraries_is_written(result, tmp_path):
    made = made_up()
    made.manifest |= {"seed": torch.tensor(3), "mean": torch.ones(2).numpy(), "path": tmp_path}
    assert snows.load(made.save(tmp_path / "a")).manifest == {
        "pattern": "2:4",
        "seed": 3,
        "mean": [1.0, 1.0],
        "path": str(tmp_path),
    }


@pytest.mark.parametrize("wrong", [None, 3])
def test_a_folder_of_another_type_is_refused(result, wrong):
    for call in (snows.load, result.save, result_module.check_target):
        with pytest.raises(SnowsError, match=r"^folder: got "):
            call(wrong)
