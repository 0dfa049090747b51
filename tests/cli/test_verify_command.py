"""`snows verify`: exit code 0 where promises hold, 1 where one does not, 2 for what has to be typed otherwise."""

import json
import warnings

import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import snows_core as snows
from snows_core.cli import app as cli
from snows_core.export import METADATA_KEY, promise_of
from snows_core.result import load
from snows_core.zoo.networks import digits_resnet20

LAYER = "layer3.2.conv1"


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    out = tmp_path_factory.mktemp("verify") / "pruned"
    options = {"layers": "layer3.2.*", "update": "none", "effort": "quick", "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        snows.prune(digits_resnet20().eval(), torch.randn(8, 1, 16, 16), "2:4", **options).save(out)
    return out


def copied(pruned, target, change=None):
    """Copy the folder of a result, with one weight changed."""
    target.mkdir()
    for file in pruned.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    if change is not None:
        state = load_file(target / "model.safetensors")
        state[f"{LAYER}.weight"][change] = 0.5
        save_file(state, target / "model.safetensors")
    return target


def a_zero(pruned):
    return tuple((load_file(pruned / "model.safetensors")[f"{LAYER}.weight"] == 0).nonzero()[3].tolist())


def test_a_folder_holds_until_a_weight_is_filled(pruned, tmp_path):
    done = run("verify", pruned)
    assert done.exit_code == 0, done.output
    assert "all that is promised of 2 layers holds" in done.output and "not among layers=" in done.output
    row = next(line for line in done.output.splitlines() if LAYER in line).split()
    assert row == [LAYER, "64x64x3x3", "1", "2:4", "2:4", "0.5", "0"]
    place = a_zero(pruned)
    broken = run("verify", copied(pruned, tmp_path / "broken", place))
    assert broken.exit_code == 1
    assert f"{LAYER}.weight[{', '.join(map(str, place))}] is 0.5, where the mask has a zero" in broken.output
    assert "2:4 allows 2" in broken.output


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # on the age of the exporter
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
def test_files(pruned, suffix, tmp_path):
    path, result = tmp_path / f"net{suffix}", load(pruned, digits_resnet20())
    place = a_zero(pruned)

    def write(state):
        if suffix == ".pth":
            torch.save(state, path)
        elif suffix == ".safetensors":
            save_file(state, path, metadata={METADATA_KEY: json.dumps(promise_of(result))})
        else:
            network = digits_resnet20().eval()
            network.load_state_dict(state)
            torch.onnx.export(network, (torch.randn(2, 1, 16, 16),), path, dynamo=False, verbose=False)

    write(result.state)
    state = {name: value.clone() for name, value in result.state.items()}
    alone = run("verify", path)
    assert alone.exit_code == 0, alone.output
    assert ("nothing is promised of" in alone.output) == (suffix != ".safetensors")
    assert run("verify", path, "--against", pruned).exit_code == 0
    assert run("verify", path, "--pattern", "2:4", "--layers", "layer3.2.*").exit_code == 0
    assert run("verify", path, "--pattern", "1:4", "--layers", "layer3.2.*").exit_code == 1
    state[f"{LAYER}.weight"][place] = 0.5
    write(state)
    assert run("verify", path).exit_code == (1 if suffix == ".safetensors" else 0)
    broken = run("verify", path, "--against", pruned)
    assert broken.exit_code == 1 and f"[{', '.join(map(str, place))}] is" in broken.output
    assert run("verify", path, "--against", pruned, "--exclude", LAYER).exit_code == 0


MISTAKES = [
    (["nowhere"], 2, "error: source: got 'nowhere'"),
    (["{pruned}", "--pattern", "4:2"], 2, "error: --pattern: got"),
    (["{pruned}", "--layers", "layer9"], 2, "error: --layers: got 'layer9'"),
    (["{pruned}", "--exclude", "*"], 2, "error: --exclude: got a choice"),
    (["{pruned}", "--pattern", "structured:0.5"], 2, "error: --pattern: got 'structured 0.5'"),
    (["{pruned}", "--against", "nowhere"], 2, "error: --against: got"),
    (["{damaged}"], 1, "error: source: got"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), MISTAKES)
def test_mistakes_are_one_sentence(pruned, tmp_path, arguments, code, words):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"nothing of the kind")
    names = {"pruned": pruned, "damaged": damaged}
    done = run("verify", *(text.format(**names) for text in arguments))
    assert done.exit_code == code, done.output
    assert done.output.startswith(words) and done.output.count("\n") == 1 and "Traceback" not in done.output


def test_the_axis_of_a_product_is_that_of_its_inputs(tmp_path):
    values = torch.tensor([[1.0], [1.0], [0.0], [0.0]]).repeat(2, 4)  # (inputs, outputs)
    infos = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in "xy"]
    for kind, code in {"MatMul": 0, "Gemm": 0, "transposed": 1}.items():
        node = onnx.helper.make_node("MatMul" if kind == "transposed" else kind, ["x", "w"], ["y"])
        tensor = numpy_helper.from_array((values.T if code else values).contiguous().numpy(), "w")
        graph = onnx.helper.make_graph([node], "graph", infos[:1], infos[1:], [tensor])
        onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
        assert run("verify", tmp_path / "a.onnx", "--pattern", "2:4").exit_code == code
