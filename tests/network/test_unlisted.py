"""unlisted.py, select.py: every weight that cannot be pruned has a row with its reason; nothing else has one."""

import pytest
import torch
import torchvision
from timm.layers import register_notrace_function
from torch import nn
from torch.nn import functional as F
from toys import awake, chosen, plan, random_images, reasons, small_resnet, small_vit

from snows_core.errors import SnowsError
from snows_core.network.graph import Network
from snows_core.network.unlisted import grouped
from snows_core.sweep.select import select_layers

D = 8


class Adapted(nn.Linear):
    """A linear layer with a small matrix of its own beside the weight."""

    def __init__(self):
        super().__init__(D, D)
        self.small = nn.Parameter(matrix(D, 2))

    def forward(self, y):
        return super().forward(y) + (y @ self.small).sum(-1, keepdim=True)


class Standardised(nn.Conv1d):
    def __init__(self):
        super().__init__(D, D, 1)
        self.gain = nn.Parameter(torch.ones(D, 1, 1))

    def forward(self, y):
        return F.conv1d(y, self.gain * self.weight / self.weight.std(), self.bias)


def matrix(*shape):
    return torch.randn(*(shape or (D, D)), generator=torch.Generator().manual_seed(0)) / 3


@register_notrace_function
def somewhere_else(y, weight):
    return y @ weight


class Holding(nn.Module):
    """Tokens (N, 16, 8) go through a layer, ``way`` with the modules and tensors that it needs, a layer, and a head."""

    def __init__(self, way, **parts):
        super().__init__()
        self.embed, self.before = nn.Conv2d(3, D, 2, 2), nn.Linear(D, D)
        self.way, self.p = way, nn.Module()
        for name, part in parts.items():
            setattr(self.p, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)
        self.after, self.head = nn.Linear(D, D), nn.Linear(D, 3)

    def forward(self, x):
        y = self.before(self.embed(x).flatten(2).transpose(1, 2))
        return self.head(F.relu(self.after(self.way(self.p, y))).mean(1))


