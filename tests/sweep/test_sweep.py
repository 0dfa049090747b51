"""sweep.py: one run gives the same weights however little memory it may take."""

import importlib
from functools import cache

import pytest
import torch
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.activations.cache import LazyBatches, move
from snows_core.activations.calibration import near_equal
from snows_core.activations.offload import DiskTensor
from snows_core.masks import NM
from snows_core.methods.snows import Snows
from snows_core.network import Network
from snows_core.settings import PruneSettings, get_recipe
from snows_core.solvers.row_factors import full_factor_bytes
from snows_core.sweep.choose_masks import choose_masks
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.memory import MemoryPlan
from snows_core.sweep.select import select_layers
from snows_core.sweep.sweep import Sweep

module = importlib.import_module("snows_core.sweep.sweep")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")
NETWORKS = {"resnet": (small_resnet, 8), "vit": (small_vit, 4)}
EXACT = {"precondition": False, "cg_relative": 1e-10, "cg_progress": 0.0, "cg_iterations": 2000, "steps": 1}


def run(name, **options):
    make, size = NETWORKS[name]
    layers = {"resnet": ["layer1.conv2", "layer2.conv1"], "vit": ["blocks.0.mlp.fc1", "blocks.1.attn.proj"]}[name]
    options = {"k": 3, "progress": False, "batch_size": 4, "layers": layers, **options}
    return snows.prune(make(), random_images(10, size), "2:4", **options, effort="quick")


@cache
def plain(name, recipe):
    """Return the run with nothing forced; what several tests compare with is computed once and only read."""
    return run(name, recipe=recipe)


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
    expected = plain(name, recipe)
    assert expected.complete and set(expected.report["status"]) == {"pruned", "skipped"}
    forced(monkeypatch, **changes)
    got = run(name, recipe=recipe)
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-9, atol=1e-12), key
    assert got.report["products"].equals(expected.report["products"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_the_same_numbers_whatever_the_memory(name, recipe, monkeypatch):
    expected = plain(name, recipe)
    # Less than one batch takes: values, graphs and row factors rest on disk or are made again.
    monkeypatch.setattr("snows_core.settings.values.LEAST_BYTES", 1.0)
    with pytest.warns(UserWarning, match="max_memory: 0 MB are less than"):
        got = run(name, recipe=recipe, max_memory=1e4)
    assert got.manifest["memory"]["storage"] == "disk" != expected.manifest["memory"]["storage"]
    assert got.manifest["memory"]["batch_size"] == expected.manifest["memory"]["batch_size"]
    for key, value in expected.state.items():
        assert torch.equal(got.state[key], value), key


def test_a_short_last_batch_is_shared_out():
    assert near_equal(65, 64) == [33, 32] and near_equal(64, 64) == [64] and near_equal(7, 3) == [3, 2, 2]
    assert all(sum(near_equal(n, 7)) == n and max(near_equal(n, 7)) <= 7 for n in range(1, 60))


def test_one_image_more_than_a_mini_batch_is_no_mini_batch_of_its_own():
    losses = {}
    for count in (16, 17):
        result = snows.prune(
            small_resnet(),
            random_images(count),
            "2:4",
            k=3,
            recipe="paper",
            batch_size=16,
            cg_iterations=20,
            progress=False,
        )
        rows = result.report[result.report.status == "pruned"]
        losses[count] = float((rows["loss_end"] / rows["loss_masked"]).mean())
    assert losses[17] < 1.3 * losses[16]


def test_mini_batches_are_cut_to_fit_and_their_steps_stay_those_of_the_whole(monkeypatch):
    few = {"recipe": "paper", "batch_size": 10, "cg_iterations": 5}  # so few that rounding does not grow
    expected = run("resnet", **few)
    forced(monkeypatch, batch_size=3)
    got = run("resnet", **few)
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-6, atol=1e-9), key
    assert got.report["newton_steps"].equals(expected.report["newton_steps"])


def test_a_full_device_halves_the_batches_and_begins_the_layer_again(monkeypatch):
    expected, solve, sizes = run("resnet", **EXACT), Snows.solve, []

    def full(method, problem):
        sizes.append(max(problem.sizes))
        if max(problem.sizes) > 2 and problem.name == "layer2.conv1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return solve(method, problem)

    monkeypatch.setattr(Snows, "solve", full)
    with pytest.warns(UserWarning, match=r"out of memory at 'layer2\.conv1': batches of 4 are halved"):
        got = run("resnet", **EXACT)
    assert sizes == [4, 4, 2] and got.manifest["memory"]["batch_size"] == 2 and got.manifest["complete"] is True
    for key, value in expected.state.items():
        assert torch.allclose(got.state[key], value, rtol=1e-5, atol=1e-7), key


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: not enough memory: you tried")])
def test_a_host_that_runs_out_of_memory_halves_the_batches_too(monkeypatch, error):
    solve, sizes = Snows.solve, []

    def full(method, problem):
        sizes.append(max(problem.sizes))
        if max(problem.sizes) > 2:
            raise error
        return solve(method, problem)

    monkeypatch.setattr(Snows, "solve", full)
    with pytest.warns(UserWarning, match="batches of 4 are halved"):
        assert run("resnet").complete
    assert set(sizes) == {4, 2} and sizes.count(4) == 1


def test_another_error_is_not_taken_for_memory(monkeypatch):
    def fails(*args):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Snows, "solve", fails)
    with pytest.raises(RuntimeError, match="shapes"):
        run("resnet")


