"""Small networks that hold every difficulty at once, and the means to set up one layer's problem on them."""

from dataclasses import dataclass

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from snows_core.activations.cache import ActivationCache
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods import LayerProblem, LayerValues
from snows_core.methods.snows import Snows
from snows_core.network.graph import Layer, Network, Segment
from snows_core.sweep.select import select_layers


class Block(nn.Module):
    """Residual block: one ReLU object used twice and in place, ``+=``, a shortcut convolution where shapes change."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class SmallResNet(nn.Module):
    """Stem, a plain block, a strided block with a shortcut convolution, pooling, classifier."""

    def __init__(self, width=4, classes=3, channels=3):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = Block(width, width, 1)
        self.layer2 = Block(width, 2 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer2(self.layer1(x))
        return self.fc(self.pool(x).flatten(1))


# Its layers in execution order; the first and the classifier stay dense by default.
RESNET_INNER = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.downsample.0"]
RESNET_LAYERS = ["conv1", *RESNET_INNER, "fc"]


class Wrapped(nn.Module):
    """Gives a network's output another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


class TorchAttention(nn.Module):
    """Self-attention by ``nn.MultiheadAttention`` between two linear layers, as in torchvision's ViT."""

    def __init__(self, dim=8, heads=2, batch_first=True, bias=True):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Conv2d(3, dim, 2, 2)
        self.norm = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, bias=bias, batch_first=batch_first)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y = self.norm(tokens)
        y = y if self.batch_first else y.transpose(0, 1)
        y, _ = self.attn(y, y, y, need_weights=False)
        y = y if self.batch_first else y.transpose(0, 1)
        tokens = tokens + y
        return self.head((tokens + self.mlp(tokens)).mean(1))


def awake(model, seed=0):
    """Give a network weights and batch-norm statistics that are far from their initial values; eval mode, float64."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * (2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.copy_(0.2 * noise + float(name.endswith("weight")))  # scales about 1, biases about 0
    return model.double().eval()


def small_resnet(seed=0, **options):
    return awake(SmallResNet(**options), seed)


def small_vit(seed=0, depth=2, dim=8, **options):
    """A real timm ViT: class token, position embedding, LayerNorm, GELU, fused attention."""
    vit = VisionTransformer(
        img_size=4, patch_size=2, embed_dim=dim, depth=depth, num_heads=2, mlp_ratio=2, num_classes=3, **options
    )
    return awake(vit, seed)


def torch_attention(seed=0, **options):
    return awake(TorchAttention(**options), seed)


def wide():
    """Few unknowns a row and many positions an image: 32 images are enough."""
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1)
    return awake(nn.Sequential(*layers))


def random_images(count=6, size=8, seed=1, channels=3, dtype=torch.float64):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_mask(shape, keep=0.5, seed=2):
    """A mask with every output row (and so the layer) kept in part."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < keep
    mask.view(shape[0], -1)[:, 0] = True
    return mask


def nudged(weight, amount=0.3, seed=3):
    """A weight away from the dense one, where the loss and its slope are not zero."""
    generator = torch.Generator().manual_seed(seed)
    return weight + amount * weight.std() * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


@dataclass
class Problem:
    """One layer's K-step problem, with everything it was made of."""

    network: Network
    layer: Layer
    segment: Segment
    objective: ReconstructionLoss
    weight: Tensor
    mask: Tensor
    pruned: ActivationCache
    dense: ActivationCache


def layer_named(network, name):
    return next(layer for layer in network.layers if layer.name == name)


def make_problem(model, batches, name, k, *, mask=None, damaged=None, leaf_modules=(), **options):
    """Set up a layer's loss: contexts from a network with ``damaged`` earlier weights, targets from the dense one.

    ``options`` are those of ``LossOptions``.
    """
    network = Network(model, leaf_modules)
    layer = layer_named(network, name)
    options = LossOptions(**options)
    segment = network.segment(layer, k, options.tap_rule)
    batches = [batches] if isinstance(batches, Tensor) else list(batches)
    dense, pruned = ActivationCache(network, batches), ActivationCache(network, batches)
    pruned.weights.update(damaged or {})
    for stream in (dense, pruned):
        stream.advance(network.index[layer.node])
    weight = network.weight(layer)
    mask = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    contexts = [pruned.context(segment, i) for i in range(len(batches))]
    targets = [dense.taps(segment, i) for i in range(len(batches))]
    objective = ReconstructionLoss(network, segment, contexts, targets, mask, options, pruned.sizes)
    return Problem(network, layer, segment, objective, weight, mask, pruned, dense)


def dense_matrix(product, mask):
    """Assemble a linear map on the kept weights column by column: (kept, kept)."""
    columns = []
    for index in mask.flatten().nonzero().flatten().tolist():
        unit = torch.zeros(mask.numel(), dtype=torch.float64)
        unit[index] = 1.0
        columns.append(product(unit.view(mask.shape)).flatten()[mask.flatten()])
    return torch.stack(columns, 1)


def relative(got, expected):
    """Relative difference in the largest entry."""
    return float(((got - expected).abs().max() / expected.abs().max()).detach())


def same(one, other):
    """Tell whether two state dicts hold the same tensors, types included, by the same names."""
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items()
    )


def plan(model, images=None, **choice):
    """Plan the layers of a model on two random images."""
    images = random_images(2) if images is None else images
    return select_layers(Network(model, example=images), model, images, **choice)


def chosen(selection):
    return [entry.name for entry in selection.prunable]


def reasons(selection):
    return {entry.name: entry.sentence for entry in selection.dense}


def layer_problem(network, segments, mask, pruned, dense=None):
    """What a method is given, from caches that stand where they should; default: targets from the pruned network."""
    values = LayerValues(pruned, pruned if dense is None else dense, [range(len(pruned.sizes))])
    return LayerProblem(network, segments, mask, values, torch.Generator().manual_seed(0))


def loss_of(network, segment, mask, caches, recipe):
    """The K-step loss that the recipe's own solve would see; ``caches`` are (pruned, dense)."""
    problem = layer_problem(network, [segment], mask, *caches)
    return problem.reconstruction(segment, Snows(recipe, segment.k).needs.loss, len(problem.sizes))


def streams(network, batches, layer, damaged):
    pruned, dense = ActivationCache(network, batches), ActivationCache(network, batches)
    pruned.weights.update(damaged)
    pruned.advance(network.index[layer.node])
    return pruned, dense
