"""How cost grows with the size of an image: `python tools/image_size.py` writes figures/performance/image-size.json.

EfficientNet-Lite0 with its ImageNet weights, 2:4, K = 5, one sweep on few images, which are resized; every size in a
process of its own, so that its memory is its own. One thread of the CPU. A size that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import snows_core as snows
from snows_core import zoo
from snows_core.devices import peak_memory

NETWORK, PATTERN, K = "efficientnet-lite0", "2:4", 5
SIZES = (96, 128, 160, 192, 224)
OUT = Path(__file__).resolve().parent.parent / "figures" / "performance" / "image-size.json"


def measured(size: int, images: int) -> dict[str, Any]:
    """Prune once at a size, in this process, and return what it cost."""
    torch.set_num_threads(1)
    experiment = zoo.experiment(NETWORK)
    model, data = experiment.load_model(), experiment.load_data()
    sample = F.interpolate(data.train.sample(images, 0)[0], size=(size, size), mode="bicubic", antialias=True)
    cpu = torch.device("cpu")
    before, start = peak_memory(cpu), time.process_time()
    result = snows.prune(model, sample, PATTERN, k=K, effort="quick", progress=False)
    seconds = time.process_time() - start
    pruned = result.report[result.report["status"] == "pruned"]
    return {
        "size": size,
        "cpu_seconds": round(seconds, 1),
        "gb_added": round((peak_memory(cpu) - before) / 1e9, 2),
        "products": int(pruned["products"].sum()),
        "image_products": int(pruned["image_products"].sum()),
    }


def main() -> None:
    """Run the sizes that are missing, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--size", type=int, help="measure this size alone, and print it")
    options = parser.parse_args()
    if options.size:
        print(json.dumps(measured(options.size, options.images)))
        return
    record = json.loads(OUT.read_text()) if OUT.is_file() else {"rows": []}
    for size in SIZES:
        if size in [row["size"] for row in record["rows"]]:
            continue
        words = [sys.executable, __file__, "--size", str(size), "--images", str(options.images)]
        row = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(row, flush=True)
        record["rows"].append(row)
        record |= {"network": NETWORK, "pattern": PATTERN, "k": K, "images": options.images}
        OUT.write_text(json.dumps(record | snows.provenance(device="cpu"), indent=1) + "\n")


if __name__ == "__main__":
    main()
