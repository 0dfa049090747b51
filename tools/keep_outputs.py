"""Take the outputs of an executed notebook over into the committed one, small enough to read on any site.

    snows reproduce 03
    python tools/keep_outputs.py runs/03_cifar_resnet20-digits.ipynb notebooks/03_cifar_resnet20.ipynb

Code and text stay those of the committed notebook. Dropped are widget views (their state is not kept, so they would
show nothing), timings and other metadata of the run. Pictures become PNGs of 64 colours, or up to 256 for colour maps,
about a third of the size; animated ones stay as they are, and so do the files in figures/. The executed notebook must
come from the committed one as it is now.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageStat

LIMIT = 500_000  # bytes; larger notebooks are slow to show on the web
COLOURS = (64, 128, 256)  # as few as will do
BANDED = 0.2  # mean error of a colour, of 255, from which on a map of colours shows bands
WIDGET = "application/vnd.jupyter.widget-view+json"
INJECTED = "injected-parameters"


def small_png(data: str) -> str:
    """Return a base64 PNG with few colours, or the same where that is no smaller or the picture moves."""
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    if getattr(image, "is_animated", False):
        return data
    image = image.convert("RGB")
    for colours in COLOURS:
        # Refined by k-means: the areas of colour maps would be banded otherwise.
        few = image.quantize(colours, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
        error = ImageChops.difference(image, few.convert("RGB"))
        if max(ImageStat.Stat(error).mean) < BANDED:
            break
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    small = base64.b64encode(buffer.getvalue()).decode()
    return small if len(small) < len(data) else data


def kept(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a cell's outputs without widget views and with small pictures."""
    result = []
    for output in outputs:
        data = output.get("data", {})
        if WIDGET in data:
            continue
        if "image/png" in data:
            data["image/png"] = small_png(data["image/png"])
        output.get("metadata", {}).clear()
        result.append(output)
    return result


def merge(executed: dict[str, Any], committed: dict[str, Any]) -> dict[str, Any]:
    """Return the committed notebook with the outputs of the executed one.

    Raises:
        SystemExit: when their code cells differ, a cell was not run, or one ended with an error.
    """
    ran = [
        cell
        for cell in executed["cells"]
        if cell["cell_type"] == "code" and INJECTED not in cell["metadata"].get("tags", [])
    ]
    own = [cell for cell in committed["cells"] if cell["cell_type"] == "code"]
    if ["".join(cell["source"]) for cell in ran] != ["".join(cell["source"]) for cell in own]:
        raise SystemExit("error: the code cells differ; run the committed notebook again: snows reproduce NN")
    for number, (source, target) in enumerate(zip(ran, own, strict=True), start=1):
        outputs = source["outputs"]
        if source["execution_count"] is None or any(output["output_type"] == "error" for output in outputs):
            raise SystemExit(f"error: code cell {number} was not run to its end")
        target["outputs"], target["execution_count"] = kept(outputs), number
    return committed


def main() -> int:
    """Read the options and do it; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("executed", type=Path, help="as papermill or `snows reproduce` wrote it")
    parser.add_argument("committed", type=Path, help="the notebook to write")
    options = parser.parse_args()
    executed, committed = (
        json.loads(path.read_text(encoding="utf-8")) for path in (options.executed, options.committed)
    )
    text = json.dumps(merge(executed, committed), indent=1, ensure_ascii=False) + "\n"
    if len(text.encode()) > LIMIT:
        print(f"error: {len(text.encode()):,} bytes; expected at most {LIMIT:,}: smaller figures", file=sys.stderr)
        return 1
    options.committed.write_text(text, encoding="utf-8")
    print(f"{options.committed.name}: {len(text.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
