"""memory.py: what a run needs is measured, and batches, graphs and resting values are cut to fit."""

import pytest
import torch
from toys import random_images, random_mask, small_resnet, small_vit

from snows_core.devices import BATCH_BYTES_HOST, free_memory
from snows_core.errors import SnowsError
from snows_core.methods import METHODS, Needs
from snows_core.network.graph import Network
from snows_core.settings import get_recipe
from snows_core.sweep import memory
from snows_core.sweep.memory import MemoryPlan, Probe, memory_budget, plan_memory, probe_layers
from snows_core.sweep.select import select_layers
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep

CPU = torch.device("cpu")


def probes(model, images, k=3):
    network = Network(model)
    layers = [layer for layer in network.layers if not network.is_first(layer)]
    segments = {layer.name: network.segment(layer, k) for layer in layers}
    masks = {layer.name: random_mask(network.weight(layer).shape) for layer in layers}
    return probe_layers(network, segments, masks, images, Needs().loss, repeats=1)


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4)])
def test_every_layer_is_measured_per_image(make, size):
    two, four = probes(make(), random_images(2, size)), probes(make(), random_images(4, size))
    assert list(two) == list(four) and len(two) >= 6
    for name in two:
        assert min(two[name].graph, two[name].live, two[name].linearise, two[name].product) > 0
        assert four[name].live == pytest.approx(two[name].live)
        assert four[name].graph <= two[name].graph * 1.01  # weights are shared by the images


def test_budgets_in_bytes_fractions_and_by_default():
    assert memory_budget(2e9, CPU) == 2e9
    assert memory_budget(0.25, CPU) == pytest.approx(0.25 * free_memory(CPU), rel=0.2)
    assert 0 < memory_budget(None, CPU) <= 2.5e9


TEXT = "2GB"


@pytest.mark.parametrize("given", [0, -1.0, 1, 1.0, 1e5, float("nan"), float("inf"), True, TEXT])
def test_budgets_that_cannot_be_meant_are_refused(given):
    with pytest.raises(SnowsError, match=r"max_memory: got .*; expected bytes"):
        memory_budget(given, CPU)


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_batches_depend_on_the_network_and_never_on_the_memory(recipe):
    recipe = get_recipe(recipe, batch_size=64)
    for graph, expected in ((BATCH_BYTES_HOST / 100, 64), (BATCH_BYTES_HOST / 10, 10), (2 * BATCH_BYTES_HOST, 1)):
        measured = {"a": Probe(1e3, 1e3, 1.0, 1.0), "b": Probe(graph, 1e3, 1.0, 1.0)}
        plans = [plan_memory(measured, 100, recipe.batch_size, bytes_, CPU) for bytes_ in (1e12, 1e10)]
        with pytest.warns(UserWarning, match=r"max_memory: 1 MB are less than the .* MB that one batch"):
            plans.append(plan_memory(measured, 100, recipe.batch_size, 1e6, CPU))
        assert [plan.batch_size for plan in plans] == [expected] * 3
        assert len({plan.factors for plan in plans}) == 1


def test_resting_values_go_to_disk_when_they_take_more_than_half():
    measured = {"a": Probe(1e3, 1e6, 1.0, 1.0)}
    assert plan_memory(measured, 100, 64, 1e9, CPU).storage is None
    assert plan_memory(measured, 100, 64, 1e8, CPU).storage == "disk"


def plan(storage, bytes_, factors=0.0):
    return MemoryPlan(4, storage, bytes_, factors)


def test_as_many_batches_keep_their_graphs_as_there_is_room_for(monkeypatch):
    monkeypatch.setattr(memory, "HOLES", 0.0)
    probe = Probe(graph=10.0, live=1.0, linearise=1.0, product=1.0)
    batch = 3 * 40 + 4  # of four images, on its way
    assert plan(None, 1e9).retained(probe, [4, 4, 2]) == 3
    assert plan(None, 10 + batch + 80).retained(probe, [4, 4, 2]) == 2
    assert plan("disk", batch + 80).retained(probe, [4, 4, 2]) == 2
    assert plan(None, 10.0).retained(probe, [4, 4, 2]) == 0
    assert plan(None, 10.0).retained(None, [4, 4, 2]) == 3


def test_row_factors_take_their_room_and_rest_on_disk_when_it_is_little(monkeypatch):
    monkeypatch.setattr(memory, "HOLES", 0.0)
    probe = Probe(graph=10.0, live=0.0, linearise=1.0, product=1.0)
    assert plan(None, 240.0, 40.0).retained(probe, [4, 4, 2], factors=1e9) == 2  # bounded by 40: 120 of work, 80 left
    assert not plan(None, 240.0, 40.0).factors_on_disk(1e9)
    assert plan(None, 100.0, 40.0).factors_on_disk(1e9) and not plan(None, 100.0, 40.0).factors_on_disk(20.0)


def test_rows_on_their_way_get_what_resting_values_and_factors_leave():
    probe = Probe(graph=50.0, live=10.0, linearise=0.0, product=0.0)
    plan = MemoryPlan(4, None, 1000.0, factors=200.0)
    assert plan.working(probe, [4, 4], 100.0) == pytest.approx(800 - 80 - 100)
    assert plan.working(probe, [4, 4], 500.0) == pytest.approx(800 - 80 - 200)  # factors are in blocks then
    assert MemoryPlan(4, "disk", 1000.0, factors=900.0).working(probe, [4, 4], 600.0) == 800  # all rests in files
    assert plan.working(probe, [400], 0.0) == 0.0


def test_the_bound_reaches_the_method():
    seen = {}

    class Noting(METHODS["none"]):
        def solve(self, problem):
            seen[bound] = problem.budget.working_bytes
            return super().solve(problem)

    model, images = small_resnet(), random_images(4)
    network = Network(model)
    layers = select_layers(network, model, images[:2]).prunable[:1]
    masks = {entry.name: random_mask(network.weight(entry.layer).shape) for entry in layers}
    for bound in (1e8, 2e9):
        Sweep(network, layers, masks, LayerSteps(Noting(get_recipe("fast"), 1)), images, bound).run(False, {})
    assert 0 < seen[1e8] < 1e8 and seen[2e9] == pytest.approx(seen[1e8] + 0.8 * 1.9e9)
