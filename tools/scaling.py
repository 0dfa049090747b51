"""How much faster several processes prune than one: `python tools/scaling.py` prints seconds and their ratio.

Every process has one thread, so that the ratio is what processes add and nothing else; the machine needs as many free
cores as there are processes. Loading, and a first small run that imports what is needed, are not counted. The ratio of
processor seconds, of the process that took most, is what is to be had on a machine whose cores are busy otherwise: it
has what every process does for itself, but not the waiting.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is loaded, here and in every process

import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing

import snows_core as snows
from snows_core import zoo

WARM = 16  # images of the run that is not counted


def measure(rank: int, world: int, asked: argparse.Namespace, folder: str) -> None:
    """Prune in one of ``world`` processes, and leave the seconds in a file."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    chosen = zoo.experiment(asked.model)
    model, data = chosen.load_model(), zoo.load_data(chosen.data)
    images = data.train.sample(asked.images, 0)[0]
    options: dict[str, Any] = {"pattern": asked.pattern, "k": asked.k, "effort": asked.effort, "progress": False}
    options["exclude"] = list(chosen.exclude)
    warnings.simplefilter("ignore")
    snows.prune(model, images[:WARM], **options)
    start, used = time.perf_counter(), time.process_time()
    result = snows.prune(model, images, **options)
    found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    found["loss"] = float(result.report["loss_end"].sum())
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if world > 1:
        dist.destroy_process_group()


def row(world: int, asked: argparse.Namespace) -> dict[str, float]:
    """Return the least seconds of several runs in so many processes, and the loss that they end at."""
    runs = []
    for _ in range(asked.repeats):
        with tempfile.TemporaryDirectory(prefix="snows-") as folder:
            torch.multiprocessing.spawn(measure, (world, asked, folder), nprocs=world)
            texts = [Path(folder, f"{rank}.json").read_text(encoding="utf-8") for rank in range(world)]
            found = [json.loads(text) for text in texts]
            runs.append({name: max(one[name] for one in found) for name in found[0]})
    return {"processes": world, **min(runs, key=lambda run: run["seconds"])}


def main() -> None:
    """Print one row for one process, and one for several."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="digits-resnet20", help="an experiment, such as resnet20 where CIFAR-10 is")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pattern", default="2:4")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--effort", default="standard", help="quick, standard or best")
    parser.add_argument("--repeats", type=int, default=1, help="the shortest run counts")
    asked = parser.parse_args()
    found = pd.DataFrame([row(world, asked) for world in (1, asked.processes)]).set_index("processes")
    print(
        f"{asked.model}, {asked.images} images, {asked.pattern}, K = {asked.k}, effort {asked.effort}, one thread each"
    )
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, PyTorch {torch.__version__}")
    print(found.round({"seconds": 2, "cpu_seconds": 2}).to_string())
    ratios = found.iloc[0] / found.iloc[1]
    print(f"ratio: {ratios['seconds']:.2f} of seconds, {ratios['cpu_seconds']:.2f} of processor seconds")


if __name__ == "__main__":
    main()
