"""``snows prune --masks FILE``: the zeros of a checkpoint stay, its layers alone are pruned."""

import torch
from typer.testing import CliRunner

import snows_core as snows
from snows_core import zoo
from snows_core.cli import app as cli


def test_masks_come_from_a_file(tmp_path):
    model = zoo.experiment("digits-resnet20").load_model()
    layers = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d)][3:5]
    masks = {name: snows.NM(2, 4).mask(model.get_submodule(name).weight.detach()) for name in layers}
    pruned = snows.apply_masks(model, masks).state_dict()
    torch.save({"state_dict": {f"module.{name}": value for name, value in pruned.items()}}, tmp_path / "pruned.pth")
    few = ["--k", "0", "--images", "32", "--test-images", "40", "--effort", "quick", "--quiet"]
    where = ["--masks", str(tmp_path / "pruned.pth"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, ["prune", "--model", "digits-resnet20", *few, *where])
    assert done.exit_code == 0, done.output
    result = snows.load(tmp_path / "out", model)
    assert result.masks.keys() == masks.keys()
    assert all(torch.equal(result.masks[name], mask) for name, mask in masks.items())


def test_a_file_that_is_not_there_is_refused_before_anything_is_loaded(tmp_path):
    where = ["--masks", str(tmp_path / "no.pth"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, ["prune", "--model", "digits-resnet20", *where])
    assert done.exit_code == 2 and "--masks: got" in done.output and "no.pth', which is no file" in done.output
