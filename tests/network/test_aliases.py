"""aliases.py: in-place work on values and views is taken out of the graph, and every reader sees what it would."""

import pytest
import torch
from timm.layers import register_notrace_function
from torch import nn
from torch.nn import functional as F
from toys import awake, random_images

from snows_core.network.graph import Network

RELU = nn.ReLU(inplace=True)
DROPOUT = nn.Dropout(0.5).eval()
CHANNELS = 4


class Writing(nn.Module):
    """``way`` gets (module, y) with y (N, 4, 8, 8) and returns what the head reads, besides y itself."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.relu, self.drop, self.same = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Identity()
        self.flat = nn.Flatten(2)
        self.register_buffer("state", torch.ones(CHANNELS))
        self.last = nn.Conv2d(CHANNELS, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        z = self.way(self, y)
        return self.last(y * 2) + (0 if z is None else z.sum())


@register_notrace_function
def doubled_in_place(y):
    y.mul_(2)
    return y


def lines(text):
    """A way written as statements on y; ``z`` is what it returns."""
    space = {"torch": torch, "F": F, "doubled_in_place": doubled_in_place}
    body = "\n    ".join(["z = None", *text.strip().split("; "), "return z"])
    exec(f"def way(m, y):\n    {body}", space)
    return space["way"]


WAYS = """
v = y[:, :2]; v += 1
v = y[:, :2]; v += 1; z = v
v = y.view(y.shape[0], -1); y.add_(1); z = v
v = y.view(y.shape[0], -1); w = v[:, 3:9]; w *= 3; z = v + y.sum()
y[:, 0] = 0
y[:, 0] = y[:, 1] * 2; y[:, 1, ::2] = 3.0
y[:, ::2] = y[:, 1::2]
y[..., 0] += 2
y[:, 0, 1:3] -= y[:, 1, 1:3]
y[y > 0] = 0.5
v = y.flatten(1); v[:, :5] = 0; z = v
a, b = y.chunk(2, 1); a += b; z = a - b
a, b = y.chunk(2, 1); b.mul_(a); z = y[:, 0]
parts = y.split([1, 3], 1); parts[1].add_(parts[0]); z = parts[1]
a, b, c, d = y.unbind(1); c.relu_(); z = a + b + c
v = y.transpose(2, 3); v[:, :, 0] *= 2; z = v[:, 0]
v = y.permute(0, 2, 3, 1); v.clamp_(min=0); z = v
v = y.narrow(1, 1, 2).select(2, 0); v.zero_()
v = y.unsqueeze(1).squeeze(1); v.fill_(2); z = v
v = y[:, 1:3].transpose(2, 3)[..., 0]; v.mul_(-2); z = v
v = y.mT; v += v.sum(); z = v
v = y.reshape(y.shape[0], -1); v += 1
v = y.permute(0, 2, 3, 1).reshape(y.shape[0], -1); v += 1; z = v
v = y.contiguous(); v += 1
v = y.permute(0, 2, 3, 1).contiguous(); v += 1; z = v
v = y.to(torch.float64); v += 1
v = y.float(); v += 1; z = v
v = y.detach(); v.mul_(2); z = v
y.data.mul_(2)
v = m.relu(y[:, :2])
v = F.relu(y[:, 1:], inplace=True); z = v
v = torch.relu_(y[:, 1:2])
v = F.relu_(y.view(-1)); z = v
v = m.relu(m.drop(y)); z = v
v = m.same(y); v.add_(1)
v = m.flat(y); v.sub_(1); z = v
v = F.dropout(y, 0.5, False); v += 1
torch.add(y, 1, out=y)
torch.mul(y[:, :2], 2, out=y[:, 2:])
v = torch.empty_like(y); torch.sigmoid(y, out=v); z = v
v = y[:, :1]; v.copy_(y[:, 1:2]); z = v
v = y.clone(); v.masked_fill_(v < 0, 3.0); z = v
v = y.flatten(1); v.scatter_(1, torch.zeros(y.shape[0], 1, dtype=torch.long), 5.0)
v = y.flatten(2); v.index_add_(1, torch.tensor([0, 2]), v[:, 1:3]); z = v
y **= 2
y /= 3; y %= 1
y //= 1
v = y > 0; v &= y < 1; z = v * y
v = y[:, 0]; y.add_(1); v += 1; z = v; y.mul_(2)
v = y[:, 0]; w = y[:, 1]; v.add_(w); w.add_(v); z = v + w
y.add_(1).mul_(2).relu_()
y.unsqueeze_(0); z = y * 3; y.squeeze_(0)
y.transpose_(2, 3); z = y[:, :, 0]
v = y[:, 0]; y.transpose_(2, 3); v.add_(5); z = v
v = y.expand(3, -1, -1, -1, -1); y.add_(1); z = v
v = y.unflatten(1, (2, 2)); v[:, 0] = 1; z = v
v = y.diagonal(dim1=2, dim2=3); v.fill_(7)
v = doubled_in_place(y); z = v
v = doubled_in_place(y[:, :2])
v = y.movedim(1, 3); v[..., 0] = 0
m.state[:] = y.mean((0, 2, 3)); z = m.state
m.state.mul_(0); y.add_(m.state[None, :, None, None])
y.bernoulli_(0); z = y + 1
"""
# Without an example it is told by names, and these names do not say whether they copy.
BY_EXAMPLE = ("reshape(y.shape[0], -1); v += 1; z", "contiguous(); v += 1; z", "float(); v += 1", "doubled_in_place(y[")


def equal(way, example):
    model = awake(Writing(lines(way)))
    if "m.state" in way:
        model.state.fill_(1)
    images = random_images(3)
    original = images.clone()
    network = Network(model, example=random_images(2) if example else None)
    assert not network.module.meta["opaque"], network.module.meta["opaque"]
    got = network.module(images)
    with torch.no_grad():
        expected = model(images.clone())
    assert torch.allclose(got, expected, rtol=1e-12, atol=1e-12), f"{way} (example: {example})"
    assert torch.equal(images, original)
    values = network.run(network.nodes[1:], {network.image: images})
    for node in network.nodes[1:]:  # running one node again from the values at hand gives what it gave
        again = network.run((node,), dict(values))[node]
        assert not isinstance(again, torch.Tensor) or torch.equal(again, values[node]), f"{node} wrote over its input"
    weight = network.weight(network.layers[0]).clone().requires_grad_()
    if not any(word in way for word in ("//=", "bernoulli", "fill_(2)", "y.data", "detach()")):
        name = network.layers[0].weight_name
        out = network.run(network.nodes[1:], {network.image: images}, {name: weight})[network.output]
        (slope,) = torch.autograd.grad(out.square().sum(), weight, create_graph=True)
        torch.autograd.grad(slope.square().sum(), weight)  # and all of it can be differentiated twice


@pytest.mark.parametrize("way", WAYS.strip().split("\n"))
def test_every_reader_sees_what_was_written(way):
    equal(way, example=True)
    if not any(text in way for text in BY_EXAMPLE):
        equal(way, example=False)


def test_an_image_written_into_stays_as_it_is():
    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            x -= 0.5
            x[:, 0].mul_(2)
            return self.conv(x)

    model, images = awake(Normalising()), random_images(2)
    network = Network(model, example=images)
    original = images.clone()
    assert torch.allclose(network.module(images), model(images.clone()))
    assert torch.equal(images, original)


class Container(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 4, 1), inner, nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.conv(x)
        return self.head(y + self.inner(y))


def test_what_cannot_be_followed_makes_its_module_a_leaf():
    class Resizing(nn.Module):
        def forward(self, y):
            z = y.clone()
            return z.resize_(z.shape)

    model, images = awake(Container(Resizing())), random_images(2)
    network = Network(model, example=images)
    assert list(network.module.meta["opaque"]) == ["inner"]
    with torch.no_grad():
        assert torch.allclose(network.module(images), model(images))


def test_a_leaf_that_writes_into_its_input_works_on_a_copy():
    class Writer(nn.Module):
        def forward(self, y):
            if y.sum() > 1e9:
                return y
            return y.mul_(2) * 1.0

    class Once(Container):
        def forward(self, x):
            return self.head(self.inner(self.conv(x)))

    model, images = awake(Once(Writer())), random_images(2)
    network = Network(model, example=images)
    assert torch.allclose(network.module(images), model(images))
    values = network.run(network.nodes[1:], {network.image: images})
    conv = network.layers[0].node
    assert torch.equal(values[conv], model.conv(images))
