"""Write README's tables from the records in figures/; ``--check`` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "figures"
METRICS = FIGURES / "03_cifar_resnet20" / "cifar" / "metrics.json"
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


def twins(record: dict) -> str:
    """Return the Markdown table of the shipped networks: accuracy and agreement by pattern and method."""
    cells = {(row["network"], row["pattern"], row["method"]): row for row in record["rows"]}
    lines = [
        "| network (dense accuracy, K) | pattern | " + " | ".join(METHODS) + " |",
        "|---" * (2 + len(METHODS)) + "|",
    ]
    for network, pattern in dict.fromkeys(key[:2] for key in cells):
        rows = [cells[network, pattern, method] for method in METHODS]
        values = " | ".join(f"{row['accuracy']:.1f}, {row['agreement']:.1f}" for row in rows)
        lines.append(f"| {network} ({rows[0]['dense']:.1f}, {rows[0]['k']}) | {pattern} | {values} |")
    return "\n".join(lines) + "\n"


def recipes(records: list[dict]) -> str:
    """Return the Markdown table of recipe "fast" against "paper"."""
    lines = [
        "| images | layers | agreement (%): paper, fast | image products, ratio | CPU seconds: paper, fast | ratio |",
        "|---" * 6 + "|",
    ]
    for record in sorted(records, key=lambda record: record["images"]):
        fast, paper, ratio = record["runs"]["fast"], record["runs"]["paper"], record["paper / fast"]
        layers = record["layers"] if record["layers"] == "all" else f"{len(record['layers'])}, one a stage"
        lines.append(
            f"| {record['images']:,} | {layers} | {paper['agreement']:.1f}, {fast['agreement']:.1f} "
            f"| {ratio['image_products']:.1f} | {paper['cpu_seconds']:.0f}, {fast['cpu_seconds']:.0f} "
            f"| {ratio['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def tables() -> dict[str, str]:
    """Return each table by the name of its markers."""
    performance = FIGURES / "performance"
    pairs = [json.loads(path.read_text()) for path in sorted(performance.glob("*-fast-against-paper.json"))]
    return {
        "results": results(json.loads(METRICS.read_text())),
        "twins": twins(json.loads((performance / "twins.json").read_text())),
        "recipes": recipes(pairs),
    }


def updated(readme: str, found: dict[str, str]) -> str:
    """Return the README with every table between its markers."""
    for name, table in found.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = readme.split(start)
        readme = before + start + table + end + rest.split(end)[1]
    return readme


def main() -> int:
    """Update README.md, or say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a table is stale")
    options = parser.parse_args()
    readme = (ROOT / "README.md").read_text()
    fresh = updated(readme, tables())
    if options.check:
        return int(fresh != readme)
    (ROOT / "README.md").write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
