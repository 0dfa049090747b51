"""tracer.py, answers.py: Python code that asks for shapes is traced with an example; what asks for numbers is not."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, chosen, plan, random_images, reasons

from snows_core.errors import SnowsError
from snows_core.network.graph import Network


class Asking(nn.Module):
    """Everything stands in the outermost forward, so nothing can be stepped around; ``way`` makes the tokens."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv, self.mid, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)
        self.register_buffer("query", torch.ones(1, 1, 4))
        self.register_buffer("table", torch.ones(64, 4))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = self.conv(x).flatten(2).transpose(1, 2)  # (N, 64, 4)
        return self.head(F.relu(self.mid(self.way(self, x, y))).mean(1))


def way(text):
    """A way written as statements on x (the image) and y (its tokens)."""
    space = {"torch": torch, "F": F, "math": math, "nn": nn, "Tensor": torch.Tensor}
    body = "\n    ".join([*text.strip().replace("->", "\n        ").split("; "), "return y"])
    exec(f"def asked(m, x, y):\n    {body}", space)
    return space["asked"]


WAYS = """
assert x.shape[1] == 3, "colour images"
assert x.dim() == 4 and x.ndim == 4 and len(x.shape) == 4
assert isinstance(x, Tensor) and torch.is_tensor(y) and not isinstance(x, (list, tuple))
assert x.is_floating_point() and torch.is_floating_point(y) and x.dtype == torch.float64
assert not x.is_nested and not x.is_sparse and not x.is_cuda and x.device.type == "cpu"
assert x.shape[2:] == (8, 8) and tuple(x.size())[1:] == (3, 8, 8) and 8 in x.shape
assert x.size(-1) % 4 == 0 and y.numel() // y.shape[0] == 256 and bool(x.shape[2])
assert (x.shape[0], x.shape[1]) == (x.size(0), 3) and x.shape == x.shape
n, c, h, w = x.shape; y = y.view(n, h * w, 4) * c
n, *rest = x.shape; y = y.reshape(n, -1, 4) + sum(rest)
n = x.shape[0]; y = y.reshape(n * 2, 32, 4).reshape(n, 64, 4)
y = y.view(len(x), -1, 4) * len(y[0])
y = y + torch.zeros(x.shape[0], 64, 4, dtype=y.dtype, device=y.device)
y = y + torch.arange(x.shape[0], dtype=y.dtype)[:, None, None] * 0 + torch.arange(y.shape[1], dtype=y.dtype)[:, None]
y = torch.cat([m.query.expand(x.shape[0], -1, -1), y], 1)
y = torch.cat([m.query.repeat(len(x), 1, 1), y], 1)
y = y * m.table[: y.shape[1]]
y = y * torch.finfo(y.dtype).eps ** 0.01 / math.sqrt(y.shape[-1]) * y.size(-1) ** -0.5
y = y * torch.tensor(y.shape[1]).to(y) + torch.full((x.shape[0], 1, 1), 2.0, dtype=x.dtype)
y = torch.stack([y[:, i] for i in range(0, y.shape[1], 16)], 1)
y = torch.stack([part.mean(1) for part in y.split(16, 1)], 1)
parts = []; [parts.append(t * 2) for t in y.unbind(1)]; y = torch.stack(parts, 1)
y = sum(t for t in y.chunk(2, 1))
b = int(y.shape[0] * 4 / 2 / 2); y = y.view(b, 64, 4)
v = y.reshape(-1, 16, 4); b = int(v.shape[0] / (64 / 16)); assert not isinstance(4.0, int); y = v.view(b, 64, 4)
side = int(y.shape[1] ** 0.5); y = y.view(-1, side, side, 4).flatten(1, 2) if side * side == y.shape[1] else None
values, places = y.max(-1); y = y * values.unsqueeze(-1)
y = y if x.requires_grad else y * 1
y = y + F.interpolate(x[:, :1], size=(y.shape[1], 4), mode="bilinear")[:, 0]
y = y.masked_fill(torch.ones(y.shape[1], 4, dtype=torch.bool).triu(), 0.0)
y = getattr(y, "mT").mT; y = y.to(x.dtype).type_as(x).to(x.device)
y = y * m.scale if m.scale.shape[0] == y.shape[-1] and m.scale.ndim == 1 else None
y = y.new_zeros(y.shape).add(y); y = y + torch.randn(y.shape[1]).to(y)[:, None] * 0
y = {64: y, 63: None}[y.shape[1]]; y = y[:, : min(y.shape[1], 60)]; y = y[:, -max(3, y.size(-1)) :]
if x.shape[1] != 3:-> raise ValueError(f"expected 3 channels, got {x.shape[1]}")
if y.shape[-1] not in (4, 8):-> raise ValueError("width")
""".strip().split("\n")


