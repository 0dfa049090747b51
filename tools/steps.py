"""Every step from one mask to the best that is known, measured: `python tools/steps.py` writes figures/steps.

What is run stands in tools/steps.yaml: networks with their patterns, and steps with the options of ``snows.prune``.
Each row is one run on one calibration set. A row that is there already is not run again, so that the table can be
interrupted, and grows; ``--again`` runs all of them. Steps that did not help stay in the table. Agreement and KL are
taken on all training images that the run has not seen, accuracy on the test images. ``image_products`` are curvature
products times images, of sweeps and joint refinement; ``image_gradients`` those of the gradients of the latter. CPU
seconds are those of one thread; rows of another ``--device`` name it and have none.
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


class Bench:
    """One network with its images."""

    def __init__(self, name: str, device: str = "cpu") -> None:
        self.device = device
        self.experiment = zoo.experiment(name)
        self.model, self.data = self.experiment.load_model(), self.experiment.load_data()
        self.test, self.labels = self.data.test.tensors()

    def row(self, pattern: str, options: dict[str, Any], images: int, seed: int) -> dict[str, Any]:
        """Prune once and measure."""
        sample, _, positions = self.data.train.sample(images, seed)
        start = time.process_time()
        model, counted = self._pruned(sample, pattern, dict(options), seed)
        seconds = time.process_time() - start
        found = snows.evaluate(model, self.test, self.labels)
        unseen = snows.evaluate(model, self._unseen(positions), reference=self.model)
        return {
            "accuracy": found.accuracy,
            "agreement": unseen.agreement,
            "kl": unseen.kl,
            **counted,
            "cpu_seconds": round(seconds, 1) if self.device == "cpu" else None,
        }

    def _pruned(
        self, sample: Tensor, pattern: str, options: dict[str, Any], seed: int
    ) -> tuple[nn.Module, dict[str, int]]:
        """Return the pruned network and what was counted."""
        after = options.pop("after", None)
        fixed = {"exclude": list(self.experiment.exclude) or None, "device": self.device, "progress": False}
        if options.pop("augment", False):
            options["augment"] = snows.flip_and_shift
        result = snows.prune(self.model, sample, pattern, seed=seed, **fixed, **options)
        joint = result.manifest.get("refinement", {})
        counted = {
            "image_products": int(result.report["image_products"].sum()) + joint.get("image_products", 0),
            "image_gradients": joint.get("images", 0),
        }
        if after == "batch norms":
            return snows.reestimate_batch_norms(result.module, sample), counted
        if after == "variances":
            return snows.match_variances(result.module, self.model, sample), counted
        return result.module, counted

    def _unseen(self, used: Tensor) -> Tensor:
        images = self.data.train.tensors()[0]
        return images[~torch.isin(torch.arange(len(images)), torch.as_tensor(used))]


def runs(plan: dict[str, Any], name: str) -> Iterator[tuple[str, str, dict[str, Any], int, int]]:
    """Yield pattern, step, options, images and seed of every run of one network."""
    network = plan["networks"][name]
    for step in plan["steps"]:
        if name not in step.get("networks", plan["networks"]):
            continue
        for pattern in step.get("patterns", network["patterns"]):
            if pattern not in network["patterns"]:
                continue
            for seed in step.get("seeds", network["seeds"]):
                yield pattern, step["step"], step["options"], step.get("images", network["images"]), seed


def known(path: Path) -> list[dict[str, Any]]:
    """Return the rows that are there."""
    return pd.read_csv(path).to_dict("records") if path.is_file() else []


def is_of(row: dict[str, Any], key: dict[str, Any]) -> bool:
    """Tell whether a row is that of a run."""
    return all(row[name] == value for name, value in key.items())


def main() -> None:
    """Run what is missing, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, default=ROOT / "tools" / "steps.yaml")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--only", default="", help="steps whose name contains this")
    parser.add_argument("--pattern", default="", help="this pattern alone")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = yaml.safe_load(options.plan.read_text())
    path = OUT / f"{options.network}.csv"
    OUT.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.network, options.device)
    hardware = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
    for pattern, step, chosen, images, seed in runs(plan, options.network):
        chosen = {"k": plan["networks"][options.network]["k"], **chosen}
        if chosen.get("stage_k") == "end":
            chosen["stage_k"] = chosen["k"]
        key = dict(zip(KEY, (pattern, step, images, seed), strict=True))
        if options.pattern not in ("", pattern):
            continue
        if options.only not in step or (not options.again and any(is_of(row, key) for row in known(path))):
            continue
        provenance = snows.provenance(device=hardware)
        row = key | bench.row(pattern, chosen, images, seed)
        row |= {
            "device": hardware,
            "options": json.dumps(chosen),
            "commit": provenance["commit"],
            "torch": provenance["versions"]["torch"],
        }
        print(row, flush=True)
        rows = [other for other in known(path) if not is_of(other, key)]  # read again: two may run side by side
        pd.DataFrame([*rows, row]).to_csv(path, index=False)


if __name__ == "__main__":
    main()
