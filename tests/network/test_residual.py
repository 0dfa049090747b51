"""residual.py: the unit whose input the published targets start from, in every kind of network."""

import os

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from toys import layer_named, random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.network.graph import Network
from snows_core.network.residual import restart, unit_start
from snows_core.zoo import experiment

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def entry(network, name):
    """Names of what the first node of a layer's unit reads."""
    node = network.nodes[unit_start(network, layer_named(network, name))]
    return [source.name for source in node.all_input_nodes if source.op != "get_attr"]


class Written(nn.Module):
    """Two residual additions in the forward of the network itself, as a function."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.b(F.relu(self.a(x)))
        x = self.d(F.relu(self.c(x))) + x
        return self.head(x.mean((2, 3)))


def test_written_out_units_reach_from_where_skip_and_branch_part():
    network = Network(Written().eval())
    assert entry(network, "a") == entry(network, "b") == ["relu"]
    assert entry(network, "c") == entry(network, "d") == ["add"]
    for name in ("stem", "head"):
        layer = layer_named(network, name)
        assert unit_start(network, layer) == network.index[layer.node], "no unit holds it"


class Sum(nn.Module):
    """The addition in a module of its own, which holds no layer."""

    def forward(self, x, y):
        return x + y


class Added(nn.Module):
    """A block whose addition takes place in a module inside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.add = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), Sum()

    def forward(self, x):
        return self.add(x, self.b(F.relu(self.a(x))))


def test_an_addition_in_a_module_of_its_own_closes_the_unit_around_it():
    body = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Added(), nn.Flatten(), nn.Linear(256, 2))
    network = Network(body.eval())
    for name in ("2.a", "2.b"):
        assert unit_start(network, layer_named(network, name)) == network.index[layer_named(network, "2.a").node]


def test_blocks_of_networks_are_their_units():
    network = Network(small_resnet())
    first, second = "layer2_conv1", "layer1_conv1"
    for name, node in {
        "layer1.conv1": second,
        "layer1.conv2": second,
        "layer2.conv1": first,
        "layer2.conv2": first,
        "layer2.downsample.0": first,
    }.items():
        assert network.nodes[unit_start(network, layer_named(network, name))].name == node
    network = Network(small_vit())
    starts = {
        name: unit_start(network, layer_named(network, f"blocks.1.{name}"))
        for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }
    assert len(set(starts.values())) == 1, "the whole encoder block, as in the authors' code"
    assert "blocks.1" in str(network.nodes[min(starts.values())].meta["nn_module_stack"])


@pytest.mark.parametrize(
    "make, inside, alone",
    [
        (lambda: torchvision.models.vit_b_16(num_classes=3), "encoder.layers.encoder_layer_1.mlp.3", "conv_proj"),
        (lambda: timm.create_model("convnext_atto"), "stages.1.blocks.0.mlp.fc1", "stages.1.downsample.1"),
        (lambda: timm.create_model("efficientnet_lite0"), "blocks.1.1.conv_dw", "conv_head"),
    ],
)
def test_units_of_well_known_networks(make, inside, alone):
    network = Network(make().eval())
    layer = layer_named(network, inside)
    block = inside.rsplit(".", 2)[0] if "blocks.1.1" not in inside else "blocks.1.1"
    start = unit_start(network, layer)
    scopes = str(network.nodes[start].meta["nn_module_stack"])
    assert block in scopes and start < network.index[layer.node]
    assert block not in str(network.nodes[start - 1].meta.get("nn_module_stack"))
    layer = layer_named(network, alone)
    assert unit_start(network, layer) == network.index[layer.node]


def test_a_restart_reads_only_what_comes_before_and_computes_the_taps():
    network = Network(small_resnet())
    values = network.run(network.nodes[1:], {network.image: random_images(2)})
    for name in ("layer1.conv2", "layer2.conv2", "layer2.downsample.0"):
        segment = network.segment(layer_named(network, name), 4, "published")
        unit = restart(network, segment)
        got = network.run(unit.nodes, {node: values[node] for node in unit.reads})
        assert all(torch.equal(got[tap], values[tap]) for tap in segment.taps)
        assert max(network.index[n] for n in unit.reads) < min(network.index[n] for n in unit.nodes)


def block_loss(dense, pruned, images, names):
    """The published loss at the start of layer1.conv2 by hooks on modules: dense block on the pruned block's input."""
    seen = {}

    def watch(model, key):
        for name in names:
            model.get_submodule(name).register_forward_hook(
                lambda m, i, o, name=name: seen.setdefault((key, name), []).append(o)
            )

    watch(dense, "dense"), watch(pruned, "pruned")
    inputs = []
    pruned.layer1.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    pruned(images)
    dense.layer1(inputs[0])
    pairs = [pair for name in names for pair in zip(seen["dense", name], seen["pruned", name], strict=True)]
    return sum(float(F.mse_loss(a, b)) for a, b in pairs)


def test_the_published_loss_is_the_one_that_hooks_see():
    # In a net whose modules are used once each; written without anything of the package's graphs.
    torch.manual_seed(0)
    dense, images = small_resnet(), random_images(12)
    masks = snows.make_masks(dense, images, "2:4")
    first = {"layer1.conv1": masks["layer1.conv1"]}
    half = snows.prune(dense, images, masks=first, k=0, recipe="paper", passes=3, progress=False)
    start = snows.apply_masks(half.model, {"layer1.conv2": masks["layer1.conv2"]})
    both = {name: masks[name] for name in ("layer1.conv1", "layer1.conv2")}
    result = snows.prune(dense, images, masks=both, k=0, recipe="paper", passes=3, progress=False)
    row = result.report.set_index("layer").loc["layer1.conv2"]
    expected = block_loss(small_resnet(), start, images, ["layer1.conv2"])
    assert row["loss_masked"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.skipif("SNOWS_DATA" not in os.environ, reason="needs CIFAR-10 and the published network")
def test_the_losses_of_the_published_code():
    # Measured with the authors' code on these 128 images, 1:4, K = 5, CG capped at 20.
    chosen = experiment("resnet20")
    model, images = chosen.load_model(), chosen.load_data().train.sample(128, 0)[0]
    masks = snows.make_masks(model, images[:2], "1:4", exclude=list(chosen.exclude))
    masks = {name: masks[name] for name in list(masks)[:3]}
    options = {"masks": masks, "k": 5, "recipe": "paper", "cg_iterations": 20, "progress": False}
    rows = snows.prune(model, images, **options, effort="quick").report.query("status == 'pruned'")
    assert rows["loss_start"].tolist()[:2] == pytest.approx([2.8194, 1.2668], rel=0.002)
    assert rows["loss_end"].tolist()[1:] == pytest.approx([0.2845, 0.4330], rel=0.02)
    options["masks"] = dict([*masks.items()][:1])  # of it the first layer alone is looked at
    one = snows.prune(model, images, **options, passes=1, effort="quick").report.query("status == 'pruned'")
    assert one["loss_end"].iloc[0] == pytest.approx(0.2857, rel=0.02)  # after the first of three steps
