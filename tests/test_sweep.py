"""sweep.py: one run gives the same weights however little memory it may take."""

import importlib

import pytest
import torch
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.shelf import Shelved
from snows_core.stream import PerBatch, move

module = importlib.import_module("snows_core.sweep")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")
NETWORKS = {"resnet": (small_resnet, 8), "vit": (small_vit, 4)}
EXACT = {"precondition": False, "cg_relative": 1e-10, "cg_progress": 0.0, "cg_iterations": 2000, "steps": 1}


def run(name, **options):
    make, size = NETWORKS[name]
    layers = {"resnet": ["layer1.conv2", "layer2.conv1"], "vit": ["blocks.0.mlp.fc1", "blocks.1.attn.proj"]}[name]
    options = {"k": 3, "progress": False, "batch_size": 4, "layers": layers, **options}
    return snows.prune(make(), random_images(10, size), "2:4", **options)


def forced(monkeypatch, **changes):
    """Let the memory plan come out as told."""
    plan = module.plan_memory

    def told(*args, **kwargs):
        found = plan(*args, **kwargs)
        return type(found)(**{**vars(found), **changes})

    monkeypatch.setattr(module, "plan_memory", told)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("changes", [{"storage": "cpu"}, {"storage": "disk"}, {"bytes": 1.0}])
def test_resting_places_and_rebuilt_graphs_change_nothing(monkeypatch, name, recipe, changes):
    expected = run(name, recipe=recipe)
    forced(monkeypatch, **changes)
    got = run(name, recipe=recipe)
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-9, atol=1e-12), key
    assert got.report["products"].equals(expected.report["products"])


def test_little_memory_means_smaller_batches_and_the_same_solution():
    expected, got = run("resnet", **EXACT), run("resnet", max_memory=4e4, **EXACT)
    assert got.manifest["memory"]["batch_size"] < expected.manifest["memory"]["batch_size"] == 4
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-5, atol=1e-7), key


def test_a_full_device_halves_the_batches_and_begins_the_layer_again(monkeypatch):
    expected, solve, sizes = run("resnet", **EXACT), module.solve_layer, []

    def full(network, entry, segments, mask, pruned, *others):
        sizes.append(max(pruned.sizes))
        if max(pruned.sizes) > 2 and entry.name == "layer2.conv1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return solve(network, entry, segments, mask, pruned, *others)

    monkeypatch.setattr(module, "solve_layer", full)
    with pytest.warns(UserWarning, match=r"out of memory at 'layer2\.conv1': batches of 4 are halved"):
        got = run("resnet", **EXACT)
    assert sizes == [4, 4, 2] and got.manifest["memory"]["batch_size"] == 2
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-5, atol=1e-7), key


def test_a_device_too_small_for_one_image_is_an_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "solve_layer", full)
    with pytest.warns(UserWarning, match="halved"), pytest.raises(torch.OutOfMemoryError):
        run("resnet")


def test_resting_on_disk_keeps_every_kind_of_tensor_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for value in (torch.randn(3, 4), torch.randn(4, 3).T, torch.arange(5), torch.ones(2, dtype=torch.bool),
                  torch.tensor(2.5), torch.ones(0, 3), torch.randn(2, dtype=torch.float64)):  # fmt: skip
        shelved = Shelved(value)
        copy = shelved.load("cpu")
        assert torch.equal(copy, value) and copy.dtype == value.dtype and copy.stride() == value.stride()
        nested = move({"a": (shelved, 3)}, "cpu")
        assert torch.equal(nested["a"][0], value) and nested["a"][1] == 3
        assert len(list(tmp_path.iterdir())) == 1
        del shelved
        assert list(tmp_path.iterdir()) == []


def test_items_per_batch_are_made_on_demand_and_kept_where_there_is_room():
    for keep, count in ((True, 3), (False, 7)):
        made = []
        items = PerBatch(lambda batch, made=made: made.append(batch) or 10 * batch, 3, keep)
        assert len(items) == 3 and list(items) == [0, 10, 20] and items[1] == 10 and items[0:3] == [0, 10, 20]
        assert len(made) == count
        with pytest.raises(IndexError):
            items[3]
