"""Recipe "fast" against "paper" on one experiment, in one process: `python tools/compare_recipes.py --images 128`.

Both prune the same network with the same masks and images on one thread; ratios of image products, CPU seconds and
added peak memory are printed and written with provenance to figures/performance/. "paper" has CG capped at 20.
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
from snows_core.memory import peak_memory

RUNS: dict[str, dict[str, Any]] = {
    "fast": {"k": 5, "recipe": "fast"},
    "paper": {"k": 20, "recipe": "paper", "cg_iterations": 20},
}


def measure(
    experiment: Any, model: torch.nn.Module, data: Any, count: int, pattern: str, seed: int, layers: list[str]
) -> dict[str, Any]:
    """Prune by both recipes, the lighter one first, as peak memory never falls; return what each took and reached."""
    images, _, _ = data.train.sample(count, seed)
    test, labels = data.test.tensors()
    found = {}
    for name, options in RUNS.items():
        start = time.process_time()
        result = snows.prune(
            model, images, pattern, layers=layers or None, exclude=list(experiment.exclude), seed=seed, **options
        )
        seconds = time.process_time() - start
        metrics = snows.evaluate(result.model, test, labels, reference=model)
        found[name] = {
            **options,
            "accuracy": metrics.accuracy,
            "agreement": metrics.agreement,
            "kl": metrics.kl,
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
    ratios = {key: runs["paper"][key] / runs["fast"][key] for key in ("image_products", "cpu_seconds", "peak_bytes")}
    record = {
        "experiment": options.experiment, "images": options.images, "pattern": options.pattern,
        "layers": options.layers or "all",
        "runs": runs, "paper / fast": ratios, **snows.provenance(seed=options.seed, device="cpu"),
    }  # fmt: skip
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.experiment}-{options.images}-fast-against-paper.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({"runs": runs, "paper / fast": ratios}, indent=1))


if __name__ == "__main__":
    main()
