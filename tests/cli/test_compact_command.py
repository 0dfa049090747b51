"""`snows compact`: a pruned folder becomes a smaller network that PyTorch alone loads; mistakes leave nothing."""

import re

import torch
from typer.testing import CliRunner

from snows_core.cli import app as cli


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_a_pruned_folder_is_compacted(tmp_path):
    pruned, small = tmp_path / "pruned", tmp_path / "small"
    options = ["--model", "digits-resnet20", "--images", 16, "--layers", "layer3.2.*", "--update", "none", "--quiet"]
    done = run("prune", *options, "--pattern", "structured:0.5", "--out", pruned)
    assert done.exit_code == 0, done.output
    done = run("compact", pruned, "--out", small)
    assert done.exit_code == 0, done.output
    assert "layer3.2.conv1" in done.output and f"saved to {small}" in done.output and "32 units" in done.output
    assert re.search(r"8 images on one thread of this CPU: \S+ ms became \S+ ms, \d+\.\d\d times as fast", done.output)
    network = torch.export.load(small / "model.pt2").module()
    assert network(torch.randn(3, 1, 16, 16)).shape == (3, 10)
    again = run("compact", pruned, "--out", small)
    assert again.exit_code == 2 and again.output.startswith("error: --out: got") and "already" in again.output
    assert run("compact", pruned, "--out", small, "--overwrite").exit_code == 0


def test_mistakes_are_one_sentence(tmp_path):
    done = run("compact", tmp_path / "nothing", "--out", tmp_path / "small")
    assert done.exit_code == 2 and done.output.startswith("error: folder: got") and not (tmp_path / "small").exists()
