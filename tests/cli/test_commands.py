"""commands.py and source.py: options handed on, folders refused early, what is solved kept and found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from spies import stop_after
from typer.testing import CliRunner

import snows_core
from snows_core.cli import app as cli
from snows_core.cli import commands
from snows_core.errors import SnowsError
from snows_core.settings import PruneSettings
from snows_core.zoo.registry import EXPERIMENTS

FAST = ["--model", "digits-resnet20", "--images", "16", "--layers", "layer3.2.conv2", "--quiet"]


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_an_out_that_can_never_be_made_is_refused_before_any_work(tmp_path, more, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("no folder")
    for out in ("file", "file/result", tmp_path / "file" / "a" / "b", "~/file/result", "file/../file/x"):
        done = run("prune", *FAST, "--out", out, *more)
        assert done.exit_code == 2 and done.stderr.startswith("error: --out: got"), done.output
        assert "dense accuracy" not in done.output and "overwrite=" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_relative_folders_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for out in ("a/near", "~/pruned"):
        assert run("prune", *FAST, "--k", "0", f"--out={out}").exit_code == 0
    assert all((tmp_path / place / "manifest.json").is_file() for place in ("a/near", "home/pruned"))
    assert run("evaluate", "~/pruned").exit_code == 0


@pytest.mark.parametrize("error", [SnowsError("images: got something."), OSError(5, "a broken disk")])
def test_an_error_while_measuring_keeps_the_pruned_network(tmp_path, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(commands, "evaluate_both", fail)
    done = run("prune", *FAST, "--k", "0", "--out", tmp_path / "out")
    assert done.exit_code == 1 and "Traceback" not in done.output and f"saved to {tmp_path / 'out'}" in done.output
    assert run("evaluate", tmp_path / "out").exit_code == 1 and (tmp_path / "out" / "model.safetensors").is_file()


def test_a_table_that_fails_keeps_the_pruned_network(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "layer_table", lambda report: 1 / 0)
    run("prune", *FAST, "--k", "0", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_result_whose_folder_became_impossible_is_kept_elsewhere(tmp_path, monkeypatch):
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "spare"))
    measure = commands.evaluate_both

    def meanwhile(*arguments, **options):
        shutil.rmtree(tmp_path / "place")  # with what was kept on the way
        (tmp_path / "place").write_text("a file where the folder should go")
        return measure(*arguments, **options)

    monkeypatch.setattr(commands, "evaluate_both", meanwhile)
    done = run("prune", *FAST, "--k", "0", "--out", tmp_path / "place" / "out")
    assert done.exit_code == 1 and "could not be written" in done.stderr
    kept = done.stderr.split("The result is in ")[1].split(" instead.")[0]
    monkeypatch.undo()
    assert run("evaluate", kept).exit_code == 0


def test_what_the_command_line_saved_can_be_resumed_in_python(tmp_path, monkeypatch):
    stop_after(monkeypatch, 2)
    names = ["layer3.2.conv2", "layer3.1.conv1", "layer3.1.conv2"]
    chosen = [word for name in names for word in ("--layers", name)]
    out = tmp_path / "out"
    options = ["--model", "digits-resnet20", "--images", "32", "--seed", "3", "--k", "0", "--set", "ridge=0.01", "-q"]
    options += ["--mask", "magnitude"]
    done = run("prune", *options, *chosen, "--out", out)
    assert done.exit_code == 130 and "next: the same command goes on there" in done.output
    monkeypatch.undo()
    network, bundle = commands.Source("digits-resnet20").load()[1:]
    known = snows_core.load(out)
    positions = known.manifest["source"]["calibration"]["indices"]
    images = bundle.train.tensors(indices=positions)[0]
    same = {"k": 0, "seed": 3, "layers": names, "ridge": 0.01, "exclude": ["*downsample*"], "progress": False}
    same["mask"] = "magnitude"
    assert known.stage == 1 and len(known.solved) == 2 and len(known.pending) == 1
    whole = snows_core.prune(network, images, "2:4", **same, resume=known, refine=0)
    assert whole.complete and len(whole.masks) == 3 and whole.stage == 2
    once = snows_core.prune(network, images, "2:4", **same, refine=0)
    for name in whole.masks:
        key = whole.weight_names[name]
        assert (whole.state[key] == once.state[key]).all()


def test_the_next_step_repeats_what_the_manifest_does_not_hold(tmp_path):
    source = commands.Source("resnet20", None, tmp_path / "my data", tmp_path / "w.pth", "cpu")
    line = commands.next_step(source, tmp_path / "my out")
    assert f"snows evaluate '{tmp_path}/my out' --data-root '{tmp_path}/my data' --device cpu" in line
    assert f"load_model('{tmp_path}/w.pth')" in line


def test_options_reach_prune_and_estimate_alike(tmp_path, monkeypatch):
    asked = []

    def stop(model, images, **options):
        images = images if isinstance(images, torch.Tensor) else torch.cat(list(images))
        asked.append({**options, "shape": len(images), "first": float(images[0].sum())})
        raise SnowsError("seen")

    monkeypatch.setattr(commands, "prune", stop)
    monkeypatch.setattr(commands, "estimate", stop)
    options = [
        "--model",
        "digits-resnet20",
        "--images",
        "40",
        "--pattern",
        "global:0.8:0.95",
        "--k",
        "2",
        "--recipe",
        "paper",
        "--layers",
        "layer1*",
        "--layers",
        "layer2*",
        "--exclude",
        "*conv2",
        "--max-memory",
        "500MB",
        "--seed",
        "7",
        "--set",
        "steps=2",
        "--set",
        "curvature=hessian",
        "--set",
        "curvature_images=none",
        "--leaf-modules",
        "bn*",
        "--stages",
        "global:0.5:0.95,global:0.8:0.95",
        "--stage-k",
        "1",
        "--saliency",
        "obs+fisher",
        "--refine",
        "3",
        "--refine-solver",
        "adam",
        "--moving-masks",
        "--deterministic",
        "--augment",
        "-q",
    ]
    run("prune", *options, "--out", tmp_path / "out")
    run("estimate", *options)
    pruned, estimated = asked
    assert pruned.pop("checkpoint_dir") == tmp_path / "out" / "checkpoint"
    assert pruned.pop("shape") == pruned.pop("max_images") == 40
    assert [estimated.pop(name) for name in ("count", "shape")] == [40, 32]
    assert (
        pruned
        == estimated
        == {
            "pattern": "global:0.8:0.95",
            "k": 2,
            "recipe": "paper",
            "saliency": "obs+fisher",
            "effort": "standard",
            "stages": "global:0.5:0.95,global:0.8:0.95",
            "stage_k": 1,
            "update": "snows",
            "layers": ["layer1*", "layer2*"],
            "exclude": ["*conv2"],
            "leaf_modules": ["bn*"],
            "max_memory": 5e8,
            "device": None,
            "refine": 3,
            "refine_solver": "adam",
            "moving_masks": True,
            "deterministic": True,
            "augment": snows_core.flip_and_shift,
            "progress": False,
            "seed": 7,
            "steps": 2,
            "curvature": "hessian",
            "curvature_images": None,
            "first": pruned["first"],
        }
    )


def test_what_is_not_typed_is_as_the_experiment_has_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "prune", lambda model, images, **options: asked.append(options) or 1 / 0)
    run("prune", "--model", "digits-resnet20", "--out", tmp_path / "out")
    chosen = EXPERIMENTS["digits-resnet20"]
    usual = {"pattern": chosen.pattern, "k": chosen.k, "exclude": list(chosen.exclude), "device": None}
    usual["max_images"] = chosen.calibration_images
    names = (
        "recipe",
        "saliency",
        "effort",
        "update",
        "refine_solver",
        "moving_masks",
        "seed",
        "deterministic",
        "progress",
    )
    own = {name: getattr(PruneSettings, name) for name in names}
    assert asked == [usual | own | {"checkpoint_dir": tmp_path / "out" / "checkpoint"}]


def test_permute_reaches_prune(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(commands, "prune", lambda model, images, **options: asked.append(options) or 1 / 0)
    for typed in (["--permute"], ["--no-permute"], []):
        run("prune", "--model", "digits-resnet20", "--pattern", "2:4", *typed, "--out", tmp_path / "out")
    assert [options.get("permute") for options in asked] == [True, False, None]


def test_a_small_training_split_is_used_whole(tmp_path, monkeypatch):
    lines = []
    chosen, _, bundle = commands.Source("digits-resnet20").load()
    bundle.train.indices = bundle.train.indices[:50]
    assert commands.image_count(None, chosen, bundle, lines.append) == 50 and "all 50 training images" in lines[0]
    assert commands.image_count(50, chosen, bundle, lines.append) == 50 and len(lines) == 1
    with pytest.raises(SnowsError, match="--images: got 51; expected at most 50"):
        commands.image_count(51, chosen, bundle, lines.append)


@pytest.mark.parametrize(
    "manifest", ["[]", "3", '{"source": 3}', '{"source": {"model": 3}}', "{", "\ud800", '{"source": {}}', "{}"]
)
def test_a_damaged_manifest_is_one_sentence(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8", errors="surrogatepass")
    done = run("evaluate", tmp_path)
    assert done.exit_code == (2 if manifest in ('{"source": {}}', "{}") else 1)  # these will do with --model
    assert done.stderr.startswith("error: folder: got") and "Traceback" not in done.output


def test_evaluate_takes_weights_from_the_user_before_the_manifests(tmp_path):
    source = {"model": "digits-resnet20", "data": "digits", "weights": "/gone.safetensors"}
    (tmp_path / "manifest.json").write_text(json.dumps({"source": source}))
    assert commands.source_of(tmp_path) == commands.Source("digits-resnet20", "digits", None, Path("/gone.safetensors"))
    given = commands.source_of(tmp_path, weights=Path("here.pth"), data="cifar10", device="cpu")
    assert given == commands.Source("digits-resnet20", "cifar10", None, Path("here.pth"), "cpu")
    assert commands.source_of(None, "resnet20") == commands.Source("resnet20")


def test_folders_of_images_are_recorded_so_that_they_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert commands.Source("resnet20", "folder:images").record()["data"] == f"folder:{tmp_path / 'images'}"
    assert commands.Source("resnet20", "cifar10").record() == {"model": "resnet20", "data": "cifar10", "weights": None}
