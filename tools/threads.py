"""How far results with another number of threads differ: `python tools/threads.py` prints a table.

Every number is computed in the same order each time on one number of threads: the same call gives the same bits.
Another number cuts sums elsewhere; what rounds otherwise there may stop a solve a step earlier, or exchange two weights
of nearly equal score. The tool prunes the digits ResNet with one and with two threads, each in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

import snows_core as snows
from snows_core import zoo
from snows_core.tables import table

NAME, IMAGES, TEST_IMAGES = "digits-resnet20", 256, 500
RUNS = {
    "2:4, K = 0": {"pattern": "2:4", "k": 0, "effort": "quick"},
    "2:4, K = 5": {"pattern": "2:4", "k": 5, "effort": "quick"},
    "1:4, default effort": {"pattern": "1:4", "k": 5},
    "0.8, default effort": {"pattern": 0.8, "k": 5},
}


def prune(threads: int, run: str, out: Path) -> None:
    """Prune with one of the runs on so many threads, and save the result."""
    torch.set_num_threads(threads)
    chosen = zoo.experiment(NAME)
    images, _, _ = chosen.load_data().train.sample(IMAGES, 0)
    snows.prune(chosen.load_model(), images, progress=False, **RUNS[run]).save(out)


def compared(run: str, one: Path, other: Path) -> dict[str, object]:
    """Return how two results of a run differ in masks, weights and outputs."""
    chosen = zoo.experiment(NAME)
    first, second = (snows.load(folder, chosen.load_model()) for folder in (one, other))
    masks = [(first.masks[name], second.masks[name]) for name in first.masks]
    weights = [(first.state[name], second.state[name]) for name in first.weight_names.values()]
    images, _, _ = chosen.load_data().test.sample(TEST_IMAGES, 0)
    with torch.no_grad():
        p, q = (result.module(images).double().log_softmax(1) for result in (first, second))
    return {
        "run": run,
        "masks": f"{sum(int((a != b).sum()) for a, b in masks)} of {sum(a.numel() for a, _ in masks):,} differ",
        "weights": max(float((a - b).norm() / a.norm()) for a, b in weights),
        "KL": float((p.exp() * (p - q)).sum(1).mean()),
        "agreement %": 100 * float((p.argmax(1) == q.argmax(1)).double().mean()),
    }


def main() -> None:
    """Print the table: largest relative difference of a layer's weights, mean KL and agreement of the outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs=2, default=(1, 2))
    parser.add_argument("--run", nargs=3, metavar=("THREADS", "RUN", "OUT"), help="what the tool calls itself with")
    asked = parser.parse_args()
    if asked.run:
        prune(int(asked.run[0]), asked.run[1], Path(asked.run[2]))
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="snows-") as folder:
        for number, run in enumerate(RUNS):
            paths = [Path(folder) / f"{number}-{threads}" for threads in asked.threads]
            for threads, path in zip(asked.threads, paths, strict=True):
                environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
                command = [sys.executable, __file__, "--run", str(threads), run, str(path)]
                subprocess.run(command, check=True, env=environment)
            rows.append(compared(run, *paths))
    print(table(pd.DataFrame(rows)))


if __name__ == "__main__":
    main()
