"""Pruned weights in one file: the same bits under every name, zeros that stay, and no file where something is wrong."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import weights as written
from snows_core.export.promise import promise_of, support_digest

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration images")
FILES = {"safetensors": "weights.safetensors", "state-dict": "weights.pth"}


class Tied(nn.Module):
    """Two layers that are one weight under two names, a buffer of whole numbers, and a view into a larger tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 3)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(100)[10:20])

    def forward(self, x):
        return self.last(self.second(torch.relu(self.first(x.flatten(1)))))


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    images = random_images(8).float()
    return snows.prune(small_resnet().float(), images, pattern="2:4", effort="quick", update="none")


def read(path):
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


@pytest.mark.parametrize("format", FILES)
def test_a_file_gives_the_weights_back_bit_for_bit(result, tmp_path, format):
    made = snows.export_weights(result, tmp_path / FILES[format], format)
    state = read(made.path)
    own = result.model.state_dict()
    assert isinstance(state, dict) and state.keys() == own.keys()
    assert all(torch.equal(state[name], value) and state[name].dtype == value.dtype for name, value in own.items())
    fresh = small_resnet().float()
    fresh.load_state_dict(state)
    images = random_images(4).float()
    assert torch.equal(fresh(images), result.model(images))
    assert made.zeros == sum(int((own[name] == 0).sum()) for name in result.weight_names.values())
    assert f"{made.zeros:,} zeros, 50.0%" in str(made) and not made.underflows
    assert [path.name for path in tmp_path.iterdir()] == [FILES[format]]


def test_the_promise_is_of_the_weights_in_the_file(result, tmp_path):
    snows.export_weights(result, tmp_path / "a.safetensors", dtype="bfloat16")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        promise = json.loads(file.metadata()["snows"])
    snows.export_weights(result, tmp_path / "a.pth", "state-dict")
    of_state = json.loads(torch.load(tmp_path / "a.pth", weights_only=True)._metadata[""]["snows"])
    assert of_state == promise == promise_of(result)
    state = load_file(tmp_path / "a.safetensors")
    assert promise["pattern"] == "2:4" and len(promise["layers"]) == len(result.masks)
    for name, layer in promise["layers"].items():
        assert layer["support"] == support_digest(state[name]) and layer["zeros"] == int((state[name] == 0).sum())
        assert layer["shape"] == list(state[name].shape) and result.weight_names[layer["layer"]] == name


@pytest.mark.parametrize("format", FILES)
def test_a_shared_weight_is_there_under_both_names(tmp_path, format):
    model, images = Tied().eval(), random_images(8, size=2).float()
    result = snows.prune(model, images, pattern=0.5, layers=["last"], effort="quick", update="none")
    made = snows.export_weights(result, tmp_path / FILES[format], format)
    state = read(made.path)
    assert torch.equal(state["first.weight"], state["second.weight"]) and state["table"].tolist() == [*range(10, 20)]
    fresh = Tied().eval()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(images), result.model(images))
    assert made.path.stat().st_size < 20_000  # the view alone, not what it is a view of


def test_a_narrower_type_keeps_zeros_and_tells_of_new_ones(result, tmp_path):
    state = {name: value.clone() for name, value in result.state.items()}
    layer, name = next(iter(result.weight_names.items()))
    kept = result.masks[layer].nonzero()[:3]
    state[name][tuple(kept.T)] = torch.tensor([1e-9, -1e-9, 1e-9])  # below half of float16's smallest number, 6e-8
    state["bn1.running_var"][0] = 1e-9
    changed = dataclasses.replace(result, state=state)
    made = snows.export_weights(changed, tmp_path / "half.safetensors", dtype="float16")
    half = load_file(made.path)
    assert made.underflows == {name: 3, "bn1.running_var": 1}
    assert f"4 values of 2 tensors are too small for float16 and became zero, most of them in '{name}'" in str(made)
    assert {value.dtype for value in half.values() if value.is_floating_point()} == {torch.float16}
    assert half["bn1.num_batches_tracked"].dtype == torch.int64
    for layer, name in result.weight_names.items():
        assert bool((half[name][~result.masks[layer]] == 0).all())
    assert made.zeros == sum(int((half[name] == 0).sum()) for name in result.weight_names.values())
    assert not snows.export_weights(changed, tmp_path / "b.safetensors", dtype="bfloat16").underflows


def test_values_that_are_too_large_are_refused(result, tmp_path):
    changed = dataclasses.replace(
        result, state=result.state | {"fc.bias": torch.full_like(result.state["fc.bias"], 7e4)}
    )
    with pytest.raises(SnowsError, match=r"dtype: got float16, which cannot hold 7e\+04 in 'fc.bias'"):
        snows.export_weights(changed, tmp_path / "half.safetensors", dtype="float16")
    assert not list(tmp_path.iterdir())
    snows.export_weights(changed, tmp_path / "b.safetensors", dtype="bfloat16")


def test_an_interrupted_result_is_refused(result, tmp_path):
    report = result.report.copy()
    report.loc[report["status"] == "pruned", "status"] = "not reached"
    lost = dataclasses.replace(result, report=report)
    stopped = dataclasses.replace(result, manifest=result.manifest | {"refinement": {"interrupted": True}})
    for unfinished, words in ((lost, "layers are not pruned yet"), (stopped, "interrupted before its end")):
        with pytest.raises(SnowsError, match=words):
            snows.export_weights(unfinished, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.bin", {}, "path: got '.*a.bin'; expected a file that ends in .safetensors"),
        ("a.pth", {}, "ends in .safetensors"),
        ("a.pth", {"format": "pickle"}, "format: got 'pickle'"),
        ("a.safetensors", {"dtype": "int8"}, "dtype: got 'int8'; expected one of"),
        ("there.safetensors", {}, "is there already; expected a new file"),
        ("there.safetensors/a.safetensors", {}, "cannot be written"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(result, tmp_path, name, options, words):
    (tmp_path / "there.safetensors").write_text("mine")
    with pytest.raises(SnowsError, match=words):
        snows.export_weights(result, tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.safetensors"]
    assert (tmp_path / "there.safetensors").read_text() == "mine"


def test_what_is_no_result_is_refused(result, tmp_path):
    with pytest.raises(SnowsError, match=r"result: got a \w+; expected a PruneResult"):
        snows.export_weights(result.model, tmp_path / "a.safetensors")


def test_a_write_that_fails_leaves_what_was_there(result, tmp_path, monkeypatch):
    path = snows.export_weights(result, tmp_path / "a.safetensors").path
    before = path.read_bytes()

    def fail(state, file, metadata):
        file.write_bytes(b"half")
        raise RuntimeError("no space")

    monkeypatch.setattr(written, "save_file", fail)
    with pytest.raises(SnowsError, match="no space"):
        snows.export_weights(result, path, overwrite=True)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
