"""paths.py: the classifier is the layer after which none comes, unless it ends a residual unit; where gradients end."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from toys import SmallResNet, awake, layer_named, plan, random_images, reasons, small_resnet, small_vit

from snows_core.network.graph import Network
from snows_core.sweep.select import select_layers


def ends(model, size=64, channels=3):
    """Names of the layers left dense as classifiers."""
    model = model.eval()
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    planned = select_layers(Network(model, example=images), model, images)
    return [name for name, reason in reasons(planned).items() if reason == "classifier"]


def headless(model):
    model.fc = nn.Identity()
    return model


NETWORKS = {
    "squeezenet": (lambda: torchvision.models.squeezenet1_1(weights=None, num_classes=4), ["classifier.1"]),
    "lraspp": (
        lambda: torchvision.models.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=4
        ),
        ["classifier.low_classifier", "classifier.high_classifier"],
    ),
    "fcn": (
        lambda: torchvision.models.segmentation.fcn_resnet50(
            weights=None, weights_backbone=None, num_classes=4, aux_loss=True
        ),
        ["classifier.4", "aux_classifier.4"],
    ),
    "resnet": (lambda: torchvision.models.resnet18(weights=None, num_classes=4), ["fc"]),
    "headless resnet": (lambda: headless(torchvision.models.resnet18(weights=None)), []),
    "headless resnet of timm": (lambda: timm.create_model("resnet10t", num_classes=0), []),
    "headless vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24, num_classes=0),
        [],
    ),
    "headless vit with layer scale": (
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24, num_classes=0, init_values=0.1
        ),
        [],
    ),
    "parallel vit": (
        lambda: timm.create_model("vit_small_patch16_36x1_224", img_size=64, depth=1, embed_dim=36, num_classes=0),
        [],
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_classifiers_of_real_networks(name):
    make, expected = NETWORKS[name]
    assert ends(make()) == expected


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up, self.join = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 4, 3, padding=1)
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        a = F.relu(self.down1(x))
        b = F.relu(self.down2(a))
        return self.last(F.relu(self.join(torch.cat([a, self.up(b)], 1))))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mid = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.a, self.b = nn.Conv2d(4, 2, 1), nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 5))

    def forward(self, x):
        y = F.relu(self.mid(F.relu(self.body(x))))
        return {"map": self.a(y), "logits": self.b(y.mean((2, 3)))}


class Denoiser(nn.Module):
    """Adds its output to the image: no representation, the network's answer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        return x + self.c(F.relu(self.b(F.relu(self.a(x)))))


