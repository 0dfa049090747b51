"""liveness.py: which value is read for the last time where, in a graph as it is and in one that is read otherwise."""

import torch
from torch import fx, nn
from toys import random_images, small_resnet, small_vit

from snows_core.network.graph import Network
from snows_core.network.liveness import Liveness, last_places


class Forked(nn.Module):
    """``a`` is read twice, ``b`` once, ``c`` never."""

    def forward(self, x):
        a = x + 1
        b = a * 2
        c = a - 3  # noqa: F841
        return b.relu()


def nodes_of(module):
    nodes = [node for node in fx.symbolic_trace(module).graph.nodes if node.op != "output"]
    assert [node.name for node in nodes] == ["x", "add", "mul", "sub", "relu"]
    return nodes


def test_a_value_lives_until_its_last_reader_has_run():
    x, a, b, c, y = nodes = nodes_of(Forked())
    liveness = Liveness(nodes, keep=[y])
    assert liveness.last_use == {x: 1, a: 3, b: 4, c: 3, y: 5}, "what nobody reads goes where it is made"
    for value, last in liveness.last_use.items():
        assert [liveness.is_read_from(place, value) for place in range(6)] == [place <= last for place in range(6)]


def test_values_are_dropped_behind_their_last_reader_and_kept_where_asked():
    x, a, b, c, _ = nodes = nodes_of(Forked())
    for keep, left in ((), [{a}, {a, b}, {b}, set()]), ((x, c), [{x, a}, {x, a, b}, {x, b, c}, {x, c}]):
        liveness, values = Liveness(nodes), {x: 0}
        for node, expected in zip(nodes[1:], left, strict=True):
            values[node] = 0
            liveness.drop(values, node, keep)
            assert set(values) == expected


def test_nodes_that_read_otherwise_than_the_graph_says():
    x, a, b, _, y = nodes_of(Forked())
    short = Liveness([x, a, y], reads=lambda node: [a] if node is y else node.all_input_nodes)
    assert short.last_use == {x: 1, a: 2, y: 2}
    assert not short.is_read_from(0, b), "it does not occur"


def test_the_last_of_several_places_wins():
    x, a, b, _, _ = nodes_of(Forked())
    assert last_places([(3, [x, a]), (5, [a]), (9, [b, a])]) == {x: 3, a: 9, b: 9}


def test_a_network_run_with_dropped_values_gives_its_outputs():
    for model, size in ((small_resnet(), 8), (small_vit(), 4)):
        network, images = Network(model), random_images(2, size)
        values, most = {network.image: images}, 0
        for node in network.nodes[1:]:
            network.run((node,), values)
            network.liveness.drop(values, node)
            most = max(most, len(values))
        assert set(values) == {network.output}
        assert most < 8, "a few at a time, of some fifty"
        assert torch.allclose(values[network.output], model(images), rtol=1e-10)
