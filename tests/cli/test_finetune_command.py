"""`snows finetune`: a pruned folder is trained on with its masks held, measured and saved; mistakes leave nothing."""

import json

import pytest
import torch
from typer.testing import CliRunner

import snows_core as snows
from snows_core.cli import app as cli
from snows_core.export.tuning import retraining


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finetune") / "pruned"
    options = ["--model", "digits-resnet20", "--images", 16, "--update", "none", "--effort", "quick", "--quiet"]
    done = run("prune", *options, "--pattern", "1:4", "--out", folder)
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("teacher", ["labels", "dense"])
def test_a_pruned_folder_is_finetuned_measured_and_saved(pruned, tmp_path, teacher):
    out = tmp_path / "out"
    done = run("finetune", pruned, "--out", out, "--epochs", 1, "--images", 512, "--teacher", teacher, "--quiet")
    assert done.exit_code == 0, done.output
    assert "fine-tuned" in done.output and f"by {teacher}" in done.output and f"saved to {out}" in done.output
    before, after = snows.load(pruned), snows.load(out)
    assert all(torch.equal(after.masks[layer], mask) for layer, mask in before.masks.items())
    for layer, mask in after.masks.items():
        assert not bool(after.state[after.weight_names[layer]][~mask].count_nonzero())
    manifest = json.loads((out / "manifest.json").read_text())
    record = manifest["finetune"]
    assert record["epochs"] == 1 and record["images"]["count"] == len(record["images"]["indices"]) == 512
    assert record["before"] == json.loads((pruned / "manifest.json").read_text())["evaluation"]["pruned"]
    assert record["after"] == manifest["evaluation"]["pruned"]
    assert record["after"]["accuracy"] > record["before"]["accuracy"] + 30  # 8 % before, above 90 % after
    again = run("finetune", pruned, "--out", out, "--epochs", 1)
    assert again.exit_code == 2 and again.output.startswith("error: --out: got") and "already" in again.output
    assert run("evaluate", out, "--quiet").exit_code == 0


def test_ctrl_c_saves_the_epochs_that_are_done(pruned, tmp_path, monkeypatch):
    real, calls, out = retraining.set_to_zero, [], tmp_path / "out"

    def interrupted(held):
        real(held)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(retraining, "set_to_zero", interrupted)
    options = ["--epochs", 5, "--images", 128, "--quiet", "--out", out]
    done = run("finetune", pruned, *options)
    assert done.exit_code == 130 and "after 1 of 5 epochs" in done.output
    assert snows.load(out).manifest["finetune"]["interrupted"] is True


@pytest.mark.parametrize(
    ("typed", "code", "words"),
    [
        (["--epochs", "0"], 2, "--epochs"),
        (["--lr", "nan"], 2, "error: --lr: got nan"),
        (["--lr", "1e30", "--images", "64"], 2, "error: --lr: got 1e+30"),
        (["--teacher", "me"], 2, "error: --teacher: got 'me'"),
        (["--batch-norm", "off"], 2, "error: --batch-norm: got 'off'"),
        (["--images", "5000"], 2, "error: --images: got 5000; expected at most 1200"),
        (["--seed", "-1"], 2, "--seed"),
    ],
)
def test_mistakes_are_one_sentence_and_write_nothing(pruned, tmp_path, typed, code, words):
    done = run("finetune", pruned, "--out", tmp_path / "out", *typed, "--quiet")
    assert done.exit_code == code and words in done.output and "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_none_is_refused(tmp_path):
    done = run("finetune", tmp_path / "nothing", "--out", tmp_path / "out")
    assert done.exit_code == 2 and done.output.startswith("error: folder: got") and not (tmp_path / "out").exists()