class Decoder(nn.Module):
    """A transposed convolution comes last, so the convolution before it is no classifier."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.up = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x):
        return self.up(F.relu(self.b(F.relu(self.a(x)))))


class Summed(nn.Module):
    """Two heads from one trunk, added up, then a sigmoid: both are classifiers."""

    def __init__(self):
        super().__init__()
        self.a, self.trunk, self.u, self.v = (nn.Conv2d(3, 3, 1) for _ in range(4))

    def forward(self, x):
        y = F.relu(self.trunk(F.relu(self.a(x))))
        return torch.sigmoid(self.u(y) + self.v(F.avg_pool2d(y, 3, 1, 1)))


def with_a_last_shortcut():
    """Its last block changes the width: the skip is a convolution, and no value from before the layer."""
    model = SmallResNet()
    model.fc = nn.Identity()
    return model


@pytest.mark.parametrize(
    "make, expected",
    [
        (UNet, ["last"]),
        (TwoHeads, ["a", "b.2"]),
        (Denoiser, ["c"]),
        (Decoder, []),
        (Summed, ["u", "v"]),
        (with_a_last_shortcut, []),
        (SmallResNet, ["fc"]),
        (
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Softmax(-1)
            ),
            ["5"],
        ),
    ],
)
def test_classifiers_of_small_networks(make, expected):
    assert ends(make(), size=8) == expected


def test_the_published_rule_counts_the_last_layer_of_a_headless_network():
    network = Network(awake(with_a_last_shortcut()))
    taps = network.segment(layer_named(network, "layer2.conv1"), 10, "published").taps
    assert [str(tap.target) for tap in taps] == ["layer2.bn1", "layer2.relu", "layer2.bn2", "layer2.relu"]


# --- where gradients end


class Then(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.way, self.first, self.second = way, nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.hidden, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        y = F.relu(self.second(F.relu(self.first(x)))).mean((2, 3))
        return self.head(F.relu(self.hidden(self.way(y))))


BLOCKED = {
    "detach": lambda y: y.detach(),
    "data": lambda y: y.data,
    "round": lambda y: (16 * y).round() / 16,
    "torch.round": lambda y: torch.round(y),
    "floor, ceil, trunc": lambda y: y.floor() + y.ceil() + torch.trunc(y),
    "sign": torch.sign,
    "heaviside": lambda y: torch.heaviside(y, y.new_zeros(1)),
    "whole numbers": lambda y: y.long().to(y.dtype),
    "to(int)": lambda y: y.to(torch.int32).double(),
    "// 1": lambda y: y // 0.1,
    "comparison": lambda y: (y > 0).to(y.dtype),
    "bool": lambda y: y.bool().double(),
    "argmax": lambda y: F.one_hot(y.argmax(-1), 4).to(y.dtype),
    "index of max": lambda y: F.one_hot(y.max(-1)[1], 4).to(y.dtype),
    "index of topk": lambda y: y.topk(4).indices.to(y.dtype),
    "codes": lambda y: torch.eye(4, dtype=y.dtype)[y.argmin(-1)],
    "straight through": lambda y: y + (y.round() - y).detach(),
    "half open": lambda y: y + y.detach(),
    "rounded beside": lambda y: y * 0.5 + y.round(),
}
OPEN = {
    "leaky by hand": lambda y: torch.where(y > 0, y, 0.1 * y),
    "masked": lambda y: y * (y > 0),
    "masked, whole numbers": lambda y: y * (y > 0).long(),
    "largest": lambda y: y.max(-1).values[:, None] * y,
    "gathered": lambda y: y.gather(1, y.argsort(-1)),
    "shapes": lambda y: y.view(y.shape[0], y.shape[1] // 2, 2).flatten(1) / y.size(1),
    "clamp": lambda y: y.clamp(0, 1),
    "double": lambda y: y.float().double(),
    "new zeros": lambda y: y + y.new_zeros(y.shape).detach().round(),
}


def k_of(way, name="second", k=10):
    network = Network(awake(Then(way)), example=random_images(2))
    return network.segment(layer_named(network, name), k).k


@pytest.mark.parametrize("way", BLOCKED)
def test_a_segment_ends_where_its_gradient_would(way):
    assert k_of(BLOCKED[way]) == 1  # the ReLU right behind
    assert k_of(BLOCKED[way], "hidden") == 2  # behind the cut all is open
    assert k_of(BLOCKED[way], "first") == 3


@pytest.mark.parametrize("way", OPEN)
def test_choices_and_shapes_do_not_cut(way):
    assert k_of(OPEN[way]) == 4


def test_everything_blocked_gives_k_zero_and_an_open_branch_still_counts():
    class Branches(Then):
        def forward(self, x):
            y = self.second(F.relu(self.first(x))).mean((2, 3))
            return self.head(self.way(y)), F.relu(self.hidden(y))

    network = Network(awake(Branches(torch.round)), example=random_images(2))
    layer = layer_named(network, "second")
    kinds = [network.kinds[tap].value for tap in network.segment(layer, 10).taps]
    assert kinds == ["convolution", "linear", "activation"]
    assert "head" not in [str(tap.target) for tap in network.segment(layer, 10).taps]

    class Shut(Then):
        def forward(self, x):
            return self.head(F.relu(self.hidden(self.second(self.first(x)).detach().mean((2, 3)))))

    network = Network(awake(Shut(None)), example=random_images(2))
    assert network.segment(layer_named(network, "second"), 10).k == 0


class Opaque(nn.Module):
    """Cannot be traced, and passes no gradient on (or does)."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = blocks

    def forward(self, y):
        if y.sum() > 1e9:
            return y
        return y.round() if self.blocks else y * 2


@pytest.mark.parametrize("blocks, k", [(True, 1), (False, 4)])
def test_what_was_not_looked_into_is_tried(blocks, k):
    model = awake(Then(Opaque(blocks)))
    network = Network(model, example=random_images(2))
    select_layers(network, model, random_images(2))
    assert network.segment(layer_named(network, "second"), 10).k == k


def test_segments_of_usual_networks_are_as_long_as_ever():
    for model, size, name, expected in (
        (small_resnet(), 8, "conv1", 11),
        (small_vit(), 4, "blocks.0.attn.qkv", 16),
    ):
        network = Network(copy.deepcopy(model), example=random_images(2, size))
        layer = layer_named(network, name)
        reached = {layer.node}
        for node in network.nodes[network.index[layer.node] + 1 :]:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
        assert network.segment(layer, 1000).k == len(reached & network.kinds.keys()) - 1 == expected


def test_reasons_of_the_plan():
    assert reasons(plan(awake(UNet()))) == {
        "down1": "first layer (reads the image)",
        "last": "classifier",
        "up": "transposed convolution",
    }
