"""memory.py: what a run needs is measured, and batches, graphs and resting values are cut to fit."""

import pytest
import torch
from toys import random_images, random_mask, small_resnet, small_vit

from snows_core.errors import SnowsError
from snows_core.graph import Network
from snows_core.memory import MemoryPlan, Probe, free_memory, memory_budget, plan_memory, probe_layers
from snows_core.recipe import get_recipe

CPU = torch.device("cpu")


def probes(model, images, k=3):
    network = Network(model)
    layers = [layer for layer in network.layers if not network.is_first(layer)]
    segments = {layer.name: network.segment(layer, k) for layer in layers}
    masks = {layer.name: random_mask(network.weight(layer).shape) for layer in layers}
    return probe_layers(network, segments, masks, images, get_recipe("fast"), repeats=1)


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
    assert 0 < memory_budget(None, CPU) <= 3e9


TEXT = "2GB"


@pytest.mark.parametrize("given", [0, -1.0, float("nan"), True, TEXT])
def test_budgets_that_cannot_be_meant_are_refused(given):
    with pytest.raises(SnowsError, match=r"max_memory: got .*; expected bytes"):
        memory_budget(given, CPU)


def test_batches_shrink_until_the_largest_graph_fits():
    measured = {"a": Probe(1e6, 1e3, 1.0, 1.0), "b": Probe(4e6, 1e3, 1.0, 1.0)}
    fast, paper = get_recipe("fast", batch_size=64), get_recipe("paper")
    assert plan_memory(measured, 100, fast, 1e12, CPU).batch_size == 64
    assert plan_memory(measured, 100, fast, 16e7, CPU).batch_size == 10
    assert plan_memory(measured, 100, fast, 1e3, CPU).batch_size == 1
    assert plan_memory(measured, 100, paper, 1e3, CPU).batch_size == paper.batch_size  # its mini-batches are its method


def test_resting_values_go_to_disk_when_they_take_more_than_half():
    measured = {"a": Probe(1e3, 1e6, 1.0, 1.0)}
    assert plan_memory(measured, 100, get_recipe("fast"), 1e9, CPU).storage is None
    assert plan_memory(measured, 100, get_recipe("fast"), 1e8, CPU).storage == "disk"


def test_as_many_batches_keep_their_graphs_as_there_is_room_for():
    probe = Probe(graph=10.0, live=1.0, linearise=1.0, product=1.0)
    assert MemoryPlan(4, None, 1e9).retained(probe, [4, 4, 2]) == 3
    assert MemoryPlan(4, None, 10 + 40 + 80).retained(probe, [4, 4, 2]) == 2
    assert MemoryPlan(4, "disk", 40 + 80).retained(probe, [4, 4, 2]) == 2
    assert MemoryPlan(4, None, 10.0).retained(probe, [4, 4, 2]) == 0
    assert MemoryPlan(4, None, 10.0).retained(None, [4, 4, 2]) == 3
