"""The command line on a network of the user's own classes, end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from snows_core.cli import app as cli
from snows_core.zoo import sources


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Return a folder of two classes with five images each."""
    folder = tmp_path_factory.mktemp("pets")
    for label, name in enumerate(("cats", "dogs")):
        (folder / name).mkdir()
        for i in range(5):
            pixels = np.random.RandomState(10 * label + i).randint(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


@pytest.mark.parametrize(
    ("address", "layers"),
    [("timm/test_vit", "blocks.0.mlp.fc1"), ("torchvision/squeezenet1_1", "features.12.squeeze")],
)
def test_a_two_class_network_is_pruned_and_measured_again(address, layers, tmp_path, pets):
    torch.manual_seed(0)
    weights = tmp_path / "mine.safetensors"
    save_file(sources.build(address, 2).state_dict(), weights)
    source = ["--model", address, "--weights", weights, "--data", f"folder:{pets}"]
    out = tmp_path / "out"
    done = run("prune", *source, "--layers", layers, "--k", 0, "--effort", "quick", "--quiet", "--out", out)
    assert done.exit_code == 0, done.output
    assert "on 2 test images" in done.output
    shown = run("evaluate", out)
    assert shown.exit_code == 0, shown.output
    line = next(row for row in shown.output.splitlines() if row.startswith("pruned"))
    measured = json.loads((out / "manifest.json").read_text())["evaluation"]["pruned"]
    assert float(line.split()[1]) == pytest.approx(measured["accuracy"], abs=0.01)
    assert run("evaluate", out, "--num-classes", 2).output == shown.output
    refused = run("prune", *source, "--num-classes", 3, "--out", tmp_path / "other")
    assert refused.exit_code == 2 and refused.stderr.startswith("error: --num-classes: got 3; expected 2")


def test_classes_without_weights_are_refused_in_the_words_of_the_shell(tmp_path, pets):
    done = run("evaluate", "--model", "timm/test_vit", "--data", f"folder:{pets}", "--num-classes", 2)
    assert done.exit_code == 2 and done.stderr.startswith(
        "error: --num-classes: got 2; expected --weights <path> beside"
    )