@pytest.mark.parametrize("text", WAYS)
def test_what_is_asked_of_shapes_is_answered_and_the_number_of_images_stays_open(text):
    model = awake(Asking(way(text)))
    model.table.fill_(1)
    network = Network(model, example=random_images(2))
    assert [layer.name for layer in network.layers] == ["conv", "mid", "head"]
    for count in (1, 3, 7):
        images = random_images(count)
        with torch.no_grad():
            assert torch.allclose(network.module(images), model(images), rtol=1e-12, atol=1e-12), count


@pytest.mark.parametrize(
    "text, reason",
    [
        ("y = y if y.sum() > 0 else -y", "depends on the numbers in a tensor"),
        ("y = y * float(y.mean())", "depends on the numbers in it"),
        ("y = y if x.shape[0] % 2 else -y", "depends on the number of images"),
        ("y = torch.stack([t for t in y])", "depends on the number of images"),
        ("y = torch.cat([y[i : i + 1] for i in range(y.shape[0])])", "depends on the number of images"),
    ],
)
def test_the_outermost_forward_cannot_be_stepped_around_and_the_advice_can_be_followed(text, reason):
    model = awake(Asking(way(text)))
    with pytest.raises(SnowsError) as error:
        Network(model, example=random_images(2))
    message = str(error.value)
    assert reason in message and "leaf_modules" not in message and "Move that line out of this forward" in message

    class Moved(nn.Module):  # the advice, followed
        def __init__(self, asked):
            super().__init__()
            self.asked = asked

        def forward(self, x, y):
            return self.asked(None, x, y)

    model.moved = Moved(model.way).eval()
    model.way = lambda m, x, y: m.moved(x, y)
    network = Network(model, example=random_images(2))
    assert list(network.module.meta["opaque"]) == ["moved"]
    assert len(network.layers) == 3
    for count in (2, 3):
        assert torch.allclose(network.module(random_images(count)), model(random_images(count)))


class Deciding(nn.Module):
    """A small decision on numbers, with or without layers inside."""

    def __init__(self, layers):
        super().__init__()
        self.fc = nn.Linear(4, 4) if layers else nn.Identity()

    def forward(self, y):
        assert y.shape[-1] == 4
        return self.fc(y) if y.mean() > -1e9 else y


