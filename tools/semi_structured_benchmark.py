"""Is 2:4 faster than dense here? `python tools/semi_structured_benchmark.py --model vit_base_patch16_224` measures it.

A network with 2:4 weights runs on PyTorch's sparse kernels (`snows.to_semi_structured`) and, with the same weights as
dense ones, on its dense kernels; both in half precision, channels last, compiled by ``torch.compile``. Each shape of
layer and the whole network are timed for several batch sizes: medians of rounds that alternate between the two, after a
warm-up. The table names slow-downs as well as gains, and goes to figures/performance/semi-structured-<GPU>.csv.

``--model`` takes a network of timm with random weights, pruned by magnitude (time does not depend on what it has
learnt); ``--folder`` what `snows prune` wrote. ``--dry-run`` goes the whole way on any machine, with a small network
and a stand-in for the sparse kernels: its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import timm
import torch
from gpu_benchmark import file_stem, hardware_of
from torch import Tensor, nn
from torch.utils import benchmark

import snows_core as snows
from snows_core.errors import SnowsError, reason_of
from snows_core.export.kernels.semi_structured import Converted, convert
from snows_core.export.kernels.sparse_kernels import Kernel, sparse_device

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
ROUNDS = 3  # of dense and sparse in turn, so that a clock that changes meets both
SAME = 0.03  # ratios within three percent of one are no difference
Run = Callable[[Tensor], Any]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_base_patch16_224", help="a network of timm; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="or what `snows prune` wrote with a 2:4 pattern")
    parser.add_argument("--batch", type=int, action="append", help="may be repeated; default: 1, 8, 64, 256")
    parser.add_argument("--dtype", choices=DTYPES, default="float16", help="default: %(default)s")
    parser.add_argument("--backend", choices=("cusparselt", "cutlass"), help="default: the first that works, by layer")
    parser.add_argument("--convolutions", action="store_true", help="rewrite 1x1 convolutions as linear layers")
    parser.add_argument("--mode", default="default", help="of torch.compile, for both; for instance max-autotune")
    parser.add_argument("--device", help="a CUDA device; default: PyTorch's current one")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each timing; default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("figures/performance"), help="folder of the table")
    parser.add_argument("--dry-run", action="store_true", help="small, on the CPU, without sparse kernels")
    options = parser.parse_args(arguments)
    if options.dry_run:
        options.model, options.seconds, options.batch = "test_vit", 0.001, options.batch or [1, 2]
    options.batch = options.batch or [1, 8, 64, 256]
    return options


def network_of(options: argparse.Namespace) -> tuple[str, nn.Module, tuple[int, int, int]]:
    """Return name, 2:4 network and shape of its images (C, H, W)."""
    if options.folder is not None:
        from snows_core.cli.source import source_of
        from snows_core.zoo import experiment

        source = source_of(options.folder)
        chosen = experiment(source.model)
        empty = chosen.load_model(source.weights, pretrained=False, num_classes=source.num_classes)
        return source.model, snows.load(options.folder, empty).module.eval(), chosen.image_shape
    model = timm.create_model(options.model).eval()
    shape = timm.data.resolve_model_data_config(model)["input_size"]
    masks = snows.make_masks(model, torch.randn(2, *shape), "2:4")
    return options.model, snows.apply_masks(model, masks), shape


def converted_of(model: nn.Module, images: Tensor, device: torch.device, options: argparse.Namespace) -> Converted:
    """Return the network on sparse kernels, or with copies of its weights in a dry run."""
    if options.dry_run:
        stand_in = [Kernel("stand-in", torch.clone, (1, 1))]
        return convert(model, images, device, torch.float32, options.convolutions, stand_in)
    return snows.to_semi_structured(
        model,
        images,
        dtype=DTYPES[options.dtype],
        convolutions=options.convolutions,
        backend=options.backend,
        device=device,
    )


def compiled(module: nn.Module, x: Tensor, options: argparse.Namespace) -> tuple[Run, str]:
    """Return a compiled module that has run once, and how it runs; as it is where it cannot be compiled."""
    how = {"backend": "eager"} if options.dry_run else {"mode": options.mode}
    try:
        run = torch.compile(module, dynamic=False, **how)
        run(x)
    except Exception as error:  # a compiler of any version may not know what it is given
        print(f"not compiled, runs as it is: {type(module).__name__} ({reason_of(error)})", file=sys.stderr)
        module(x)
        return module, "eager"
    return run, "compiled"


def medians(dense: Run, sparse: Run, x: Tensor, seconds: float) -> tuple[float, float]:
    """Return milliseconds of both from rounds that alternate; ``Timer`` waits for the GPU before it reads the clock."""
    taken: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(ROUNDS):
        for name, run in (("dense", dense), ("sparse", sparse)):
            timer = benchmark.Timer("run(x)", globals={"run": run, "x": x}, num_threads=torch.get_num_threads())
            taken[name].append(1e3 * timer.blocked_autorange(min_run_time=seconds).median)
    return statistics.median(taken["dense"]), statistics.median(taken["sparse"])


def compared(dense: nn.Module, sparse: nn.Module, x: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Return what one module takes with dense and with sparse kernels."""
    torch.compiler.reset()  # each is compiled for its own shape, and none counts as one compiled too often
    (run_dense, how_dense), (run_sparse, how_sparse) = (compiled(module, x, options) for module in (dense, sparse))
    before, after = medians(run_dense, run_sparse, x, options.seconds)
    ratio = before / after
    verdict = "faster" if ratio > 1 + SAME else "slower" if ratio < 1 - SAME else "the same"
    return {
        "dense ms": round(before, 4),
        "2:4 ms": round(after, 4),
        "ratio": round(ratio, 3),
        "2:4 is": verdict,
        "run": how_sparse if how_sparse == how_dense else f"dense {how_dense}, 2:4 {how_sparse}",
    }


