"""What a network would take, counted and not run: `python tools/cost_of_scale.py` prints a table.

Floating-point operations of curvature products come from running one block's segments on PyTorch's "meta" device, which
has shapes and no numbers; those of the row factors from their sizes; bytes from parameters and from what autograd would
keep. Seconds are operations divided by ``--rate``, an assumption that the table repeats.
"""

from __future__ import annotations

import argparse

import pandas as pd
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch.utils.flop_counter import FlopCounterMode

from snows_core.activations.cache import ActivationCache
from snows_core.loss.curvature import gauss_newton, hessian
from snows_core.methods import LayerProblem, LayerValues
from snows_core.methods.snows import Snows
from snows_core.network.graph import Layer, Network
from snows_core.settings import get_recipe

PRODUCTS = 8  # per layer, as `snows estimate` charges
KEPT = 0.5  # 2:4


def vit_22b() -> VisionTransformer:
    """ViT-22B as published (Dehghani et al. 2023, table 1): 48 blocks, width 6,144, MLP 24,576, 48 heads."""
    return VisionTransformer(patch_size=14, embed_dim=6144, depth=48, num_heads=48, mlp_ratio=4, qk_norm=True)


NETWORKS = {
    "vit_base_patch16_224": lambda: timm.create_model("vit_base_patch16_224"),
    "vit_large_patch16_224": lambda: timm.create_model("vit_large_patch16_224"),
    "vit_huge_patch14_224": lambda: timm.create_model("vit_huge_patch14_224"),
    "ViT-22B": vit_22b,
}


def product_cost(network: Network, layer: Layer, stream: ActivationCache, k: int) -> tuple[float, float]:
    """Return the floating-point operations and the bytes of graph of one product of one image."""
    weight = network.weight(layer)
    mask = torch.ones_like(weight, dtype=torch.bool)
    recipe = get_recipe("fast", normalise=False)
    segment, values = network.segment(layer, k), LayerValues(stream, stream, [range(1)])
    problem = LayerProblem(network, [segment], mask, values, torch.Generator())
    objective = problem.reconstruction(segment, Snows(recipe, k).needs.loss, 1)
    held: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        held[storage._cdata] = storage.nbytes()  # "meta" has no data pointers
        return tensor

    free = weight.clone().requires_grad_(True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        product = (gauss_newton if objective.by_gauss_newton else hessian)(objective.batch(0), free).product
    with FlopCounterMode(display=False) as counter:
        product(weight)
    return float(counter.get_total_flops()), float(sum(held.values()))


def factor_flops(outputs: int, inputs: int, max_bytes: float) -> float:
    """Return the operations of a layer's row factors, in blocks of inputs where memory asks for them."""
    block = float(inputs)
    while block > 16 and outputs * (KEPT * block) ** 2 * 4 * inputs / block > max_bytes:
        block /= 2
    return outputs * inputs / block * (KEPT * block) ** 3 / 3


def cost(name: str, images: int, sample: int, k: int, rate: float, budget: float) -> dict[str, object]:
    """Return one network's row: the middle block stands for all of them."""
    with torch.device("meta"):
        network = Network(NETWORKS[name]().eval())
        stream = ActivationCache(network, [torch.empty(1, 3, 224, 224)])
    depth = len({layer.name.split(".")[1] for layer in network.layers if layer.name.startswith("blocks.")})
    block = [layer for layer in network.layers if layer.name.startswith(f"blocks.{depth // 2}.")]
    flops, graph = 0.0, 0.0
    for layer in block:
        stream.advance(network.index[layer.node])
        once, held = product_cost(network, layer, stream, k)
        outputs, inputs = network.weight(layer).shape
        gradients = 0.5 * images * once  # forward, backward: about half a product
        flops += depth * (PRODUCTS * sample * once + gradients + factor_flops(outputs, inputs, 0.25 * budget))
        graph = max(graph, held * sample)
    parameters = sum(p.numel() for p in network.module.parameters())
    tokens = stream.values[0]
    resting = 2 * images * sum(v.numel() * 4 for v in tokens.values() if isinstance(v, torch.Tensor))
    return {
        "network": name,
        "weights": f"{parameters / 1e6:,.0f} M",
        "weights, GB": round(parameters * 4 / 1e9, 1),
        "PFLOP": round(flops / 1e15, 1),
        "minutes": round(flops / rate / 60, 1),
        "graph, GB": round(graph / 1e9),
        "resting values, GB": round(resting / 1e9, 1),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--sample", type=int, default=256, help="images whose curvature is used")
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--rate", type=float, default=50e12, help="FLOP/s that are reached: an assumption")
    parser.add_argument("--budget", type=float, default=80e9, help="bytes of GPU memory for graphs and factors")
    options = parser.parse_args()
    rows = [cost(name, options.images, options.sample, options.k, options.rate, options.budget) for name in NETWORKS]
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"{options.images} images, K = {options.k}, 2:4, {options.rate / 1e12:.0f} TFLOP/s assumed, single precision")


if __name__ == "__main__":
    main()