def test_a_device_too_small_for_one_image_is_an_error(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Snows, "solve", full)
    with pytest.warns(UserWarning, match="halved"), pytest.raises(torch.OutOfMemoryError):
        run("resnet")


def held(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]


def test_resting_on_disk_keeps_every_kind_of_tensor_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    for value in (
        torch.randn(3, 4),
        torch.randn(4, 3).T,
        torch.arange(5),
        torch.ones(2, dtype=torch.bool),
        torch.tensor(2.5),
        torch.ones(0, 3),
        torch.randn(2, dtype=torch.float64),
    ):
        shelved = DiskTensor(value)
        copy = shelved.load("cpu")
        assert torch.equal(copy, value) and copy.dtype == value.dtype and copy.stride() == value.stride()
        nested = move({"a": (shelved, 3)}, "cpu")
        assert torch.equal(nested["a"][0], value) and nested["a"][1] == 3
        assert len(held(tmp_path)) == 1
        del shelved
        assert held(tmp_path) == []


def test_items_per_batch_are_made_on_demand_and_kept_where_there_is_room():
    for keep, count in ((True, 3), (False, 7)):
        made = []
        items = LazyBatches(lambda batch, made=made: made.append(batch) or 10 * batch, 3, keep)
        assert len(items) == 3 and list(items) == [0, 10, 20] and items[1] == 10 and items[0:3] == [0, 10, 20]
        assert len(made) == count
        with pytest.raises(IndexError):
            items[3]


def test_values_for_published_targets_are_let_go_with_the_last_layer_that_needs_them(monkeypatch):
    """The cache of the pruned network keeps no input of a residual unit that only earlier layers started from."""
    seen, solve = [], Snows.solve

    def looking(method, problem):
        place = problem.network.index[problem.layer.node]
        seen.append((place, dict(problem.values.pruned.needed_until)))
        return solve(method, problem)

    monkeypatch.setattr(Snows, "solve", looking)
    run("resnet", recipe="paper", cg_iterations=2, passes=1)
    assert len(seen) >= 2 and any(kept for _, kept in seen)
    assert all(until >= place for place, kept in seen for until in kept.values())


@pytest.mark.parametrize("update", ["snows", "layerwise", "none"])
def test_row_factors_have_room_set_aside_where_a_method_keeps_them(update):
    network = Network(small_resnet())
    selection, masks = choose_masks(network, select_layers(network, small_resnet(), random_images(2)), NM(2, 4))
    steps = layer_steps(PruneSettings(update=update, k=2, recipe=get_recipe("fast", batch_size=2)))
    sweep = Sweep(network, selection.prunable, masks, steps, random_images(8))
    entry = selection.prunable[0]
    probe, sizes = sweep.probes[entry.name], sweep.pruned.sizes
    factors = full_factor_bytes(masks[entry.name].flatten(1), network.weight(entry.layer))
    # So small that the factors alone decide, and where they rest.
    sweep.memory = MemoryPlan(2, "disk", 2 * factors, 1e12)
    budget = sweep._budget(entry)
    assert budget.factors_on_disk == (update != "none")
    sweep.memory = MemoryPlan(2, "disk", (probe.graph * sum(sizes) + 3 * probe.graph * 2 + probe.live * 2) * 1.3, 1e12)
    room = sweep.memory.retained(probe, sizes, 0.0 if update == "none" else factors)
    assert sweep._budget(entry).retain == room
