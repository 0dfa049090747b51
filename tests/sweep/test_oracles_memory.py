"""What a run holds and for how long: probes and plans by arithmetic, streams by what is read next, shorter segments."""

import warnings

import pytest
import torch
from torch import nn
from toys import awake, layer_named, random_images, small_resnet

import snows_core as snows
from snows_core import devices
from snows_core.activations.cache import ActivationCache, LazyBatches
from snows_core.errors import SnowsError
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods import Needs
from snows_core.network.graph import Network
from snows_core.sweep import memory
from snows_core.sweep.memory import MemoryPlan, Probe, memory_budget, plan_memory, probe_layers, shortest

CPU, GPU = torch.device("cpu"), torch.device("cuda")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def with_free(monkeypatch, host, gpu=0.0):
    monkeypatch.setattr(memory, "free_memory", lambda device: gpu if device.type == "cuda" else host)


def test_budgets_are_shares_of_what_is_free(monkeypatch):
    with_free(monkeypatch, host=4e9, gpu=5e10)
    assert memory_budget(None, CPU) == 2e9 and memory_budget(None, GPU) == 4e10
    assert memory_budget(0.25, CPU) == 1e9 and memory_budget(0.25, GPU) == 1.25e10
    assert memory_budget(1e6, CPU) == 1e6 and memory_budget(0.999, CPU) == pytest.approx(0.999 * 4e9)
    with_free(monkeypatch, host=1e11)
    assert memory_budget(None, CPU) == 2.5e9
    for wrong in (999_999, 1, 0.0, -0.5, float("inf"), "1GB", False):
        with pytest.raises(SnowsError, match="max_memory"):
            memory_budget(wrong, CPU)


def test_where_values_rest(monkeypatch):

    def plan(live, device, images=100):
        return plan_memory({"a": Probe(1.0, live / 3, 0, 0), "b": Probe(1.0, live, 0, 0)}, images, 64, 1e9, device)

    with_free(monkeypatch, host=4e9)
    assert plan(5e6, CPU).storage is plan(5e6, GPU).storage is None, "half of the budget is not too much"
    assert plan(5.1e6, CPU).storage == "disk" and plan(5.1e6, GPU).storage == "cpu"
    assert plan(2.7e7, GPU).storage == "cpu" and plan(2.8e7, GPU).storage == "disk", "up to 0.7 of the host"
    assert plan(9.9e6, GPU).pin and not plan(1e7, GPU).pin and plan(1.0, GPU).pin, "up to a quarter of it pinned"
    assert plan(5e6, CPU, images=101).storage == "disk"
    assert plan(1.0, CPU).bytes == 1e9


