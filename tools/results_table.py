"""Write README's table of results from figures/03_cifar_resnet20/cifar/metrics.json; ``--check`` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
METRICS = ROOT / "figures" / "03_cifar_resnet20" / "cifar" / "metrics.json"
START, END = "<!-- results -->\n", "<!-- /results -->"
METHODS = ("magnitude", "layer-wise", "SNOWS")


def results(record: dict) -> str:
    """Return the Markdown table of accuracy and agreement by pattern and method."""
    cells = {(row["pattern"], row["method"]): row for row in record["tables"]["patterns"]}
    patterns = list(dict.fromkeys(pattern for pattern, _ in cells))
    lines = [
        "| pattern | " + " | ".join(f"{method}: accuracy, agreement (%)" for method in METHODS) + " |",
        "|---" * (1 + len(METHODS)) + "|",
    ]
    for pattern in patterns:
        rows = [cells[pattern, method] for method in METHODS]
        values = " | ".join(f"{row['accuracy']:.1f}, {row['agreement']:.1f}" for row in rows)
        lines.append(f"| {pattern} | {values} |")
    return "\n".join(lines) + "\n"


def updated(readme: str, table: str) -> str:
    """Return the README with the table between its markers."""
    before, rest = readme.split(START)
    return before + START + table + END + rest.split(END)[1]


def main() -> int:
    """Update README.md, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the table is stale")
    options = parser.parse_args()
    readme = (ROOT / "README.md").read_text()
    fresh = updated(readme, results(json.loads(METRICS.read_text())))
    if options.check:
        return int(fresh != readme)
    (ROOT / "README.md").write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
