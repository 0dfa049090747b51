"""Does retraining help after pruning? `python tools/finetune.py` writes figures/finetune/resnet20.csv.

The published ResNet-20 on CIFAR-10 is pruned by magnitude, and by SNOWS, then trained for a few epochs with its masks
held (`snows.finetune`): on labels, or without them on the dense network's outputs. All training images that the run has
may be used for the training; the test images judge, and nothing was chosen by them. Needs CIFAR-10 and the network
(`SNOWS_DATA`, `TORCH_HOME`, or a download); one thread of a CPU, a minute or two a row.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import snows_core as snows
from snows_core import zoo

NETWORK, IMAGES = "resnet20", 256
STARTS: dict[str, dict[str, Any]] = {
    "magnitude": {"update": "none", "effort": "quick"},
    "SNOWS, quick": {"k": 5, "effort": "quick"},
    "SNOWS, standard": {"k": 5},
}
OUT = Path(__file__).resolve().parent.parent / "figures" / "finetune" / f"{NETWORK}.csv"


def rows_of(pattern: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """Return what one set of calibration images gives: every start, as pruned and after either kind of training."""
    experiment = zoo.experiment(NETWORK)
    dense, data = experiment.load_model(), experiment.load_data()
    calibration, _, _ = data.train.sample(IMAGES, seed)
    train, labels = data.train.tensors()
    test = data.test_tensors()
    rows = []

    def note(start: str, training: str, result: snows.PruneResult) -> None:
        found = snows.evaluate(result.module, *test, reference=dense)
        numbers = {"accuracy": found.accuracy, "agreement": found.agreement, "kl": found.kl}
        print(pattern, seed, start, training, numbers, flush=True)
        rows.append({"pattern": pattern, "seed": seed, "start": start, "training": training, **numbers})

    for start, options in STARTS.items():
        result = snows.prune(dense, calibration, pattern, exclude=experiment.exclude, progress=False, **options)
        note(start, "none", result)
        common = {"epochs": epochs, "seed": seed, "augment": snows.flip_and_shift, "progress": False}
        note(start, "labels", snows.finetune(result, train, labels, **common))
        note(start, "dense network", snows.finetune(result, train, teacher=dense, **common))
    return rows


def main() -> None:
    """Prune, train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", default=["1:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = [row for pattern in asked.patterns for seed in asked.seeds for row in rows_of(pattern, seed, asked.epochs)]
    record = {
        "epochs": asked.epochs,
        "images": IMAGES,
        "torch": torch.__version__,
        "commit": snows.provenance()["commit"],
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(found).assign(**record).to_csv(asked.out, index=False)


if __name__ == "__main__":
    main()
