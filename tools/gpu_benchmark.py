"""Measure SNOWS on a GPU: `python tools/gpu_benchmark.py` prints a table and writes figures/performance/<device>.json.

Random weights (time does not depend on what a network has learnt), 2:4 masks. ``--small`` runs tiny sizes on any
device, to see that the script works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import snows_core as snows
from snows_core.graph import Network
from snows_core.layer_solver import make_objective
from snows_core.recipe import get_recipe
from snows_core.stream import Stream

CASES = {"vit_large_patch16_224": (3000, 3), "resnet50": (3000, 30)}
SMALL = {"vit_tiny_patch16_224": (4, 1), "resnet18": (4, 2)}


def clock(device: torch.device) -> float:
    """Return seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_ceiling(device: torch.device, size: int) -> float:
    """Return the FLOP/s of a square float32 matrix product at the precision now set."""
    a = torch.randn(size, size, device=device)
    a @ a
    start = clock(device)
    for _ in range(10):
        a @ a
    return 10 * 2 * size**3 / (clock(device) - start)


def product_rate(name: str, images: torch.Tensor, k: int) -> float:
    """Return the FLOP/s of curvature products of a layer in the middle of a network."""
    network = Network(timm.create_model(name).eval())
    network.module.to(images.device)
    layer = network.layers[len(network.layers) // 2]
    stream = Stream(network, [images])
    stream.advance(network.index[layer.node])
    weight = network.weight(layer)
    mask = torch.rand_like(weight) < 0.5
    segment = network.segment(layer, k)
    at = make_objective(network, segment, mask, stream, stream, get_recipe("fast", normalise=False)).linearise(weight)
    with FlopCounterMode(display=False) as counter:
        at.product(weight)
    start = clock(images.device)
    for _ in range(5):
        at.product(weight)
    return 5 * counter.get_total_flops() / (clock(images.device) - start)


def run(name: str, count: int, k: int, device: torch.device) -> dict[str, float | str | int]:
    """Prune one network 2:4 and return what it took."""
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"][-1]
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = clock(device)
    result = snows.prune(model, images, "2:4", k=k, device=device)
    seconds = clock(device) - start
    return {
        "network": name,
        "images": count,
        "k": k,
        "seconds": round(seconds, 1),
        "peak GB": round(result.manifest["memory"]["peak"] / 1e9, 1),
        "image products": int(result.report["image_products"].sum()),
        "batch": result.manifest["memory"]["batch_size"],
    }


def main() -> None:
    """Run all cases, print and save the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, any device")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--precision", default="highest", choices=("highest", "high", "medium"), help="float32 matmul")
    parser.add_argument("--out", type=Path, default=Path("figures/performance"), help="folder of the results")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision(options.precision)
    ceiling = matmul_ceiling(device, 256 if options.small else 8192)
    rows = []
    for name, (count, k) in (SMALL if options.small else CASES).items():
        rate = product_rate(name, torch.randn(2 if options.small else 32, 3, 224, 224, device=device), k)
        rows.append(run(name, count, k, device) | {"product / matmul ceiling": round(rate / ceiling, 3)})
    table = pd.DataFrame(rows)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{hardware}, float32 matmul precision {options.precision}, ceiling {ceiling / 1e12:.1f} TFLOP/s")
    print(table.to_string(index=False))
    options.out.mkdir(parents=True, exist_ok=True)
    record = snows.provenance(device=hardware, precision=options.precision, ceiling=ceiling, rows=rows)
    (options.out / f"{hardware.replace(' ', '-').lower()}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
