"""Measure SNOWS on a GPU: `python tools/gpu_benchmark.py` prints a table and writes figures/performance/<device>.json.

Random weights (time does not depend on what a network has learnt), 2:4 masks, curvature products in single precision,
TF32 and bfloat16: their rate against a matrix product of the same kind in the same run, and the loss that each ends at.
``--small`` runs tiny sizes on any device, to see that the script works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.loss.precision import tensor_cores
from snows_core.methods import LayerProblem, LayerValues
from snows_core.methods.snows import Snows
from snows_core.network.graph import Network
from snows_core.settings import Precision, get_recipe

PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
CASES = {"vit_large_patch16_224": (3000, 3), "resnet50": (3000, 30)}
SMALL = {"vit_tiny_patch16_224": (4, 1), "regnetx_002": (4, 2)}


def hardware_of(device: torch.device) -> str:
    """Return the name of a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def file_stem(hardware: str) -> str:
    """Return the beginning of a file's name for a device."""
    return hardware.replace(" ", "-").lower()


def clock(device: torch.device) -> float:
    """Return seconds, once the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def matmul_ceiling(device: torch.device, size: int, precision: Precision) -> float:
    """Return the FLOP/s of a square matrix product in the number format of the curvature products."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=kind)
    with tensor_cores() if precision == "tf32" else nullcontext():
        a @ a
        start = clock(device)
        for _ in range(10):
            a @ a
        return 10 * 2 * size**3 / (clock(device) - start)


def product_rate(name: str, images: torch.Tensor, k: int, precision: Precision) -> float:
    """Return the FLOP/s of curvature products of a layer in the middle of a network."""
    network = Network(timm.create_model(name).eval())
    network.module.to(images.device)
    layer = network.layers[len(network.layers) // 2]
    stream = ActivationCache(network, [images])
    stream.advance(network.index[layer.node])
    weight = network.weight(layer)
    mask = torch.rand_like(weight) < 0.5
    segment = network.segment(layer, k)
    recipe = get_recipe("fast", normalise=False, precision=precision)
    problem = LayerProblem(network, [segment], mask, LayerValues(stream, stream, [range(1)]), torch.Generator())
    at = problem.reconstruction(segment, Snows(recipe, k).needs.loss, 1).linearise(weight)
    with FlopCounterMode(display=False) as counter:
        at.product(weight)
    start = clock(images.device)
    for _ in range(5):
        at.product(weight)
    return 5 * counter.get_total_flops() / (clock(images.device) - start)


def run(name: str, count: int, k: int, device: torch.device, precision: Precision) -> dict[str, float | str | int]:
    """Prune one network 2:4 and return what it took."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.pretrained_cfg["input_size"][-1]
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = clock(device)
    result = snows.prune(model, images, "2:4", k=k, device=device, precision=precision, effort="quick", progress=False)
    seconds = clock(device) - start
    return {
        "network": name,
        "images": count,
        "k": k,
        "precision": precision,
        "seconds": round(seconds, 1),
        "peak GB": round(result.manifest["memory"]["peak"] / 1e9, 1),
        "image products": int(result.report["image_products"].sum()),
        "batch": result.manifest["memory"]["batch_size"],
        "mean loss at the end": float(result.report["loss_end"].mean()),
    }


def main() -> None:
    """Run all cases, print and save the table, which grows row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, any device")
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--images", type=int, help="calibration images; default: 3000, as published")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="default: all of them")
    parser.add_argument("--out", type=Path, default=Path("figures/performance"), help="folder of the results")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[dict[str, float | str | int]] = []
    ceilings: dict[str, float] = {}
    for precision in options.precision or (PRECISIONS[:2] if options.small else PRECISIONS):
        ceilings[precision] = matmul_ceiling(device, 256 if options.small else 8192, precision)
        for name, (count, k) in (SMALL if options.small else CASES).items():
            images = torch.randn(2 if options.small else 32, 3, 224, 224, device=device)
            share = product_rate(name, images, k, precision) / ceilings[precision]
            del images
            row = run(name, options.images or count, k, device, precision)
            rows.append(row | {"product / matmul ceiling": round(share, 3)})
            save(rows, ceilings, device, options.out)


def save(rows: list[dict[str, float | str | int]], ceilings: dict[str, float], device: torch.device, out: Path) -> None:
    """Print what is there so far, and write it to a file named after the device."""
    hardware = hardware_of(device)
    print(hardware, {precision: f"{rate / 1e12:.1f} TFLOP/s" for precision, rate in ceilings.items()})
    print(pd.DataFrame(rows).to_string(index=False), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    record = snows.provenance(device=hardware, ceilings=ceilings, rows=rows)
    (out / f"{file_stem(hardware)}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
