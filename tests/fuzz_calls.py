"""Random calls of ``prune`` on the random networks of :mod:`fuzz`, all from one seed."""

import random

import torch
from fuzz import SIZE, random_network
from torch.utils.data import DataLoader, TensorDataset
from toys import random_images, random_mask

import snows_core as snows
from snows_core.network.graph import Network

PATTERNS = [
    "2:4",
    "1:4",
    "1:2",
    "3:4",
    "4:8",
    0.3,
    0.5,
    0.9,
    "0.75",
    "global:0.6",
    "global:0.7:0.9",
    snows.NM(2, 4),
    snows.Unstructured(0.6),
    snows.Unstructured(0.8, "global", cap=0.95),
]
DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16]


def random_call(seed):
    """Return a model, the tensors of its images, a function that makes the images anew, and options of ``prune``."""
    draw = random.Random(f"call {seed}")
    dtype = draw.choice(DTYPES)
    model = random_network(10_000 + seed, blocks=2).to(dtype)
    count = draw.choice([1, 2, 3, 7, 16, 17, 33, 40])
    x = random_images(count, SIZE, seed=seed, dtype=draw.choice([dtype, torch.float32]))
    options = {
        "pattern": draw.choice(PATTERNS),
        "k": draw.choice([0, 1, 2, 3, 4, 5, 6, "auto"]),
        "seed": draw.randint(0, 9),
        "recipe": draw.choice(["fast", "fast", "fast", "paper"]),
        "batch_size": draw.choice([1, 3, 4, 16, 64]),
        "progress": False,
        "cg_iterations": 15,
    }
    maybe = {
        "curvature": lambda: draw.choice(["hessian", "gauss-newton"]),
        "max_memory": lambda: draw.choice([0.2, 2e6, 2e7, 1e9]),
        "refine": lambda: draw.choice([1, 2, 3, 10]),
        "curvature_images": lambda: draw.choice([1, 8, None]),
        "precision": lambda: "bfloat16",
        "steps": lambda: draw.randint(1, 3),
        "max_images": lambda: draw.randint(1, 40),
        "layers": lambda: draw.choice([["maps.*"], ["*"], [torch.nn.Linear], lambda name, module: "conv" in name]),
        "exclude": lambda: draw.choice([["stem.*"], ["f*"], [torch.nn.Linear], []]),
    }
    options |= {name: value() for name, value in maybe.items() if draw.random() < 0.2}
    if draw.random() < 0.2:
        options["masks"] = _random_masks(model, draw)
    return model, x, _source(x, draw), options


def _random_masks(model, draw):
    """Return random masks of some layers, by name of the layer or of its weight, or the model with its zeros."""
    network = Network(model, example=random_images(2, SIZE).to(torch.float32))
    layers = [layer for layer in network.layers if layer.weight_name]
    chosen = draw.sample(layers, max(1, len(layers) // 2))
    return {
        draw.choice([layer.name, layer.weight_name]): random_mask(tuple(network.weight(layer).shape), seed=i)
        for i, layer in enumerate(chosen)
    }


def _source(x, draw):
    """Return a function that gives the images in one of the forms that ``prune`` takes."""
    size = draw.randint(1, 8)
    labels = torch.zeros(len(x))
    return draw.choice(
        [
            lambda: x,
            lambda: DataLoader(TensorDataset(x, labels), batch_size=size),
            lambda: [{"pixel_values": part, "labels": [0]} for part in x.split(size)],
            lambda: (part for part in x.split(size)),
        ]
    )
