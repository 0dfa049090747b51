"""prune.py: Ctrl-C leaves a usable result, and resuming ends where an uninterrupted run ends."""

from functools import cache

import pytest
import torch
from spies import stop_after
from toys import random_images, same, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def run(model, count=10, size=8, **options):
    options = {"k": 3, "progress": False, "batch_size": 4, **options}
    return snows.prune(model, random_images(count, size), options.pop("pattern", "2:4"), **options, effort="quick")


@cache
def uninterrupted(make, size=8):
    """Return the run that is let alone; several tests compare with it, and only read it."""
    return run(make(), size=size)


def interrupted(monkeypatch, model, count, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        return run(model, **options)


def test_an_interrupted_run_is_a_usable_partial_result(monkeypatch, tmp_path):
    model = small_resnet()
    result = interrupted(monkeypatch, model, 2)
    status = result.report.set_index("layer")["status"]
    assert not result.complete and result.manifest["complete"] is False
    assert status["layer1.conv1"] == status["layer1.conv2"] == "pruned" and status["layer2.conv1"] == "not reached"
    assert result.masks.keys() == {"layer1.conv1", "layer1.conv2"}
    assert torch.equal(result.state["layer2.conv1.weight"], model.layer2.conv1.weight)
    assert torch.isfinite(result.model(random_images(2))).all()
    result.save(tmp_path / "partial")
    assert not snows.load(tmp_path / "partial").complete


def test_an_interrupt_before_the_first_layer_leaves_an_empty_result(monkeypatch, tmp_path):
    result = interrupted(monkeypatch, small_resnet(), 0)
    assert not result.complete and result.masks == {} and result.sparsity == 0.0
    assert {"k", "loss_end", "seconds"} <= set(result.report) and (result.report["stop"] == "").all()
    result.save(tmp_path / "empty")
    assert snows.load(tmp_path / "empty", small_resnet()).masks == {}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(monkeypatch, tmp_path, saved, count):
    whole = uninterrupted(small_vit, 4)
    calls = stop_after(monkeypatch, count)
    partial = run(small_vit(), size=4)
    assert len(calls) == count
    monkeypatch.undo()
    if saved:
        partial.save(tmp_path / "partial")
        partial = snows.load(tmp_path / "partial")
    calls = stop_after(monkeypatch, 99)
    resumed = run(small_vit(), size=4, resume=partial)
    assert resumed.complete and len(calls) == 8 - count, "solved layers are not solved again"
    assert all(torch.equal(resumed.masks[name], mask) for name, mask in whole.masks.items())
    for key, value in whole.state.items():
        assert torch.equal(resumed.state[key], value), key
    assert resumed.report["loss_end"].equals(whole.report["loss_end"])


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": "1:4"},
        {"k": 1},
        {"recipe": "paper"},
        {"count": 7},
    ],
)
def test_resuming_another_call_is_refused(monkeypatch, change):
    partial = interrupted(monkeypatch, small_resnet(), 2)
    with pytest.raises(SnowsError, match=r"resume: got .*; expected an interrupted result of the same call"):
        run(small_resnet(), resume=partial, **change)


def test_an_interrupt_prints_nothing_where_no_progress_is_wanted(monkeypatch, capsys):
    stop_after(monkeypatch, 1)
    run(small_resnet(), progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_resuming_on_other_dense_weights_is_refused(monkeypatch):
    partial = interrupted(monkeypatch, small_resnet(), 2)
    changed = small_resnet()
    with torch.no_grad():
        changed.fc.bias[0] += 1e-3
    with pytest.raises(SnowsError, match="resume: got a result with another dense weights"):
        run(changed, resume=partial)


@pytest.mark.parametrize("saved", [False, True])
def test_resuming_keeps_the_seconds_of_solved_layers(monkeypatch, tmp_path, saved):
    partial = interrupted(monkeypatch, small_resnet(), 2)
    if saved:
        partial = snows.load(partial.save(tmp_path / "part"))
    rows = partial.report.set_index("layer")
    resumed = run(small_resnet(), resume=partial)
    seconds = resumed.report.set_index("layer")["seconds"]
    for name in partial.masks:
        assert seconds[name] == rows.loc[name, "seconds"] > 0
    assert same(resumed.state, uninterrupted(small_resnet).state)
