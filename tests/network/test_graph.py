"""graph.py: layers in order, segments that follow skips, and running any stretch with any weight replaced."""

import pytest
import torch
from torch import nn
from toys import RESNET_LAYERS, awake, layer_named, random_images, relative, small_resnet, small_vit, torch_attention

from snows_core.activations.cache import ActivationCache
from snows_core.network.graph import Network
from snows_core.network.operations import Kind


def everything(network, images, weights=None):
    values = {network.image: images}
    return network.run(network.nodes[1:], values, weights)


def names(nodes):
    return [str(node.target) for node in nodes]


def test_layers_stand_in_execution_order_with_their_weights():
    network = Network(small_resnet())
    assert [layer.name for layer in network.layers] == RESNET_LAYERS
    state = small_resnet().state_dict()
    for layer in network.layers:
        assert torch.equal(network.weight(layer), state[layer.weight_name])
        assert layer.weight_name == f"{layer.name}.weight"


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4), (torch_attention, 8)])
def test_segments_of_every_layer_and_k_give_the_models_own_values_at_their_taps(make, size):
    network = Network(make())
    images = random_images(3, size)
    values = everything(network, images)
    for layer in network.layers:
        stream = ActivationCache(network, [images])
        stream.advance(network.index[layer.node])
        for k in (0, 1, 2, 5, 40):
            segment = network.segment(layer, k)
            assert segment.k <= k and len(set(segment.taps)) == len(segment.taps)
            for node, got in zip(segment.taps, stream.taps(segment, 0), strict=True):
                assert torch.allclose(got, values[node], rtol=1e-12, atol=1e-12), (layer.name, k, node)


def test_a_segment_crosses_the_skip_and_reads_the_other_branch_from_its_context():
    network = Network(small_resnet())
    layer = layer_named(network, "layer2.conv1")
    segment = network.segment(layer, 4)
    assert [network.kinds[n].value if n in network.kinds else str(n.target) for n in segment.taps] == [
        "layer2.bn1",
        "activation",
        "layer2.bn2",
        "activation",
        "linear",
    ]
    assert "layer2.downsample.0" not in names(segment.nodes)  # it does not depend on the layer
    assert "layer2.downsample.0" in names(segment.prelude)
    assert "layer2.downsample.1" in names(segment.context)
    assert layer.node not in segment.prelude


def test_a_layer_that_feeds_a_skip_has_it_in_its_segment():
    network = Network(small_resnet())
    segment = network.segment(layer_named(network, "conv1"), 4)  # conv1, relu, layer1.conv1, relu, layer1.conv2
    shorter = network.segment(layer_named(network, "conv1"), 5)
    assert segment.k == 4 and len(shorter.nodes) > len(segment.nodes)
    assert set(segment.context) == {network.image}  # both branches of the first block come from the layer itself


def test_k_zero_is_the_layer_with_its_batch_norm_and_k_beyond_the_end_stops_there():
    network = Network(small_resnet())
    first = network.segment(layer_named(network, "layer1.conv1"), 0)
    assert first.k == 0 and names(first.nodes) == ["layer1.conv1", "layer1.bn1"]
    last = network.segment(layer_named(network, "fc"), 7)
    assert last.k == 0 and names(last.taps) == ["fc"]
    long = network.segment(layer_named(network, "layer2.conv2"), 1000)
    assert long.k == 2 and names(long.taps)[-1] == "fc"


def test_k_counts_operations_that_depend_on_the_layer_only():
    network = Network(small_resnet())
    segment = network.segment(layer_named(network, "layer2.downsample.0"), 1)
    assert names(segment.taps) == ["layer2.downsample.1", "layer2.relu"]
    values = {node: kind for node, kind in network.kinds.items() if node in segment.taps}
    assert Kind.CONVOLUTION not in values.values()  # layer2.conv2 is a sibling and lies outside


def test_published_tap_rule_counts_convolutions_and_activations_without_shortcut_or_classifier():
    # FACTS section 2: batch norm, additions, pooling, shortcut convolutions and the classifier are not counted. (That
    # a convolution is observed before its batch norm is a matter of scale: test_program.py.)
    network = Network(small_resnet())
    segment = network.segment(layer_named(network, "layer1.conv1"), 100, "published")
    counted = names(segment.taps)
    assert counted == [
        "layer1.bn1",
        "layer1.relu",
        "layer1.bn2",
        "layer1.relu",
        "layer2.bn1",
        "layer2.relu",
        "layer2.bn2",
        "layer2.relu",
    ]
    vit = Network(small_vit())
    taps = vit.segment(layer_named(vit, "blocks.0.attn.qkv"), 100, "published").taps
    assert Kind.NORMALISATION not in {vit.kinds[node] for node in taps}


def test_replaced_weights_enter_where_they_are_used_modules_and_functions_alike():
    for make, size, name in [
        (small_resnet, 8, "layer1.conv2.weight"),
        (small_resnet, 8, "fc.bias"),
        (torch_attention, 8, "attn.in_proj_weight"),
        (small_vit, 4, "blocks.1.mlp.fc1.weight"),
    ]:
        model = make()
        network = Network(model)
        images = random_images(2, size)
        new = 1.5 * model.get_parameter(name).detach()
        got = everything(network, images, {name: new})[network.output]
        expected = torch.func.functional_call(model, {name: new}, (images,))
        assert relative(got, expected) < 1e-12
        assert relative(everything(network, images)[network.output], model(images)) < 1e-12  # and are forgotten after


def test_first_layer_and_classifier_are_recognised():
    for make, first, last in [(small_resnet, "conv1", "fc"), (small_vit, "patch_embed.proj", "head")]:
        network = Network(make())
        assert [layer.name for layer in network.layers if network.is_first(layer)] == [first]
        assert [layer.name for layer in network.layers if network.is_classifier(layer.node)] == [last]


def test_two_first_layers_of_a_network_with_two_stems():
    class TwoStems(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return self.c(self.a(x) + self.b(x))

    network = Network(awake(TwoStems()))
    assert [layer.name for layer in network.layers if network.is_first(layer)] == ["a", "b"]
    segment = network.segment(layer_named(network, "a"), 1)
    assert names(segment.nodes)[0] == "a" and "b" in names(segment.prelude)


def test_last_uses_let_every_value_go_after_its_last_reader():
    network = Network(small_resnet())
    for node in network.nodes:
        readers = [network.index[user] for user in node.users if user in network.index]
        place = max(readers, default=network.index[node])  # what nobody reads goes as soon as it is made
        expected = len(network.nodes) if any(user.op == "output" for user in node.users) else place
        assert network.liveness.last_use[node] == expected


def test_a_layer_alone_gives_what_it_gives_in_the_network_with_its_computed_bias_too():
    class ComputedBias(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.qkv = nn.Conv2d(3, 4, 1), nn.Linear(4, 12, bias=False)
            self.q, self.v = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            bias = torch.cat((self.q, torch.zeros_like(self.v), self.v))
            return nn.functional.linear(self.stem(x).mean((2, 3)), self.qkv.weight, bias)

    for make in (small_resnet, torch_attention, lambda: awake(ComputedBias())):
        network, images = Network(make()), random_images(2)
        values = everything(network, images)
        for layer in network.layers:
            x, weight = values[layer.node.args[0]], 2 * network.weight(layer)
            assert torch.equal(network.apply(layer, x), values[layer.node])
            expected = network.run((layer.node,), dict(values), {layer.weight_name: weight})[layer.node]
            assert torch.equal(network.apply(layer, x, weight), expected)
