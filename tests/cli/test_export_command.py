"""`snows export` and `snows push`: files that load, a card whose command makes the same again, one sentence else."""

import json
import re
import shlex
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from snows_core.cli import app as cli
from snows_core.cli import commands
from snows_core.export.hub.again import made_by
from snows_core.settings import PruneSettings, settings_of
from snows_core.sweep.augment import flip_and_shift
from snows_core.zoo import experiment
from snows_core.zoo.origins import origin_of


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "pruned"
    options = ["--images", 16, "--layers", "blocks.3.mlp.*", "--effort", "quick", "--k", 0, "--test-images", 50]
    done = run("prune", "--model", "digits-vit-b", *options, "--pattern", "1:4", "--seed", 3, "--quiet", "--out", out)
    assert done.exit_code == 0, done.output
    return out


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_weights_in_one_file(pruned, tmp_path):
    own = load_file(pruned / "model.safetensors")
    for format, name in (("safetensors", "w.safetensors"), ("state-dict", "w.pth")):
        done = run("export", pruned, "--to", format, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
        assert f"saved to {tmp_path / name}" in done.output and "75.0% of the" in done.output
        state = (
            load_file(tmp_path / name) if format == "safetensors" else torch.load(tmp_path / name, weights_only=True)
        )
        assert same(own, dict(state))
    again = run("export", pruned, "--to", "safetensors", "--out", tmp_path / "w.safetensors", "--dtype", "bfloat16")
    assert again.exit_code == 2 and again.output.startswith("error: --out: got") and "--overwrite" in again.output
    again = run("export", pruned, "--to", "safetensors", "--out", tmp_path / "w.safetensors", "--overwrite")
    assert again.exit_code == 0, again.output


def test_a_hub_folder_and_the_command_on_its_card(pruned, tmp_path):
    out = tmp_path / "net"
    done = run("export", pruned, "--to", "hf-hub-folder", "--out", out)
    assert done.exit_code == 0, done.output
    assert f"local-dir:{out}" in done.output and f"next: snows push {out} USER/NAME" in done.output
    card, config = (out / "README.md").read_text(), json.loads((out / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224" and config["pretrained_cfg"]["input_size"] == [1, 16, 16]
    assert len(config["pretrained_cfg"]["mean"]) == 1 and "license: mit" in card and "50 of the 597" in card
    measured = json.loads((pruned / "manifest.json").read_text())["evaluation"]["pruned"]
    assert f"| pruned | {measured['accuracy']:.2f} % [" in card
    command = re.search(r"```sh\n(.*?)\n```", card, re.DOTALL)[1]
    words = shlex.split(command.replace("\\\n", ""))
    assert words[0] == "snows" and words[-2:] == ["--out", "pruned"]
    done = run(*words[1:-1], tmp_path / "again", "--quiet")
    assert done.exit_code == 0, done.output
    assert same(load_file(pruned / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors"))


@pytest.mark.parametrize(
    "typed",
    [
        ["--pattern", "2:4"],
        [
            "--pattern",
            "global:0.9:0.95",
            "--stages",
            "3",
            "--stage-k",
            "1",
            "--refine",
            "9",
            "--refine-solver",
            "natural",
        ],
        ["--pattern", "1:4", "--stages", "3:4,2:4,1:4", "--effort", "best", "--augment", "--moving-masks"],
        ["--recipe", "paper", "--set", "steps=2", "--set", "curvature_images=none", "--k", "auto", "--no-permute"],
        ["--layers", "layer1.*", "--layers", "layer2.*", "--exclude", "*.conv2", "--deterministic", "--seed", "7"],
        ["--pattern", "0.8", "--allocation", "erk", "--saliency", "curvature", "--mask", "wanda", "--update", "own"],
    ],
)
def test_the_command_says_every_setting(typed, monkeypatch):
    asked = []

    def stop(source, out, options, *others):
        asked.append((source, options))
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "prune_to_folder", stop)
    usual = ["prune", "--model", "resnet20", "--images", "32", "--out", "x", "--test-images", "40", "--data", "cifar10"]
    assert run(*usual, *typed).exit_code == 130
    source, options = asked[0]
    command, left = made_by({"settings": settings(options).record(), "source": source.record()})
    assert run(*shlex.split(command)[1:]).exit_code == 130, command
    assert asked[1][0] == source and settings(asked[1][1]) == settings(options) and not left


def settings(options):
    augment = {"augment": flip_and_shift} if options.get("augment") else {}
    return settings_of(PruneSettings, **{**options, **augment, "progress": True})


def test_a_call_in_python_is_told_as_one():
    record = PruneSettings("1:4", k=2, layers=["conv*"], recipe="paper", labels=[1, 2]).record()
    call, left = made_by({"settings": record})
    assert call == (
        "snows_core.prune(model, images, pattern='1:4', k=2, layers=['conv*'], seed=0, recipe='paper', labels=...)"
    )
    assert "`...` is not in the record" in " ".join(left)


@pytest.mark.parametrize(
    ("name", "own", "license", "base"),
    [
        ("digits-resnet20", False, "mit", None),
        ("resnet20", False, None, None),
        ("efficientnet-lite0", False, "apache-2.0", "timm/tf_efficientnet_lite0.in1k"),
        ("efficientnet-lite0", True, None, None),
        ("vit_small_patch14_saliency", False, "mit", None),
        ("timm/resnet50.a1_in1k", False, "apache-2.0", "timm/resnet50.a1_in1k"),
        ("torchvision/resnet18", False, None, None),
    ],
)
def test_a_licence_is_the_one_of_the_weights_or_unknown(name, own, license, base):
    model = experiment(name).load_model(pretrained=False)
    about = origin_of(experiment(name), model, own)
    assert (about.license, about.base_model) == (license, base)
    names = {}
    exec(f"import {about.build[0]}\nmodel = {about.build[1]}", names)
    names["model"].load_state_dict(model.state_dict())
    assert len(about.mean) == len(about.std) == experiment(name).image_shape[0]


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet10t"])
def test_a_fine_tuned_network_is_built_with_its_own_outputs(name, tmp_path):
    model = experiment(name).load_model(pretrained=False, num_classes=7)
    about, names = origin_of(experiment(name), model, True), {}
    exec(f"import {about.build[0]}\nmodel = {about.build[1]}", names)
    names["model"].load_state_dict(model.state_dict())


def test_an_onnx_file_is_compared_on_test_images(pruned, tmp_path):
    pytest.importorskip("snows_core.export.onnx.export_onnx")
    done = run("export", pruned, "--to", "onnx", "--out", tmp_path / "net.onnx", "--images", 20)
    assert done.exit_code == 0, done.output
    assert "agreement 100" in done.output and "20 images" in done.output and (tmp_path / "net.onnx").is_file()
    done = run("export", pruned, "--to", "onnx", "--out", tmp_path / "b.onnx", "--images", 10_000)
    assert done.exit_code == 2 and "at most 597" in done.output


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--to", "pickle"], "--to"),
        (["--to", "safetensors", "--license", "mit"], "--license"),
        (["--to", "onnx", "--dtype", "float16"], "--dtype"),
        (["--to", "state-dict", "--images", "3"], "--images"),
        (["--to", "safetensors", "--dtype", "int8"], "--dtype"),
        (["--to", "safetensors"], "--out"),  # a file that ends in nothing
    ],
)
def test_mistakes_are_one_sentence_that_names_the_option(pruned, tmp_path, words, option):
    out = tmp_path / ("x.safetensors" if option == "--dtype" else "x")
    done = run("export", pruned, *words, "--out", out)
    assert done.exit_code == 2 and done.output.startswith(f"error: {option}: got"), done.output
    assert len(done.output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_folders_that_hold_no_finished_result(pruned, tmp_path):
    done = run("export", tmp_path / "nothing", "--to", "safetensors", "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 2 and done.output.startswith("error: folder: got")
    shutil.copytree(pruned, tmp_path / "half")
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    manifest["refinement"] = {"interrupted": True}
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest))
    for to in ("safetensors", "hf-hub-folder", "onnx"):
        out = tmp_path / {"safetensors": "a.safetensors", "onnx": "a.onnx"}.get(to, "hub")
        done = run("export", tmp_path / "half", "--to", to, "--out", out)
        assert done.exit_code == 2 and "interrupted" in done.output and not out.exists(), done.output
    (tmp_path / "half" / "model.safetensors").write_bytes(b"damaged")
    done = run("export", tmp_path / "half", "--to", "safetensors", "--out", tmp_path / "a.safetensors")
    assert done.exit_code == 1 and "damaged" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["half"]


def test_pushing_without_a_token_or_a_folder(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    done = run("push", pruned, "user/net")
    assert done.exit_code == 2 and done.output.startswith("error: folder: got") and "hf-hub-folder" in done.output
    assert run("export", pruned, "--to", "hf-hub-folder", "--out", tmp_path / "net").exit_code == 0
    done = run("push", tmp_path / "net", "user/net")
    assert done.exit_code == 1 and "token" in done.output and len(done.output.splitlines()) == 1
    done = run("push", tmp_path / "net", "net")
    assert done.exit_code == 2 and "repo_id" in done.output

    class Unreachable:
        def __init__(self, token):
            self.token = token

        def create_repo(self, *arguments, **options):
            raise ConnectionError(f"no route for {self.token}")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    done = run("push", tmp_path / "net", "user/net", "--token", "hf_secret")
    assert done.exit_code == 1 and "no route" in done.output and "hf_secret" not in done.output
