"""The shipped networks by method and pattern: `python tools/twins.py` writes figures/performance/twins.json.

Magnitude, layer-wise least squares (K = 0) and SNOWS with each experiment's own K, on the same masks; 2:4 and 1:4; mean
over several calibration sets. `python tools/results_table.py` then puts the table into README.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import snows_core as snows
from snows_core import zoo

NETWORKS = ("digits-resnet20", "digits-resnet50", "digits-vit-b", "digits-vit-l")
PATTERNS = ("2:4", "1:4")
MEASURES = ["accuracy", "agreement", "kl"]


def rows_of(name: str, images: int, seeds: range) -> list[dict[str, Any]]:
    """Return accuracy, agreement and KL for every pattern, method and calibration set of one network."""
    experiment = zoo.experiment(name)
    model, data = experiment.load_model(), experiment.load_data()
    test, labels = data.test.tensors()
    dense = snows.evaluate(model, test, labels).accuracy
    rows = []
    for pattern in PATTERNS:
        for seed in seeds:
            sample = data.train.sample(images, seed)[0]
            options = {"pattern": pattern, "exclude": list(experiment.exclude) or None}
            masks = snows.make_masks(model, sample, **options)
            pruned = {"magnitude": snows.apply_masks(model, masks)}
            for method, k in (("layer-wise", 0), ("SNOWS", experiment.k)):
                pruned[method] = snows.prune(
                    model, sample, k=k, seed=seed, progress=False, **options, effort="quick"
                ).model
            for method, network in pruned.items():
                found = snows.evaluate(network, test, labels, reference=model)
                rows.append(
                    {
                        "network": name,
                        "dense": dense,
                        "k": experiment.k,
                        "pattern": pattern,
                        "method": method,
                        "seed": seed,
                        **found.as_dict(),
                    }
                )
    return rows


def main() -> None:
    """Run all, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("figures/performance/twins.json"))
    options = parser.parse_args()
    seeds = range(options.seeds)
    rows = pd.DataFrame([row for name in tqdm(NETWORKS) for row in rows_of(name, options.images, seeds)])
    groups = rows.groupby(["network", "dense", "k", "pattern", "method"], sort=False)[MEASURES]
    means = groups.mean().join(groups.std().add_suffix("_std")).reset_index()
    print(means.round(3).to_string(index=False))
    record = {"images": options.images, "calibration seeds": list(seeds), "rows": means.to_dict("records")}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record | snows.provenance(device="cpu"), indent=1) + "\n")


if __name__ == "__main__":
    main()