PRODUCT = "a matrix used in '{}', not by a layer"
UNUSED = "not used by the forward pass"
CASES = {
    "transposed convolution": (
        lambda p, y: p.up(y.transpose(1, 2)).transpose(1, 2),
        {"up": nn.ConvTranspose1d(D, D, 2, 2)},
        {"p.up": "transposed convolution"},
    ),
    "transposed convolution, as a function": (
        lambda p, y: F.conv_transpose1d(y.transpose(1, 2), p.w).transpose(1, 2),
        {"w": matrix(D, D, 3)},
        {"p.w": "transposed convolution"},
    ),
    "recurrent": (
        lambda p, y: p.rnn(y)[0],
        {"rnn": nn.GRU(D, D // 2, batch_first=True, bidirectional=True)},
        dict.fromkeys(
            [f"p.rnn.weight_{n}_l0{end}" for end in ("", "_reverse") for n in ("ih", "hh")], "recurrent layer"
        ),
    ),
    "recurrent cell": (
        lambda p, y: y + p.cell(y[:, 0])[:, None],
        {"cell": nn.GRUCell(D, D)},
        {"p.cell.weight_ih": "recurrent layer", "p.cell.weight_hh": "recurrent layer"},
    ),
    "@": (lambda p, y: y @ p.w, {"w": matrix()}, {"p.w": PRODUCT.format("matmul")}),
    "@ transposed": (lambda p, y: y @ p.w.t().contiguous(), {"w": matrix()}, {"p.w": PRODUCT.format("matmul")}),
    "einsum": (lambda p, y: torch.einsum("nte,ef->ntf", y, p.w), {"w": matrix()}, {"p.w": PRODUCT.format("einsum")}),
    "bmm": (
        lambda p, y: torch.bmm(y, p.w.expand(y.shape[0], -1, -1)),
        {"w": matrix()},
        {"p.w": PRODUCT.format("bmm")},
    ),
    "method": (lambda p, y: y.matmul(other=p.w), {"w": matrix()}, {"p.w": PRODUCT.format("matmul")}),
    "bilinear": (lambda p, y: p.bi(y, y), {"bi": nn.Bilinear(D, D, D)}, {"p.bi": "bilinear layer"}),
    "bilinear, as a function": (lambda p, y: F.bilinear(y, y, p.w), {"w": matrix(D, D, D)}, {"p.w": "bilinear layer"}),
    "embedding": (
        lambda p, y: y + p.table(torch.arange(16)),
        {"table": nn.Embedding(16, D)},
        {"p.table": "embedding"},
    ),
    "one dimension": (
        lambda p, y: p.conv(y.transpose(1, 2)).transpose(1, 2),
        {"conv": nn.Conv1d(D, D, 1)},
        {"p.conv": "1-dimensional convolution"},
    ),
    "three dimensions": (
        lambda p, y: p.conv(y.view(-1, D, 4, 2, 2)).flatten(2).transpose(1, 2),
        {"conv": nn.Conv3d(D, D, 1)},
        {"p.conv": "3-dimensional convolution"},
    ),
    "three dimensions, as a function": (
        lambda p, y: F.conv3d(y.view(-1, D, 4, 2, 2), p.w).flatten(2).transpose(1, 2),
        {"w": matrix(D, D, 1, 1, 1)},
        {"p.w": "3-dimensional convolution"},
    ),
    "five axes": (
        lambda p, y: y * p.w.sum((0, 1, 2)),
        {"w": matrix(2, 2, 2, 16, D)},
        {"p.w": "used in 'sum', not as the weight of a layer"},
    ),
    "a row of weights": (
        lambda p, y: y + F.linear(y, p.w[0])[..., None],
        {"w": matrix(2, D)},
        {"linear": "its weight is computed, not stored", "p.w": "its weight is computed, not stored"},
    ),
    "computed": (
        lambda p, y: F.linear(y, p.w * 2),
        {"w": matrix()},
        {"linear": "its weight is computed, not stored", "p.w": "used in 'mul', not as the weight of a layer"},
    ),
    "beside a layer": (
        lambda p, y: y + F.relu(p.fc(y)),
        {"fc": Adapted()},
        {"p.fc.small": PRODUCT.format("matmul")},
    ),
    "a layer that computes its weight": (
        lambda p, y: p.conv(y.transpose(1, 2)).transpose(1, 2),
        {"conv": Standardised()},
        {"p.conv": "its weight is computed, not stored"},
    ),
    "a mask of scales": (
        lambda p, y: y * p.w,
        {"w": matrix(16, D)},
        {"p.w": "used in 'mul', not as the weight of a layer"},
    ),
    "learnt tokens": (
        lambda p, y: y + p.fc(p.w).mean(0),
        {"w": matrix(5, D), "fc": nn.Linear(D, D)},
        {"p.w": "learnt tokens, an input of other layers", "p.fc": "does not depend on the image"},
    ),
    "a function that is not traced": (
        lambda p, y: somewhere_else(y, p.w),
        {"w": matrix()},
        {"p.w": "used inside a function that is not traced"},
    ),
    "unused": (
        lambda p, y: y,
        {"fc": nn.Linear(D, D), "w": matrix(), "b": torch.zeros(3)},
        {"p.fc": UNUSED, "p.w": UNUSED},
    ),
    # no rows:
    "positions": (lambda p, y: y + p.w, {"w": matrix(1, 16, D)}, {}),
    "positions, resized": (
        lambda p, y: y + F.interpolate(p.w[None].transpose(1, 2), size=16).transpose(1, 2),
        {"w": matrix(9, D)},
        {},
    ),
    "a token": (lambda p, y: torch.cat([p.w.expand(y.shape[0], -1, -1), y], 1), {"w": matrix(1, 1, D)}, {}),
    "tokens": (lambda p, y: torch.cat([y, p.w.expand(y.shape[0], -1, -1)], 1), {"w": matrix(1, 4, D)}, {}),
    "a bias table": (
        lambda p, y: F.scaled_dot_product_attention(y, y, y, attn_mask=p.w[torch.arange(16)]),
        {"w": matrix(16, 16)},
        {},
    ),
    "scales": (lambda p, y: y * p.w, {"w": matrix(1, 1, D)}, {}),
    "norms": (lambda p, y: p.norm(y), {"norm": nn.LayerNorm([16, D])}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_that_is_no_layer_has_a_row(case):
    way, parts, expected = CASES[case]
    model = awake(Holding(way, **parts))
    planned = plan(model)
    ends = {"embed": "first layer (reads the image)", "head": "classifier"}
    assert reasons(planned) == ends | expected
    assert chosen(planned) == ["before", *(["p.fc"] if case == "beside a layer" else []), "after"]
    shapes = {entry.name: entry.shape for entry in planned.entries}
    names = dict(model.named_parameters())
    for name in expected.keys() & names.keys():
        assert shapes[name] == tuple(names[name].shape)


def test_a_weight_of_a_buffer_says_so():
    model = Holding(lambda p, y: F.linear(y, p.blur))
    model.p.register_buffer("blur", torch.eye(D))
    assert reasons(plan(awake(model)))["linear"] == "its weight is a buffer, not a parameter"


def test_tied_and_repeated_parameters_have_one_row():
    model = Holding(lambda p, y: y @ p.w, w=matrix())
    model.p.again = model.p.w
    model.alias = model.before.weight  # a second name of a listed layer's weight
    assert set(reasons(plan(awake(model)))) == {"embed", "head", "p.w"}


def test_usual_networks_have_no_row_beside_their_layers():
    for model, size in ((small_resnet(), 8), (small_vit(), 4)):
        network = Network(model)
        planned = select_layers(network, model, random_images(2, size))
        assert [entry.name for entry in planned.entries] == [layer.name for layer in network.layers]


def test_a_network_without_a_layer_lists_what_it_has():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2), nn.Flatten(2), nn.LSTM(81, 4)).eval()
    with pytest.raises(SnowsError, match=r"nothing to prune\. Other weights are: transposed convolution: 0; recurrent"):
        Network(model)


def test_when_nothing_is_left_every_reason_is_told():
    normed = nn.utils.parametrizations.weight_norm
    model = (
        nn.Sequential(
            nn.Conv2d(3, 4, 1), *(normed(nn.Conv2d(4, 4, 1)) for _ in range(6)), nn.Flatten(1), nn.Linear(256, 2)
        )
        .double()
        .eval()
    )
    with pytest.raises(SnowsError) as error:
        plan(model)
    assert str(error.value) == (
        "layers: got a choice that selects no layer; expected at least one convolution or linear layer. Left dense: "
        "first layer (reads the image): 0; its weight is computed, not stored: 1, 2, 3, 4 and 2 more; classifier: 8."
    )
    assert len(grouped((f"layer{i}", f"reason number {i}") for i in range(200))) < 1000


@pytest.mark.filterwarnings("ignore:The default:FutureWarning")
def test_lists_of_real_networks_are_short():
    model = torchvision.models.swin_t(weights=None, num_classes=4).eval()
    images = torch.randn(2, 3, 64, 64)
    planned = select_layers(Network(model, example=images), model, images)
    hidden = {entry.name: entry.sentence for entry in planned.dense if entry.kind == "hidden"}
    assert set(hidden.values()) == {"used inside a function that is not traced"}
    assert all(name.endswith((".attn.qkv", ".attn.proj")) for name in hidden)