class Outer(nn.Module):
    def __init__(self, layers=True):
        super().__init__()
        self.conv, self.inner = nn.Conv2d(3, 4, 1), nn.Sequential(nn.Linear(4, 4), Deciding(layers), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.conv(x).mean((2, 3))
        y = self.inner(y)
        assert y.shape == (x.shape[0], 4)  # the shape is known behind the module that was stepped around
        return self.head(y)


def test_the_smallest_module_that_cannot_be_traced_becomes_a_leaf():
    model = awake(Outer())
    with pytest.warns(UserWarning, match=r"keep their layers dense: 'inner\.1' \(Deciding, 1 layer"):
        network = Network(model, example=random_images(2))
    assert list(network.module.meta["opaque"]) == ["inner.1"]
    assert torch.allclose(network.module(random_images(3)), model(random_images(3)))
    with pytest.warns(UserWarning, match="keep their layers dense"):
        planned = plan(model)
    assert chosen(planned) == ["inner.0", "inner.2"]
    assert reasons(planned)["inner.1.fc"] == "used inside a module that is not traced"


@pytest.mark.filterwarnings("error")
def test_no_warning_where_no_layer_is_hidden():
    network = Network(awake(Outer(layers=False)), example=random_images(2))
    assert list(network.module.meta["opaque"]) == ["inner.1"]


def test_a_module_that_holds_all_layers_is_never_a_leaf():
    class Wrapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Outer()

        def forward(self, x):
            if x.mean() > 5:
                x = x / 255
            return self.net(x)

    class Shell(nn.Module):
        def __init__(self):
            super().__init__()
            self.shell = Wrapping()

        def forward(self, x):
            return self.shell(x)

    with pytest.raises(SnowsError, match=r"module 'shell' \(Wrapping\), which holds all.*line \d+: if x\.mean\(\) > 5"):
        Network(awake(Shell()), example=random_images(2))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.mid, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(4, 8)

    def forward(self, image, age, *, flag=False):
        return self.mid(self.a(image).mean((2, 3)) + self.b(age))


def test_two_inputs_are_refused_with_a_wrapper_that_works():
    model = awake(TwoInputs())
    with pytest.raises(SnowsError, match=r"needs 2 inputs \(image, age\)") as error:
        Network(model, example=random_images(2))
    code = str(error.value).split("\n\n", 1)[1]
    space = {"torch": torch}
    exec("\n".join(line[4:] for line in code.splitlines() if "snows.prune" not in line), space)
    wrapped = space["OfImageAlone"](model, torch.ones(1, 4, dtype=torch.float64)).eval()
    network = Network(wrapped, example=random_images(2))
    assert torch.allclose(network.module(random_images(3)), wrapped(random_images(3)))
    assert "network.a" in [layer.name for layer in network.layers]


def test_images_at_fault_are_named_as_such():
    model = awake(Asking(way("assert x.shape[1] == 3, 'colour images'")))
    with pytest.raises(SnowsError, match=r"images: got shape \(2, 1, 8, 8\).*which the model refuses"):
        Network(model, example=random_images(2, channels=1))


def test_functions_that_were_exchanged_while_tracing_are_back():
    before = [getattr(torch, name) for name in ("zeros", "arange")], torch.Tensor.view, "view" in vars(torch.Tensor)
    Network(awake(Asking(way("y = y.view(len(x), -1, 4)"))), example=random_images(2))
    with pytest.raises(SnowsError):
        Network(awake(Asking(way("y = y if y.sum() > 0 else -y"))), example=random_images(2))
    assert before == (
        [getattr(torch, name) for name in ("zeros", "arange")],
        torch.Tensor.view,
        "view" in vars(torch.Tensor),
    )
    assert torch.overrides.is_tensor_method_or_property(torch.Tensor.view)


def test_what_a_forward_leaves_in_attributes_does_not_reach_the_next_attempt():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mid, self.head, self.seen = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2), []
            self.register_buffer("mean", torch.zeros(4))

        def forward(self, x):
            y = self.mid(self.conv(x).relu())
            self.seen.append(y)
            self.last, self.mean = y, y.mean((0, 2, 3))
            count = int(x.shape[0] * 2 / 2)  # asks for a number that depends on the images: traced again from here
            return self.head(self.last.mean((2, 3)).view(count, 4) + self.mean + self.seen[-1].mean() * len(self.seen))

    model = awake(Keeping())
    network = Network(model, example=random_images(2))
    assert model.seen == [] and not hasattr(model, "last") and not model.mean.any()
    assert torch.allclose(network.module(random_images(3)), model(random_images(3)))
