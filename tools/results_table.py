"""Write the tables of README.md and figures/steps/README.md from the records in figures/; ``--check`` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pandas as pd

from snows_core.book.records.real_networks import read_records, recorded_in
from snows_core.book.records.recorded_grids import (
    STAGED,
    UPDATES,
    by_update,
    count_improved,
    published_accuracy,
    read_grids,
)
from snows_core.book.records.recorded_plot import shown_pattern

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "figures"
METRICS = FIGURES / "03_cifar_resnet20" / "cifar" / "metrics.json"
MEASURED = ["accuracy", "agreement", "kl", "image_products", "cpu_seconds"]
STEPS = FIGURES / "steps" / "README.md"
STEPS_HEAD = """# Every step from one mask to the best that is known

Written by `python tools/results_table.py` from the rows that `python tools/steps.py` measures: the CSV files beside
this one hold every run with its options, commit and version of PyTorch, `tools/steps.yaml` says what is run. Means over
calibration sets; accuracy on the test images, agreement with the dense network and KL on all training images that the
run has not seen; products and gradients times images; seconds of one CPU thread, beside other work. Steps that did not
help stay.
"""
METHODS = ("magnitude", "layer-wise", "SNOWS")
KINDS = ("accuracy", "agreement")
EFFORTS = ("quick", "standard", "best")
REAL = (("accuracy", 1), ("agreement", 1), ("kl", 3), ("cosine", 3), ("cka", 3), ("neighbours", 1))  # and digits
GRIDS = ("nm", "global", "uniform", STAGED)
SOLVERS = "solvers"
REAL_INTERVAL = {"04_imagenet_resnet50": 0, "05_vit_l": 5}  # which of these the interval belongs to


def results(record: dict) -> str:
    """Return the Markdown table of accuracy and agreement by pattern and method."""
    cells = {(row["pattern"], row["method"]): row for row in record["tables"]["patterns"]}
    patterns = list(dict.fromkeys(pattern for pattern, _ in cells))
    lines = [
        "| pattern | " + " | ".join(f"{method}: {kind} (%)" for kind in KINDS for method in METHODS) + " |",
        "|---" * (1 + len(KINDS) * len(METHODS)) + "|",
    ]
    for pattern in patterns:
        values = " | ".join(f"{cells[pattern, method][kind]:.1f}" for kind in KINDS for method in METHODS)
        lines.append(f"| {pattern} | {values} |")
    return "\n".join(lines) + "\n"


def twins(record: dict) -> str:
    """Return the Markdown table of the shipped networks: accuracy and agreement by pattern and method."""
    cells = {(row["network"], row["pattern"], row["method"]): row for row in record["rows"]}
    heads = [f"{method}: {kind} (%)" for kind in KINDS for method in METHODS]
    lines = [
        f"| network | dense accuracy (%) | K | pattern | {' | '.join(heads)} |",
        "|---" * (4 + len(heads)) + "|",
    ]
    for network, pattern in dict.fromkeys(key[:2] for key in cells):
        rows = [cells[network, pattern, method] for method in METHODS]
        values = " | ".join(f"{row[kind]:.1f}" for kind in KINDS for row in rows)
        lines.append(f"| {network} | {rows[0]['dense']:.1f} | {rows[0]['k']} | {pattern} | {values} |")
    return "\n".join(lines) + "\n"


def recipes(records: list[dict]) -> str:
    """Return the Markdown table of recipe "fast" against "paper"."""
    lines = [
        "| images | recipe | accuracy (%) | agreement, test images (%) | agreement, unseen training images (%) "
        "| KL, test images (nats) | image products | CPU seconds |",
        "|---" * 8 + "|",
    ]
    for record in sorted(records, key=lambda record: record["images"]):
        for name, run in record["runs"].items():
            lines.append(
                f"| {record['images']:,} | {name} | {run['accuracy']:.1f} "
                f"| {run['agreement']:.1f} | {run['others']['agreement']:.1f} | {run['kl']:.3f} "
                f"| {run['image_products']:,} | {run['cpu_seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def efforts(frame: pd.DataFrame) -> str:
    """Return the Markdown table of the words of ``effort``: means over calibration sets, by pattern."""
    rows = frame[frame["step"].str.startswith("effort ")].copy()
    rows["effort"] = rows["step"].str.removeprefix("effort ").str.split(":").str[0]
    means = rows.groupby(["pattern", "effort", "images"], sort=False)[MEASURED].mean().reset_index()
    means["sets"] = rows.groupby(["pattern", "effort", "images"], sort=False).size().to_numpy()
    lines = [
        "| pattern | effort | images | sets | accuracy (%) | agreement (%) | KL (nats) | image products "
        "| CPU seconds |",
        "|---" * 9 + "|",
    ]
    means["rank"] = [EFFORTS.index(effort.split(",")[0]) for effort in means["effort"]]
    for row in means.sort_values(["pattern", "rank"]).to_dict("records"):
        lines.append(
            f"| {row['pattern']} | {row['effort']} | {row['images']:,} | {row['sets']} | {row['accuracy']:.1f} "
            f"| {row['agreement']:.1f} | {row['kl']:.3f} | {row['image_products']:,.0f} | {row['cpu_seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def steps(frame: pd.DataFrame) -> str:
    """Return Markdown tables of all steps of one network, a pattern each, the nearest to the dense network first."""
    parts = []
    for pattern, rows in frame.groupby("pattern", sort=True):
        groups = rows.groupby(["step", "images"], sort=False)
        means = groups[[*MEASURED, "image_gradients"]].mean()
        means["sets"] = groups.size()
        lines = [
            f"| {pattern} | images (sets) | accuracy (%) | agreement (%) | KL (nats) | products | gradients | CPU s |",
            "|---" * 8 + "|",
        ]
        for (step, images), row in means.sort_values("kl").iterrows():
            lines.append(
                f"| {step} | {images:,} ({row['sets']:.0f}) | {row['accuracy']:.1f} | {row['agreement']:.1f} "
                f"| {row['kl']:.4f} | {row['image_products']:,.0f} | {row['image_gradients']:,.0f} "
                f"| {row['cpu_seconds']:.0f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def steps_page() -> str:
    """Return the text of figures/steps/README.md."""
    files = sorted((FIGURES / "steps").glob("*.csv"), key=lambda path: path.stem != "resnet20")
    return STEPS_HEAD + "".join(f"\n## {path.stem}\n\n{steps(pd.read_csv(path))}" for path in files)


def real_networks() -> str:
    """Return the Markdown table of real networks on ImageNet images, by network, pattern and method."""
    lines = [
        "| network | pattern | method (images) | top-1, 95 % interval (%) | agreement (%) | KL (nats) | cosine | CKA "
        "| same neighbour (%) | CPU s | GB |",
        "|---" * 11 + "|",
    ]
    for stem in ("04_imagenet_resnet50", "05_vit_l"):
        for row in read_records(recorded_in(stem)).to_dict("records"):
            interval = f" ({row['low']:.1f} to {row['high']:.1f})"
            cells = [
                f"{row[name]:.{digits}f}" if row[name] == row[name] and row[name] is not None else ""
                for name, digits in REAL
            ]
            cells[REAL_INTERVAL[stem]] += interval
            lines.append(
                f"| {row['network']} | {shown_pattern(row['pattern'])} | {row['method']} ({row['images']}) "
                f"| {' | '.join(cells)} | {row['cpu_seconds']:,.0f} | {row['peak_gb']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def grids() -> str:
    """Return the Markdown table of every mask with every update on ResNet-20: accuracy and KL."""
    cells = read_grids(recorded_in("08_where_masks_come_from", "cifar", "grids")).query("grid in @GRIDS")
    shown = {kind: (by_update(cells, kind), digits) for kind, digits in (("accuracy", 1), ("kl", 3))}
    heads = [f"{update}: {name}" for name in ("accuracy (%)", "KL (nats)") for update in UPDATES]
    lines = [f"| pattern | mask | {' | '.join(heads)} | published (%) |", "|---" * (3 + len(heads)) + "|"]
    order = shown["accuracy"][0].index
    for grid, pattern, mask in sorted(order, key=lambda row: (GRIDS.index(row[0]), row[1] != "2:4", row[1])):
        values = [
            "" if pd.isna(value) else f"{value:.{digits}f}"
            for frame, digits in shown.values()
            for value in frame.loc[(grid, pattern, mask), list(UPDATES)]
        ]
        found = published_accuracy(grid, pattern, mask)
        of_stages = ", 8 stages" if grid == STAGED else ""
        lines.append(f"| {pattern}{of_stages} | {mask} | {' | '.join(values)} | {'' if found is None else found} |")
    better, pairs = count_improved(cells[cells["grid"] != STAGED])
    counted = f"{better} of {pairs} pairs of a mask and another update"
    lines += ["", f"By KL, SNOWS ends nearer to the dense network in {counted} (rows in stages not counted)."]
    return "\n".join(lines) + "\n"


def solvers() -> str:
    """Return the Markdown table of solvers of one loss on one mask: accuracy, KL, seconds of the sweep."""
    cells = read_grids(recorded_in("08_where_masks_come_from", "cifar", "grids")).query("grid == @SOLVERS")
    lines = ["| pattern | mask | update | accuracy (%) | KL (nats) | seconds |", "|---" * 6 + "|"]
    for (pattern, mask), rows in cells.groupby(["pattern", "mask"], sort=False):
        for row in rows.to_dict("records"):
            lines.append(
                f"| {pattern} | {mask} | {row['update']} | {row['accuracy']:.1f} | {row['kl']:.3f} "
                f"| {row['seconds']:.0f} |"
            )
    return "\n".join(lines) + "\n"


def eight_bits(frame: pd.DataFrame) -> str:
    """Return the Markdown table of dense and pruned networks in single precision and in eight bits."""
    lines = [
        "| pattern | network | top-1 (%) | agreement (%) | KL (nats) | zeros (%) | zeros filled | MB "
        "| MB, 2:4 packed |",
        "|---" * 9 + "|",
    ]
    for row in frame.to_dict("records"):
        lines.append(
            f"| {shown_pattern(row['pattern'])} | {row['network']} | {row['accuracy']:.1f} | {row['agreement']:.1f} "
            f"| {row['kl']:.3f} | {row['zeros']:.1f} | {row['filled']} | {row['bytes'] / 1e6:.2f} "
            f"| {row['packed_bytes'] / 1e6:.2f} |"
        )
    return "\n".join(lines) + "\n"


def image_size(record: dict) -> str:
    """Return the Markdown table of cost by size of the image."""
    lines = ["| pixels a side | CPU seconds | GB added | products | products times images |", "|---" * 5 + "|"]
    for row in record["rows"]:
        lines.append(
            f"| {row['size']} | {row['cpu_seconds']:.0f} | {row['gb_added']:.1f} "
            f"| {row['products']} | {row['image_products']:,} |"
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
        "real": real_networks(),
        "grids": grids(),
        "solvers": solvers(),
        "int8": eight_bits(pd.read_csv(FIGURES / "int8" / "efficientnet-lite0.csv")),
        "image-size": image_size(json.loads((performance / "image-size.json").read_text())),
        "efforts": efforts(pd.read_csv(FIGURES / "steps" / "resnet20.csv")),
    }


def updated(readme: str, found: dict[str, str]) -> str:
    """Return the README with every table between its markers."""
    for name, table in found.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        before, rest = readme.split(start)
        readme = before + start + table + end + rest.split(end)[1]
    return readme


def main() -> int:
    """Update both files, or say whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when a table is stale")
    options = parser.parse_args()
    readme = (ROOT / "README.md").read_text()
    fresh = updated(readme, tables())
    if options.check:
        return int(fresh != readme or steps_page() != STEPS.read_text())
    (ROOT / "README.md").write_text(fresh)
    STEPS.write_text(steps_page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