def test_a_batch_that_the_bound_cannot_hold_is_told_with_its_size():
    measured = {"a": Probe(1e5, 2e4, 0, 0)}
    needed = 10 * (3 * 1e5 + 2e4) / 0.8  # three graphs' worth and what is read for it, holes between; 4 MB
    for device, beside in ((GPU, 0.0), (CPU, 1.2e8)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plan_memory(measured, 10, 10, beside + needed, device).batch_size == 10
        words = f"max_memory: .* MB are less than the {(beside + needed) / 1e6:.0f} MB that one batch of 10 images may"
        with pytest.warns(UserWarning, match=words):
            assert plan_memory(measured, 10, 10, beside + 0.99 * needed, device).batch_size == 10


def test_batches_fill_their_bytes_and_no_more(monkeypatch):
    monkeypatch.setattr(devices, "BATCH_BYTES_HOST", 1000.0)
    for graph, size in {0.0: 7, 100: 7, 200: 5, 333: 3, 334: 2, 5e3: 1}.items():
        assert plan_memory({"a": Probe(graph, 1.0, 0, 0)}, 9, 7, 1e9, CPU).batch_size == size


def test_a_fifth_of_a_bound_is_left_to_holes():
    probe = Probe(1.0, 0.0, 0, 0)  # batches of ten images: 30 of work, then 10 a batch
    for bytes_, kept in ((88.0, 4), (87.0, 3)):
        assert MemoryPlan(10, None, bytes_, 0.0).retained(probe, [10] * 9) == kept


def test_graphs_are_kept_up_to_the_last_byte(monkeypatch):
    monkeypatch.setattr(memory, "HOLES", 0.0)
    probe, sizes = Probe(10.0, 3.0, 0, 0), [5, 4, 4]
    work = (3 * 10.0 + 3.0) * 5  # one batch on its way: three graphs' worth and what is read for it
    need = 3.0 * 13 + work  # and what rests
    for kept, graphs in ((0, 0), (1, 50), (2, 90), (3, 130)):
        assert MemoryPlan(5, None, need + graphs, 0.0).retained(probe, sizes) == kept
        assert MemoryPlan(5, None, need + graphs - 0.1, 0.0).retained(probe, sizes) == max(0, kept - 1)
    assert MemoryPlan(5, "cpu", work + 90, 0.0).retained(probe, sizes) == 2, "elsewhere nothing rests here"
    assert MemoryPlan(5, None, need + 90, 1e9).retained(probe, sizes) == 2, "without factors"
    assert MemoryPlan(5, None, need + 90 + 30, 1e9).retained(probe, sizes, factors=30.0) == 2
    assert MemoryPlan(5, None, need + 90 + 30 - 0.1, 1e9).retained(probe, sizes, factors=30.0) == 1


def test_row_factors_rest_on_disk_from_three_tenths_on(monkeypatch):
    monkeypatch.setattr(memory, "HOLES", 0.0)
    plan = MemoryPlan(4, None, 100.0, 50.0)
    assert not plan.factors_on_disk(30.0) and plan.factors_on_disk(30.1) and plan.factors_on_disk(1e9)
    assert not MemoryPlan(4, None, 100.0, 30.0).factors_on_disk(1e9), "no more is ever kept"
    probe = Probe(1.0, 0.0, 0, 0)
    for batches in (7, 8):
        assert plan.retained(probe, [10] * batches, factors=1e9) == 7, "on disk they take no room: 30 of work, 70 left"
    assert plan.retained(probe, [25, 25], factors=30.0) == 0, "here they do: 75 of work, none left"


class Chain(nn.Sequential):
    """Convolutions in a row, so that what rests can be counted by hand."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 5, 1),
            nn.ReLU(),
            nn.Conv2d(5, 6, 1),
            nn.Flatten(),
            nn.Linear(384, 3),
        )
        awake(self)


def probed(model, images, k, name, repeats=0):
    network = Network(model)
    segment = network.segment(layer_named(network, name), k)
    mask = torch.ones_like(network.weight(segment.layer), dtype=torch.bool)
    found = probe_layers(network, {name: segment}, {name: mask}, images, Needs().loss, repeats)
    return found[name], network, segment


def test_what_rests_is_the_cut_twice_and_the_targets():
    values = {"2": 4 * 64, "4": 5 * 64}  # the layer's input, per image
    taps = {"2": [5 * 64, 5 * 64, 6 * 64], "4": [6 * 64, 3]}
    for name in values:
        for k in (0, 1, 2):
            for images in (2, 3):
                found = probed(Chain(), random_images(images), k, name)[0]
                assert found.live == 8 * (2 * values[name] + sum(taps[name][: k + 1]))
    assert (found.linearise, found.product) == (0.0, 0.0)


def test_the_graph_is_what_autograd_holds_without_the_weights():
    model, images, name = small_resnet(), random_images(4), "layer2.conv2"
    found, network, segment = probed(model, images, 2, name)
    stream, held = ActivationCache(network, [images]), {}
    stream.advance(network.index[segment.layer.node])
    objective = ReconstructionLoss(
        network,
        segment,
        [stream.context(segment, 0)],
        [stream.taps(segment, 0)],
        torch.ones_like(network.weight(segment.layer), dtype=torch.bool),
        LossOptions("gauss-newton"),
    )
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.module.parameters()}
    keep = []

    def count(tensor):
        keep.append(tensor.detach())  # so that no place is used twice
        if tensor.untyped_storage().data_ptr() not in weights:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        objective.linearise(network.weight(segment.layer))
    assert found.graph == pytest.approx(sum(held.values()) / 4, rel=0.02)


def test_times_are_taken_where_asked_for_and_the_shortest_counts(monkeypatch):
    found = probed(Chain(), random_images(2), 1, "2", repeats=1)[0]
    assert found.linearise > 0 and found.product > 0
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(memory, "_clock", lambda device: next(clock))
    calls = []
    assert shortest(lambda: calls.append(1), 3, CPU) == 2.0 and len(calls) == 3


class Once(torch.autograd.Function):
    """Doubles; its derivative cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient


class Doubles(nn.Module):
    """A leaf around it."""

    def forward(self, x):
        return Once.apply(x)


def test_a_segment_ends_before_what_has_no_second_derivative():
    model = awake(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            Doubles(),
            nn.Conv2d(4, 4, 1),
            nn.ReLU(),
            nn.Conv2d(4, 2, 1),
        )
    )
    options = {"leaf_modules": ["5"], "progress": False, "layers": ["2", "4", "6"], "batch_size": 4}
    rows = snows.prune(model, random_images(9), "2:4", k=4, **options, effort="quick").report.set_index("layer")
    assert rows.loc["2", "k"] == 2 and rows.loc["4", "k"] == 0 and rows.loc["6", "k"] == 2
    chosen = snows.prune(model, random_images(9), "2:4", k="auto", **options, effort="quick").report.set_index("layer")
    assert chosen.loc["2", "k"] <= 2 and chosen.loc["4", "k"] == 0


