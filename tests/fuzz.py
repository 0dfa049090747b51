"""Random small networks from a grammar of what vision networks are made of, and random calls of ``prune`` on them.

Everything follows from one seed. A network is a list of blocks; each block draws its own form (module, function,
method, in place, by keyword), so that a few dozen seeds meet most combinations.
"""

import random

import torch
from torch import nn
from torch.nn import functional as F
from toys import awake

SIZE = 8  # pixels of the images, on each side


ACTIVATIONS = {
    "relu module": (nn.ReLU, {}),
    "relu in place": (nn.ReLU, {"inplace": True}),
    "gelu": (nn.GELU, {}),
    "gelu tanh": (nn.GELU, {"approximate": "tanh"}),
    "silu": (nn.SiLU, {"inplace": True}),
    "hardswish": (nn.Hardswish, {}),
    "leaky": (nn.LeakyReLU, {"negative_slope": 0.1, "inplace": True}),
    "relu6": (nn.ReLU6, {}),
    "prelu": (nn.PReLU, {}),
    "elu": (nn.ELU, {}),
    "functional": F.relu,
    "functional in place": lambda x: F.relu(x, inplace=True),
    "method": lambda x: x.relu(),
    "method in place": lambda x: x.relu_(),
    "functional gelu": F.gelu,
    "functional silu": F.silu,
    "functional hardswish": F.hardswish,
    "keyword": lambda x: F.leaky_relu(input=x, negative_slope=0.2),
    "tanh": torch.tanh,
    "sigmoid by hand": lambda x: x * x.sigmoid(),
}


class Activation(nn.Module):
    """One activation, written in one of the ways that people write it."""

    def __init__(self, draw):
        super().__init__()
        form = ACTIVATIONS[draw.choice(list(ACTIVATIONS))]
        self.function = form[0](**form[1]) if isinstance(form, tuple) else form

    def forward(self, x):
        return self.function(x)


class Convolution(nn.Module):
    """A convolution of any kind, perhaps with batch norm, perhaps with an activation."""

    def __init__(self, draw, inputs, outputs, stride=1, act=True, kernel=None):
        super().__init__()
        kernel = kernel or draw.choice([1, 3, 3, 3, 5, (1, 3)])
        dilation = draw.choice([1, 1, 2]) if kernel == 3 else 1
        reach = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = tuple(dilation * (side - 1) // 2 for side in reach)
        groups = draw.choice([1, 1, 1, 2, inputs]) if outputs % inputs == 0 and inputs % 2 == 0 else 1
        if stride == 1 and draw.random() < 0.2:
            padding = "same"
        mode = draw.choice(["zeros"] * 4 + ["reflect", "replicate", "circular"])
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, draw.random() < 0.5, mode)
        self.norm = nn.BatchNorm2d(outputs) if draw.random() < 0.6 else None
        self.act = Activation(draw) if act and draw.random() < 0.8 else None
        self.functional = mode == "zeros" and draw.random() < 0.15
        self.keyword = draw.random() < 0.2

    def forward(self, x):
        c = self.conv
        if self.functional:
            x = F.conv2d(x, c.weight, c.bias, c.stride, c.padding, c.dilation, groups=c.groups)
        else:
            x = c(input=x) if self.keyword else c(x)
        x = x if self.norm is None else self.norm(x)
        return x if self.act is None else self.act(x)


class Residual(nn.Module):
    """Convolutions around which the input is carried, as it is or through a shortcut convolution."""

    def __init__(self, draw, inputs, outputs, stride=1):
        super().__init__()
        self.body = nn.Sequential(
            Convolution(draw, inputs, outputs, stride, kernel=3), Convolution(draw, outputs, outputs, act=False)
        )
        plain = inputs == outputs and stride == 1
        self.shortcut = None if plain else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.late = draw.random() < 0.5  # the shortcut is computed after the body
        self.way = draw.choice(["+", "+=", "add", "add_", "scaled"])
        self.act = Activation(draw) if draw.random() < 0.7 else nn.Identity()

    def forward(self, x):
        carry = None if self.late else self._carry(x)
        out = self.body(x)
        carry = self._carry(x) if carry is None else carry
        if self.way == "+=":
            out += carry
        elif self.way == "add_":
            out = out.add_(carry)
        elif self.way == "add":
            out = torch.add(out, carry)
        elif self.way == "scaled":
            out = torch.add(carry, out, alpha=0.5)
        else:
            out = carry + out
        return self.act(out)

    def _carry(self, x):
        return x if self.shortcut is None else self.shortcut(x)


