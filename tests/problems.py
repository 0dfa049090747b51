"""Layers of small networks as problems that every layer-wise method can be given."""

from torch import nn
from toys import awake, layer_named, layer_problem, random_images, random_mask, small_resnet, small_vit

from snows_core.activations import ActivationCache
from snows_core.network import Network

GROUPED = awake(
    nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2, stride=2), nn.ReLU(), nn.Conv2d(12, 4, 1))
)
PROBLEMS = {
    "residual unit": (small_resnet, 8, "layer1.conv2"),
    "downsampling": (small_resnet, 8, "layer2.downsample.0"),
    "transformer": (small_vit, 4, "blocks.0.mlp.fc1"),
    "groups and stride": (lambda: GROUPED, 8, "1"),
}


def problem_of(case, k=2, keep=0.5, damage=0.7):
    """A layer behind damaged ones, two batches of unlike size, a random mask."""
    make, size, name = PROBLEMS[case]
    network = Network(make())
    layer = layer_named(network, name)
    segment = network.segment(layer, k)
    pruned, dense = (ActivationCache(network, list(random_images(11, size).split([8, 3]))) for _ in range(2))
    first = network.layers[0]
    pruned.weights[first.weight_name] = damage * network.weight(first)
    dense.needed_until = {node: 10**9 for node in (*segment.taps, layer.node.all_input_nodes[0])}
    pruned.advance(network.index[layer.node])
    dense.advance(len(network.nodes))
    return layer_problem(network, [segment], random_mask(network.weight(layer).shape, keep), pruned, dense)