def by_input(model: nn.Module, names: Sequence[str], x: Tensor) -> dict[tuple[int, ...], tuple[Tensor, list[str]]]:
    """Return for each shape of what these modules read the values of the first one, and the names of all."""
    found: dict[tuple[int, ...], tuple[Tensor, list[str]]] = {}

    def noting(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            shape = tuple(given[0].shape)
            if shape not in found:
                found[shape] = given[0].clone(), []
            found[shape][1].append(name)

        return note

    handles = [model.get_submodule(name).register_forward_pre_hook(noting(name)) for name in names]
    model(x)
    for handle in handles:
        handle.remove()
    return found


def layer_rows(dense: nn.Module, converted: Converted, x: Tensor, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each shape of converted layers, for one batch of images."""
    done = converted.table[converted.table["converted"]]
    rows = []
    for (shape, kind, backend), group in done.groupby(["shape", "kind", "backend"], sort=False):
        for size, (value, names) in by_input(dense, group["layer"].tolist(), x).items():
            pair = (network.get_submodule(names[0]) for network in (dense, converted.model))
            what = {"what": kind, "name": names[0], "layers": len(names), "weight": shape, "backend": backend}
            rows.append(what | {"input": "x".join(map(str, size))} | compared(*pair, value, options))
    return rows


def driver() -> str:
    """Return the version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def machine(device: torch.device, converted: Converted, options: argparse.Namespace) -> dict[str, str]:
    """Return what the numbers depend on, for each row of the table."""
    version = torch.backends.cusparselt.version() if torch.backends.cusparselt.is_available() else None
    return {
        "gpu": hardware_of(device),
        "driver": driver() if device.type == "cuda" else "none",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "cusparselt": str(version),
        "dtype": str(converted.dtype).removeprefix("torch."),
        "mode": "eager (dry run)" if options.dry_run else options.mode,
    }


def markdown(frame: pd.DataFrame) -> str:
    """Return a table in Markdown."""
    lines = [frame.columns, ["---"] * len(frame.columns), *frame.astype(str).to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@torch.no_grad()
def measured(options: argparse.Namespace) -> Path:
    """Convert a network, time it, print what was found, and return the file of the table, which grows row by row."""
    device = torch.device("cpu") if options.dry_run else sparse_device(options.device)
    torch.manual_seed(0)
    name, model, shape = network_of(options)
    model = model.to(memory_format=torch.channels_last)
    converted = converted_of(model, torch.randn(8, *shape), device, options)
    dense = copy.deepcopy(model).to(device, converted.dtype)
    where = machine(device, converted, options)
    print(f"{name}: {converted}\n{', '.join(f'{key} {value}' for key, value in where.items())}\n")
    for reason, group in converted.table[~converted.table["converted"]].groupby("reason", sort=False):
        print(f"dense: {reason}: {', '.join(group['layer'])}")
    path = options.out / f"semi-structured-{file_stem(where['gpu'])}.csv"
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    whole = {"what": "network", "name": name, "layers": int(converted.table["converted"].sum())}
    for batch in options.batch:
        x = torch.randn(batch, *shape).to(device, converted.dtype, memory_format=torch.channels_last)
        what = whole | {"weight": "", "backend": "", "input": "x".join(map(str, x.shape))}
        try:
            found = layer_rows(dense, converted, x, options)
            found.append(what | compared(dense, converted.model, x, options))
        except torch.OutOfMemoryError:
            print(f"\nbatch {batch} does not fit into the memory of the GPU")
            continue
        rows += [{"batch": batch} | row | where for row in found]
        pd.DataFrame(rows).to_csv(path, index=False)
        print(f"\nbatch {batch}\n\n{markdown(pd.DataFrame(found))}", flush=True)
    words = [row["2:4 is"] for row in rows]
    print("\n2:4 is " + ", ".join(f"{word} in {words.count(word)} of {len(words)} rows" for word in sorted(set(words))))
    print(f"saved to {path}")
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or say in one sentence why that is not possible, and end with the code 1."""
    try:
        measured(parsed(arguments))
    except SnowsError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
