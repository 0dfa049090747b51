"""prune.py: Ctrl-C leaves a usable result, and resuming ends where an uninterrupted run ends."""

import pytest
import torch
from spies import stop_after
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def run(model, count=10, size=8, **options):
    options = {"k": 3, "progress": False, "batch_size": 4, **options}
    return snows.prune(model, random_images(count, size), options.pop("pattern", "2:4"), **options)


def test_an_interrupted_run_is_a_usable_partial_result(monkeypatch, tmp_path):
    stop_after(monkeypatch, 2)
    model = small_resnet()
    result = run(model)
    status = result.report.set_index("layer")["status"]
    assert not result.complete and result.manifest["complete"] is False
    assert status["layer1.conv1"] == status["layer1.conv2"] == "pruned" and status["layer2.conv1"] == "not reached"
    assert result.masks.keys() == {"layer1.conv1", "layer1.conv2"}
    assert torch.equal(result.state["layer2.conv1.weight"], model.layer2.conv1.weight)
    assert torch.isfinite(result.model(random_images(2))).all()
    result.save(tmp_path / "partial")
    assert not snows.load(tmp_path / "partial").complete


def test_an_interrupt_before_the_first_layer_leaves_an_empty_result(monkeypatch, tmp_path):
    stop_after(monkeypatch, 0)
    result = run(small_resnet())
    assert not result.complete and result.masks == {} and result.sparsity == 0.0
    assert {"k", "loss_end", "seconds"} <= set(result.report) and (result.report["stop"] == "").all()
    result.save(tmp_path / "empty")
    assert snows.load(tmp_path / "empty", small_resnet()).masks == {}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_resuming_gives_the_weights_of_an_uninterrupted_run(monkeypatch, tmp_path, saved, count):
    whole = run(small_vit(), size=4)
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
    stop_after(monkeypatch, 2)
    partial = run(small_resnet())
    monkeypatch.undo()
    with pytest.raises(SnowsError, match=r"resume: got .*; expected an interrupted result of the same call"):
        run(small_resnet(), resume=partial, **change)


def test_an_interrupt_prints_nothing_where_no_progress_is_wanted(monkeypatch, capsys):
    stop_after(monkeypatch, 1)
    run(small_resnet(), progress=False)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
