"""Every step from one mask to the best that is known, measured: `python tools/steps.py` writes figures/steps.

What is run stands in tools/steps.yaml: networks with their patterns, and steps with the options of ``snows.prune``.
Each row is one run on one calibration set. A row that is there already is not run again, so that the table can be
interrupted, and grows; ``--again`` runs all of them. Steps that did not help stay in the table. Agreement and KL are
taken on training images that no run has seen, accuracy on the test images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from torch import Tensor, nn

import snows_core as snows
from snows_core import zoo

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "figures" / "steps"
KEY = ["pattern", "step", "images", "seed"]
UNSEEN = 4000  # at most so many other training images


class Bench:
    """One network with its images."""

    def __init__(self, name: str) -> None:
        self.experiment = zoo.experiment(name)
        self.model, self.data = self.experiment.load_model(), self.experiment.load_data()
        self.test, self.labels = self.data.test.tensors()

    def row(self, pattern: str, options: dict[str, Any], images: int, seed: int) -> dict[str, Any]:
        """Prune once and measure."""
        sample, _, positions = self.data.train.sample(images, seed)
        start = time.process_time()
        model, report = self._pruned(sample, pattern, dict(options), seed)
        seconds = time.process_time() - start
        found = snows.evaluate(model, self.test, self.labels)
        unseen = snows.evaluate(model, self._unseen(positions), reference=self.model)
        return {
            "accuracy": found.accuracy,
            "agreement": unseen.agreement,
            "kl": unseen.kl,
            "image_products": int(report["image_products"].sum()),
            "cpu_seconds": round(seconds, 1),
        }

    def _pruned(
        self, sample: Tensor, pattern: str, options: dict[str, Any], seed: int
    ) -> tuple[nn.Module, pd.DataFrame]:
        exclude = list(self.experiment.exclude) or None
        if options.pop("augment", False):
            options["augment"] = snows.flip_and_shift
        result = snows.prune(self.model, sample, pattern, exclude=exclude, seed=seed, progress=False, **options)
        return result.module, result.report

    def _unseen(self, used: Tensor) -> Tensor:
        images = self.data.train.tensors()[0]
        return images[~torch.isin(torch.arange(len(images)), torch.as_tensor(used))][:UNSEEN]


def runs(plan: dict[str, Any], name: str) -> Iterator[tuple[str, str, dict[str, Any], int, int]]:
    """Yield pattern, step, options, images and seed of every run of one network."""
    network = plan["networks"][name]
    for step in plan["steps"]:
        for pattern in step.get("patterns", network["patterns"]):
            if pattern not in network["patterns"]:
                continue
            for seed in step.get("seeds", network["seeds"]):
                yield pattern, step["step"], step["options"], step.get("images", network["images"]), seed


def main() -> None:
    """Run what is missing, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, default=ROOT / "tools" / "steps.yaml")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--only", default="", help="steps whose name contains this")
    parser.add_argument("--again", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(options.plan.read_text())
    path = OUT / f"{options.network}.csv"
    OUT.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    bench = Bench(options.network)
    for pattern, step, chosen, images, seed in runs(plan, options.network):
        key = dict(zip(KEY, (pattern, step, images, seed), strict=True))
        same = [row for row in rows if all(row[name] == value for name, value in key.items())]
        if options.only not in step or (same and not options.again):
            continue
        provenance = snows.provenance(device="cpu")
        row = key | bench.row(pattern, chosen, images, seed)
        row |= {"options": json.dumps(chosen), "commit": provenance["commit"], "torch": provenance["versions"]["torch"]}
        print(row, flush=True)
        rows = [other for other in rows if other not in same] + [row]
        pd.DataFrame(rows).to_csv(path, index=False)


if __name__ == "__main__":
    main()
