"""Recipe "fast" against "paper" on one experiment, in one process: `python tools/compare_recipes.py --images 128`.

All prune the same network with the same masks and images on one thread. What each reached on the test images and on
training images that it has not seen, its image products, CPU seconds and peak memory are printed and written with
provenance to figures/performance/. "paper" has CG capped at 20, and is run at the K of "fast" and at the published one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import snows_core as snows
from snows_core import zoo
from snows_core.devices import peak_memory

RUNS: dict[str, dict[str, Any]] = {  # the lighter ones first, as peak memory never falls
    "fast, K = 5": {"k": 5, "recipe": "fast"},
    "paper, K = 5": {"k": 5, "recipe": "paper", "cg_iterations": 20},
    "paper, K = 20": {"k": 20, "recipe": "paper", "cg_iterations": 20},
}
OTHERS = 4000  # training images that no run has seen


def measure(
    experiment: Any, model: torch.nn.Module, data: Any, count: int, pattern: str, seed: int, layers: list[str]
) -> dict[str, Any]:
    """Prune by every recipe; return what each took and reached."""
    images, _, positions = data.train.sample(count, seed)
    test, labels = data.test.tensors()
    unseen = torch.arange(len(data.train))
    others, _ = data.train.tensors(indices=unseen[~torch.isin(unseen, positions)][:OTHERS])
    found = {}
    for name, options in RUNS.items():
        start = time.process_time()
        result = snows.prune(
            model,
            images,
            pattern,
            layers=layers or None,
            exclude=list(experiment.exclude),
            seed=seed,
            progress=False,
            **options,
            effort="quick",
        )
        seconds = time.process_time() - start
        metrics = snows.evaluate(result.model, test, labels, reference=model)
        unseen_metrics = snows.evaluate(result.model, others, reference=model)
        found[name] = {
            **options,
            "accuracy": metrics.accuracy,
            "agreement": metrics.agreement,
            "kl": metrics.kl,
            "others": unseen_metrics.as_dict(),
            "products": int(result.report["products"].sum()),
            "image_products": int(result.report["image_products"].sum()),
            "cpu_seconds": round(seconds, 1),
            "peak_bytes": peak_memory(torch.device("cpu")),
        }
    return found


def main() -> None:
    """Run, print and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="resnet20")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--pattern", default="1:4")
    parser.add_argument("--layers", nargs="*", default=[], help="only these, where the whole would take too long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("figures/performance"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    experiment = zoo.experiment(options.experiment)
    model, data = experiment.load_model(), experiment.load_data()
    runs = measure(experiment, model, data, options.images, options.pattern, options.seed, options.layers)
    record = {
        "experiment": options.experiment,
        "images": options.images,
        "pattern": options.pattern,
        "layers": options.layers or "all",
        "runs": runs,
        **snows.provenance(seed=options.seed, device="cpu"),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.experiment}-{options.images}-fast-against-paper.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