def test_values_are_kept_for_the_last_layer_that_needs_them_and_no_longer():
    network = Network(small_resnet())
    stream = ActivationCache(network, list(random_images(5).split(3)))
    early, late = network.nodes[2], network.nodes[4]
    stream.needed_until = {early: 6, late: 9}
    stream.advance(8)
    read_later = {node for node in network.nodes if network.liveness.is_read_from(8, node)}
    for values in stream.values:
        assert {early, late} <= set(values)
    stream.forget(6)
    assert all(early in values for values in stream.values), "a layer at that place still needs it"
    stream.forget(7)
    for values in stream.values:
        assert (early in values) == (early in read_later) and late in values
    assert stream.needed_until == {late: 9}
    before = {node: value for node, value in stream.values[0].items()}
    stream.forget(10)
    assert stream.needed_until == {}
    for values in stream.values:
        assert set(values) <= read_later, "what nobody reads any more is gone"
    assert all(node in stream.values[0] for node in before if node in read_later)


def test_what_is_held_after_an_advance_is_what_is_read_later_or_asked_for():
    network = Network(small_resnet())
    for wanted in ({}, {network.nodes[1]: 99, network.nodes[5]: 99}):
        stream = ActivationCache(network, [random_images(2)])
        stream.needed_until = dict(wanted)
        for stop in range(2, len(network.nodes) + 1):
            stream.advance(stop)
            ran = set(network.nodes[:stop])
            later = {source for node in network.nodes[stop:] for source in node.all_input_nodes}
            later |= {network.output} if network.output in ran else set()
            held = {node for node in stream.values[0] if node.op != "get_attr"}
            assert held == (ran & (later | set(wanted))) - {n for n in later if n.op == "get_attr"}


def test_a_value_that_nothing_runs_on_rests_where_it_is(monkeypatch):
    network = Network(small_resnet())
    stream = ActivationCache(network, [random_images(2)], storage="disk")
    layer = layer_named(network, "layer1.conv2")
    stream.advance(network.index[layer.node])
    resting = dict(stream.values[0])
    stream.advance(network.index[layer.node] + 1)  # runs one convolution: the skip of the block is not read
    same = [node for node in stream.values[0] if node in resting]
    assert same and all(stream.values[0][node] is resting[node] for node in same)


def test_batches_are_made_again_where_nothing_is_kept_and_slices_work():
    made = []
    items = LazyBatches(lambda i: made.append(i) or i * i, 5, keep=False)
    assert items[1:4] == [1, 4, 9] and items[::2] == [0, 4, 16] and made == [1, 2, 3, 0, 2, 4]
    for outside in (5, -1):
        with pytest.raises(IndexError):
            items[outside]
    kept = LazyBatches(lambda i: made.append(i) or [i], 2, keep=True)
    assert kept[0] is kept[0] and kept[1] == [1] and len(kept) == 2
