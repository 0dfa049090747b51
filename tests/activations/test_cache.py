"""cache.py: calibration values advance layer by layer, each node once, and hold only what is still to be read."""

import weakref

import pytest
import torch
from torch import nn
from toys import layer_named, random_images, relative, small_resnet, small_vit

from snows_core.activations.cache import ActivationCache, move, run_keeping
from snows_core.activations.offload import DiskTensor
from snows_core.network.graph import Network


def test_a_sweep_over_all_layers_is_one_forward_pass():
    # The prefix is never re-run: hook counts and ActivationCache.executed both say one forward pass per batch.
    network = Network(small_resnet())
    images = random_images(8)
    runs = {}
    for name, module in network.module.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1}))
    network.module(images)
    once = dict(runs)
    runs.clear()
    stream = ActivationCache(network, list(images.split(5)))
    for layer in network.layers:
        stream.advance(network.index[layer.node])
    outputs = stream.finish()
    assert stream.executed == 2 * (len(network.nodes) - 1)
    assert runs == {name: 2 * count for name, count in once.items()}
    assert relative(torch.cat(outputs), network.module(images)) < 1e-12


def test_advancing_in_steps_equals_one_pass_with_replaced_weights():
    network = Network(small_resnet())
    images = random_images(5)
    layer = layer_named(network, "layer1.conv2")
    new = 0.5 * network.weight(layer)
    stream = ActivationCache(network, [images])
    stream.advance(network.index[layer.node])
    stream.weights[layer.weight_name] = new
    (got,) = stream.finish()
    expected = torch.func.functional_call(small_resnet(), {layer.weight_name: new}, (images,))
    assert relative(got, expected) < 1e-12


def test_only_live_values_are_held():
    network = Network(small_resnet())
    stream = ActivationCache(network, [random_images(2)])
    for position in range(2, len(network.nodes)):
        stream.advance(position)
        held = set(stream.values[0])
        for node in held:
            assert any(network.index.get(user, 10**9) >= position for user in node.users)
        needed = {
            source
            for node in network.nodes[position:]
            for source in node.all_input_nodes
            if source in network.index and network.index[source] < position
        }
        assert needed <= held


def test_a_stream_only_moves_forward():
    network = Network(small_resnet())
    stream = ActivationCache(network, [random_images(2)])
    stream.advance(5)
    stream.advance(5)
    assert stream.executed == 4
    with pytest.raises(ValueError, match="only moves forward"):
        stream.advance(4)


def test_context_does_not_depend_on_the_layer_and_leaves_the_stream_as_it_was():
    network = Network(small_resnet())
    layer = layer_named(network, "layer2.conv1")
    segment = network.segment(layer, 5)
    stream = ActivationCache(network, [random_images(3)])
    stream.advance(network.index[layer.node])
    held = {node: value.clone() for node, value in stream.values[0].items()}
    first = stream.context(segment, 0)
    stream.taps(segment, 0)
    second = stream.context(segment, 0)
    assert first.keys() == second.keys() == set(segment.context)
    assert all(torch.equal(first[node], second[node]) for node in first)
    assert held.keys() == stream.values[0].keys()
    assert all(torch.equal(value, stream.values[0][node]) for node, value in held.items())


def test_taps_use_dense_weights_on_the_streams_own_values():
    # FACTS section 2: later layers stay dense; published targets run the dense tail on the pruned network's input.
    network = Network(small_resnet())
    images = random_images(3)
    layer = layer_named(network, "layer1.conv2")
    stream = ActivationCache(network, [images])
    earlier = layer_named(network, "layer1.conv1")
    damaged = 0.3 * network.weight(earlier)
    stream.weights[earlier.weight_name] = damaged
    stream.advance(network.index[layer.node])
    segment = network.segment(layer, 100)
    logits = stream.taps(segment, 0)[-1]
    expected = torch.func.functional_call(small_resnet(), {earlier.weight_name: damaged}, (images,))
    assert relative(logits, expected) < 1e-12


def test_storage_elsewhere_gives_the_same_values():
    network = Network(small_vit())
    images = random_images(4, 4)
    stream = ActivationCache(network, list(images.split(3)), storage="cpu")
    assert relative(torch.cat(stream.finish()), network.module(images)) < 1e-12
    assert stream.sizes == [3, 1]


def test_move_reaches_into_nested_values_and_leaves_others_alone():
    tensor = torch.ones(2)
    moved = move((tensor, [tensor, {"a": tensor}], 3), torch.device("cpu", 0))
    assert moved[2] == 3 and torch.equal(moved[1][1]["a"], tensor)
    assert move("text", torch.device("cpu")) == "text"


def test_run_keeping_drops_what_nobody_reads_and_keeps_what_is_asked_for():
    network = Network(small_resnet())
    images = random_images(2)
    keep = {layer_named(network, "layer1.conv1").node, network.output}
    values = {network.image: images}
    run_keeping(network, network.nodes[1:], values, keep)
    assert set(values) == keep
    assert relative(values[network.output], network.module(images)) < 1e-12


def test_a_value_is_let_go_as_soon_as_nobody_reads_it(monkeypatch):
    layers = [module for _ in range(6) for module in (nn.Conv2d(3, 3, 1), nn.ReLU())]
    network = Network(nn.Sequential(*layers, nn.Flatten(), nn.Linear(48, 2)).double().eval())
    cache, made, alive, run = ActivationCache(network, [random_images(2, 4)]), [], [], Network.run

    def watched(self, nodes, values, weights=None):
        result = run(self, nodes, values, weights)
        made.extend(weakref.ref(values[node]) for node in nodes)
        alive.append(sum(reference() is not None for reference in made))
        return result

    monkeypatch.setattr(Network, "run", watched)
    cache.advance(len(network.nodes))
    assert len(made) == len(network.nodes) - 1 and max(alive) <= 3


def test_values_on_disk_are_files_until_they_are_read():
    network, images = Network(small_resnet()), random_images(4)
    place = network.index[layer_named(network, "layer1.conv2").node]
    resting, here = (ActivationCache(network, [images], storage) for storage in ("disk", None))
    resting.advance(place), here.advance(place)
    assert resting.rests_elsewhere and not here.rests_elsewhere
    made = {node: value for node, value in resting.values[0].items() if node is not network.image}
    assert made and all(isinstance(value, DiskTensor) for value in made.values())
    assert all(torch.equal(resting.read(node, 0), here.read(node, 0)) for node in made)
