"""Does retraining help after pruning? `python tools/finetune.py` writes figures/finetune/resnet20.csv.

The published ResNet-20 on CIFAR-10 is pruned by magnitude, and by SNOWS, then trained for a few epochs with its masks
held (`snows.finetune`): on labels, or without them on the dense network's outputs. All training images that the run has
may be used for the training; the test images judge, and nothing was chosen by them. Needs CIFAR-10 and the network
(`SNOWS_DATA`, `TORCH_HOME`, or a download); one thread of a CPU, a minute or two a row.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import snows_core as snows
from snows_core import zoo

NETWORK, IMAGES = "resnet20", 256
NORMS = ("frozen", "train")  # statistics of batch norms
STARTS: dict[str, dict[str, Any]] = {
    "magnitude": {"update": "none", "effort": "quick"},
    "SNOWS, quick": {"k": 5, "effort": "quick"},
    "SNOWS, standard": {"k": 5},
}
OUT = Path(__file__).resolve().parent.parent / "figures" / "finetune" / f"{NETWORK}.csv"


KEYS = ["pattern", "seed", "start", "training", "batch_norm", "lr"]


class Record:
    """The table on disk: rows that are there are not made again, and each new one is written at once."""

    def __init__(self, path: Path, common: dict[str, Any]) -> None:
        self.path, self.common = path, common
        self.rows = pd.read_csv(path, keep_default_na=False).to_dict("records") if path.is_file() else []
        self.there = {tuple(row[key] for key in KEYS) for row in self.rows}

    def lacks(self, *key: Any) -> bool:
        """Tell whether the row of a key (pattern, seed, start, training, batch_norm, lr) is not there."""
        return key not in self.there

    def note(self, key: tuple[Any, ...], found: snows.Metrics) -> None:
        """Write a row."""
        numbers = {"accuracy": found.accuracy, "agreement": found.agreement, "kl": found.kl}
        print(*key, numbers, flush=True)
        self.rows.append({**dict(zip(KEYS, key, strict=True)), **numbers, **self.common})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(self.rows).sort_values(KEYS[:2], kind="stable").to_csv(self.path, index=False)


def measure(record: Record, pattern: str, seed: int, epochs: int, rates: list[float]) -> None:
    """Prune with one set of calibration images and train: every start, as pruned and after each kind of training."""
    experiment = zoo.experiment(NETWORK)
    dense, data = experiment.load_model(), experiment.load_data()
    calibration, _, _ = data.train.sample(IMAGES, seed)
    train, labels = data.train.tensors()
    lessons = {"labels": {"labels": labels}, "dense network": {"teacher": dense}}
    for start, options in STARTS.items():
        keys = [(pattern, seed, start, "none", "", 0.0)]
        keys += [(pattern, seed, start, *rest) for rest in itertools.product(lessons, NORMS, rates)]
        if not any(record.lacks(*key) for key in keys):
            continue
        result = snows.prune(dense, calibration, pattern, exclude=experiment.exclude, progress=False, **options)
        for key in filter(lambda key: record.lacks(*key), keys):
            _, _, _, lesson, norm, rate = key
            trained = result
            if lesson != "none":
                common = {"epochs": epochs, "lr": rate, "seed": seed, "batch_norm": norm}
                trained = snows.finetune(
                    result, train, **lessons[lesson], **common, augment=snows.flip_and_shift, progress=False
                )
            record.note(key, snows.evaluate(trained.module, *data.test_tensors(), reference=dense))


def main() -> None:
    """Prune, train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", default=["1:4"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.01])
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"torch": torch.__version__, "commit": snows.provenance()["commit"]}
    record = Record(asked.out, {"epochs": asked.epochs, "images": IMAGES, **versions})
    for pattern in asked.patterns:
        for seed in asked.seeds:
            measure(record, pattern, seed, asked.epochs, asked.rates)


if __name__ == "__main__":
    main()