class Branches(nn.Module):
    """Two branches side by side, joined along the channels."""

    def __init__(self, draw, inputs, outputs):
        super().__init__()
        self.one = Convolution(draw, inputs, outputs // 2)
        self.two = Convolution(draw, inputs, outputs // 2)
        self.way = draw.choice(["cat", "keyword", "dense"])
        self.join = Convolution(draw, inputs + outputs, outputs, kernel=1) if self.way == "dense" else None

    def forward(self, x):
        if self.way == "dense":
            return self.join(torch.cat([x, self.one(x), self.two(x)], 1))
        return torch.cat((self.one(x), self.two(x)), **{"dim" if self.way == "keyword" else "axis": 1})


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole image shows."""

    def __init__(self, draw, channels):
        super().__init__()
        self.linear = draw.random() < 0.4
        layer = nn.Linear if self.linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.reduce, self.expand = layer(channels, 4), layer(4, channels)
        self.act, self.gate = Activation(draw), draw.choice([nn.Sigmoid(), nn.Hardsigmoid()])
        self.in_place, self.mean = draw.random() < 0.3, draw.random() < 0.5

    def forward(self, x):
        s = x.mean((2, 3), keepdim=True) if self.mean else F.adaptive_avg_pool2d(x, 1)
        s = s.flatten(1) if self.linear else s
        s = self.gate(self.expand(self.act(self.reduce(s))))
        s = s[:, :, None, None] if self.linear else s
        return x.mul_(s) if self.in_place else x * s


class Attention(nn.Module):
    """Tokens that look at each other, by PyTorch's module or written out; with a residual around it."""

    def __init__(self, draw, width, heads=2):
        super().__init__()
        self.way = draw.choice(["module", "module", "fused", "by hand"])
        self.first, self.weights = draw.random() < 0.6, draw.random() < 0.4
        self.norm, self.heads = nn.LayerNorm(width), heads
        if self.way == "module":
            self.attention = nn.MultiheadAttention(width, heads, bias=draw.random() < 0.7, batch_first=self.first)
        else:
            self.qkv, self.proj = nn.Linear(width, 3 * width, bias=draw.random() < 0.5), nn.Linear(width, width)

    def forward(self, x):
        y = self.norm(x)
        if self.way == "module":
            y = y if self.first else y.transpose(0, 1)
            y = self.attention(y, y, value=y, need_weights=self.weights)[0]
            return x + (y if self.first else y.transpose(0, 1))
        count, tokens, width = y.shape
        q, k, v = self.qkv(y).reshape(count, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5).softmax(dim=-1).matmul(v)
        return x + self.proj(y.transpose(1, 2).reshape(count, tokens, width))


class Perceptron(nn.Module):
    """Two linear layers on each token; with a residual around them."""

    def __init__(self, draw, width):
        super().__init__()
        self.norm, self.act = nn.LayerNorm(width), Activation(draw)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width, bias=draw.random() < 0.5)
        self.keyword, self.drop = draw.random() < 0.3, nn.Dropout(0.1)

    def forward(self, x):
        y = self.norm(x)
        y = self.fc1(input=y) if self.keyword else self.fc1(y)
        return x + self.drop(self.fc2(self.act(y)))


POOLS = {
    "max": nn.MaxPool2d(2),
    "average": nn.AvgPool2d(2, ceil_mode=True),
    "overlapping": nn.MaxPool2d(3, 2, 1),
    "functional": lambda x: F.max_pool2d(x, kernel_size=2),
    "functional average": lambda x: F.avg_pool2d(x, 2),
}


class Pool(nn.Module):
    """A pooling to half the size."""

    def __init__(self, draw):
        super().__init__()
        self.pool = POOLS[draw.choice(list(POOLS))]

    def forward(self, x):
        return self.pool(x)


class Network(nn.Module):
    """A stem, some blocks on maps, perhaps some on tokens, and a classifier."""

    def __init__(self, seed, blocks=4, width=8):
        super().__init__()
        draw = random.Random(seed)
        self.stem = Convolution(draw, 3, width, draw.choice([1, 2]), kernel=3)
        maps, channels, halved = [], width, self.stem.conv.stride[0] == 2
        for _ in range(draw.randint(1, blocks)):
            kind = draw.choice(["convolution", "residual", "residual", "strided", "branches", "squeeze", "pool"])
            if kind in ("strided", "pool") and halved:
                kind = "residual"
            halved = halved or kind in ("strided", "pool")
            wider = draw.choice([channels, channels, 12 if channels == 8 else channels])
            if kind == "convolution":
                maps.append(Convolution(draw, channels, wider))
            elif kind in ("residual", "strided"):
                maps.append(Residual(draw, channels, wider, 2 if kind == "strided" else 1))
            elif kind == "branches":
                maps.append(Branches(draw, channels, wider))
            elif kind == "squeeze":
                maps.append(SqueezeExcite(draw, channels))
                wider = channels
            else:
                maps.append(Pool(draw))
                wider = channels
            channels = wider
        tokens = [draw.choice([Attention, Perceptron])(draw, channels) for _ in range(draw.choice([0, 0, 1, 2, 3]))]
        self.maps, self.tokens = nn.ModuleList(maps), nn.ModuleList(tokens)
        self.hidden = nn.Linear(channels, channels) if draw.random() < 0.5 else None
        self.act, self.fc = Activation(draw), nn.Linear(channels, 3)
        self.functional = draw.random() < 0.3

    def forward(self, x):
        x = self.stem(x)
        for block in self.maps:
            x = block(x)
        x = x.flatten(2).transpose(1, 2) if len(self.tokens) else x
        for block in self.tokens:
            x = block(x)
        x = x.mean(1) if len(self.tokens) else F.adaptive_avg_pool2d(x, (1, 1)).flatten(1)
        x = x if self.hidden is None else self.act(self.hidden(x))
        return F.linear(x, self.fc.weight, bias=self.fc.bias) if self.functional else self.fc(x)


def random_network(seed, blocks=4):
    """Return a random network in eval mode and double precision, its weights far from their initial values."""
    return awake(Network(seed, blocks), seed)
