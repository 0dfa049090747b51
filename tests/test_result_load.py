"""result.py, fitting.py: what is no result gives one error, runs no code, and leaves the caller's model alone."""

import json
import pickle

import pytest
import torch
from results import FILES, WithExtra, made_up, small_result
from safetensors.torch import load_file, save_file
from torch import nn
from toys import small_resnet, torch_attention

import snows_core as snows
from snows_core.errors import SnowsError


@pytest.fixture(scope="module")
def result():
    return small_result()


def changed(model, before):
    return [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]


def test_a_network_that_is_refused_is_as_it_was_and_every_misfit_is_named(result, tmp_path):
    folder = result.save(tmp_path / "a")
    model = small_resnet(seed=9)
    model.fc = nn.Linear(8, 5).double()
    model.extra = nn.Linear(2, 2)
    del model.bn1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SnowsError) as caught:
        snows.load(folder, model)
    message = str(caught.value)
    assert "\n" not in message and changed(model, before) == []
    assert "missing: extra.weight, extra.bias; not in the model: bn1." in message
    assert "other shapes: " in message and "fc.weight (3, 8) for (5, 8)" in message and "fc.bias (3,)" in message


def test_a_network_that_refuses_by_itself_is_as_it_was(tmp_path):
    made = made_up(["fc"])
    made.state = nn.Sequential(nn.Linear(4, 2), WithExtra(torch.arange(3))).state_dict()
    made.state["0.weight"] *= made.masks["fc"]
    made.weight_names = {"fc": "0.weight"}
    model = nn.Sequential(nn.Linear(4, 2), WithExtra(torch.zeros(3), fails=True))  # when it fails, 0 is loaded already
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SnowsError, match=r"saved weights do not fit \(not mine\)"):
        snows.load(made.save(tmp_path / "a"), model)
    assert changed(model, before) == []


def test_weights_load_in_the_types_of_the_model_and_into_wrapped_ones(result, tmp_path):
    folder = result.save(tmp_path / "a")
    half = snows.load(folder, small_resnet(seed=9).half()).model
    assert half.fc.weight.dtype == torch.float16
    assert torch.allclose(half.fc.weight.double(), result.model.fc.weight, rtol=1e-3)
    assert ((half.layer1.conv1.weight == 0) == ~result.masks["layer1.conv1"]).all()
    for wrap in (nn.DataParallel, lambda model: torch.compile(model, backend="eager")):
        model = wrap(small_resnet(seed=9))
        assert snows.load(folder, model).model is model
        inner = next(iter(model.children()))
        assert all(torch.equal(value, result.state[name]) for name, value in inner.state_dict().items())


@pytest.mark.parametrize("wrong", [nn.Linear, "resnet20", 3])
def test_what_is_no_network_is_refused(result, tmp_path, wrong):
    with pytest.raises(SnowsError, match=r"model: got a .*; expected a network \(nn\.Module\)"):
        snows.load(result.save(tmp_path / "a"), wrong)


def test_weights_that_are_not_finite_are_not_loaded_into_a_model(result, tmp_path):
    folder = result.save(tmp_path / "a")
    state = load_file(folder / "model.safetensors")
    state["layer1.conv1.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors")
    model = small_resnet(seed=9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(SnowsError, match=r"whose weight of 'layer1\.conv1' has NaN or infinite values"):
        snows.load(folder, model)
    assert changed(model, before) == []


class Runs:
    """Pickles to a call: what a malicious file does where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


ODD_FILES = {
    "truncated": lambda old, trace: old[: len(old) // 2],
    "empty": lambda old, trace: b"",
    "binary": lambda old, trace: bytes(range(256)) * 9,
    "pickle": lambda old, trace: pickle.dumps(Runs(trace)),
    "archive": lambda old, trace: b"PK\x03\x04" + old,
    "nested": lambda old, trace: b"[" * 100_000,
    "other type": lambda old, trace: json.dumps([1, 2]).encode(),
    "null": lambda old, trace: b"null",
    "huge header": lambda old, trace: (2**62).to_bytes(8, "little") + b"{}",
    "no columns": lambda old, trace: b"layer,status\na,pruned\n",
    "no numbers": lambda old, trace: b"layer,status,reason,weights,kept\na,pruned,,many,few\n",
    "names of other types": lambda old, trace: b'{"weight_names": {"a": 3}}',
    "names missing": lambda old, trace: b'{"pattern": "2:4"}',
}


@pytest.mark.parametrize("what", ODD_FILES)
@pytest.mark.parametrize("name", FILES)
def test_odd_files_give_one_error_and_run_nothing(result, tmp_path, name, what):
    folder = result.save(tmp_path / "a")
    path, trace = folder / name, tmp_path / "it ran"
    path.write_bytes(ODD_FILES[what](path.read_bytes(), trace))
    model = small_resnet(seed=9)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(SnowsError, match=r"^(folder|model): got .*") as caught:
        snows.load(folder, model)
    assert "\n" not in str(caught.value) and changed(model, before) == [] and not trace.exists()


@pytest.mark.parametrize(
    "masks, message",
    [
        ({"layer1.conv1": torch.full((4, 4, 3, 3), 2)}, r"a damaged file .*masks.* \(masks: got the value 2 in"),
        ({"layer1.conv1": torch.ones(4, 4)}, r"whose mask of 'layer1\.conv1' fits no weight"),
        ({"conv1": torch.ones(4, 4)}, r"whose mask of 'conv1' fits no weight"),
        ({"other": torch.ones(4, 4)}, r"whose report lacks 'other'"),
    ],
)
def test_masks_that_do_not_fit_their_weights_are_refused(result, tmp_path, masks, message):
    folder = result.save(tmp_path / "a")
    save_file(masks, folder / "masks.safetensors")
    with pytest.raises(SnowsError, match=message):
        snows.load(folder)


def test_a_report_that_was_cut_at_the_end_of_a_line_is_refused(result, tmp_path):
    path = result.save(tmp_path / "a") / "report.csv"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(SnowsError, match=r"whose report lacks 'layer1\.conv2'"):
        snows.load(tmp_path / "a")


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
