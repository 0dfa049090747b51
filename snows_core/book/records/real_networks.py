"""Real networks pruned by the command `snows prune`, one record a run; what is recorded is not run again.

Each run is a process of its own: its CPU seconds and its memory are those of the whole command.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from snows_core.book.files_shown import CHECKOUT
from snows_core.book.page import figure_dir
from snows_core.errors import SnowsError, closest, invalid_argument
from snows_core.files import write_text
from snows_core.loss.intervals import wilson

METHODS: dict[str, tuple[str, ...]] = {
    "magnitude": ("--effort", "quick", "--update", "none"),
    "layer-wise": ("--effort", "quick", "--update", "layerwise"),
    "quick": ("--effort", "quick"),
    "standard": ("--effort", "standard"),
}
"""What is compared, and the options of `snows prune` for it."""

PROFILE = "imagenet-samples"  # of the notebooks that make and show these records
BULKY = ("permutations", "order")  # lists in a manifest that the run makes again from its seed


@dataclass(frozen=True)
class RealRun:
    """One run.

    Attributes:
        network: name of an experiment.
        pattern: as `--pattern` takes it.
        method: a key of ``METHODS``.
        images: calibration images.
        k: operations behind a layer in its loss.
        seed: of the calibration images.
        max_memory: as `--max-memory` takes it; changes no number but seconds and memory. None is the default of
            `snows prune`.
        exclude: layers to leave dense, a glob as `--exclude` takes it, beside those that the experiment leaves.
    """

    network: str
    pattern: str
    method: str
    images: int
    k: int
    seed: int = 0
    max_memory: str | None = None
    exclude: str | None = None

    @property
    def stem(self) -> str:
        """File name of the record without its ending.

        >>> RealRun("efficientnet-lite0", "2:4", "quick", 128, 5).stem
        'efficientnet-lite0-2of4-quick-128-0'
        """
        pattern = self.pattern.replace(":", "of" if self.pattern[0].isdigit() else "-")
        left = "" if self.exclude is None else f"-without-{self.exclude.strip('*').strip('._')}"
        return f"{self.network}-{pattern}{left}-{self.method}-{self.images}-{self.seed}"

    def options(self) -> list[str]:
        """Return the words behind `snows prune`, but for the folder of the result.

        Raises:
            SnowsError: on an unknown method.
        """
        if self.method not in METHODS:
            raise invalid_argument("method", self.method, f"one of {', '.join(METHODS)}", closest(self.method, METHODS))
        words = ["--model", self.network, "--pattern", self.pattern, *METHODS[self.method]]
        words += ["--k", str(self.k), "--images", str(self.images), "--seed", str(self.seed)]
        words += [] if self.max_memory is None else ["--max-memory", self.max_memory]
        return words if self.exclude is None else [*words, "--exclude", self.exclude]


def read_runs(rows: Sequence[Sequence[Any]], network: str, k: int, max_memory: str | None = None) -> list[RealRun]:
    """Return runs from rows of pattern, method and images, as a notebook's parameters hold them.

    Args:
        rows: see above; a fourth word is a glob of layers to leave dense.
        network: name of an experiment.
        k: operations behind a layer in its loss.
        max_memory: of every run.

    >>> read_runs([["2:4", "quick", 128]], "efficientnet-lite0", 5)[0].images
    128
    """
    return [
        RealRun(network, pattern, method, images, k, max_memory=max_memory, exclude=left[0] if left else None)
        for pattern, method, images, *left in rows
    ]


def recorded_in(stem: str, profile: str = PROFILE, kind: str = "runs") -> Path:
    """Return where a checkout keeps the records that a notebook shows; an installed package has none.

    Args:
        stem: the notebook's file name without ``.ipynb``.
        profile: that made them.
        kind: name of their folder.
    """
    return figure_dir(stem, profile, CHECKOUT / "figures") / kind


def record_missing(runs: Sequence[RealRun], folder: Path, device: str = "cpu") -> list[Path]:
    """Make the records that are not there, one after the other; each is on disk as soon as it is made.

    Args:
        runs: what is wanted.
        folder: where the records stand, ``<stem>.json``.
        device: where to prune.

    Returns:
        The files of the records that were made.

    Raises:
        SnowsError: when a run fails, with the last line that it printed.
    """
    made = []
    for run in runs:
        file = folder / f"{run.stem}.json"
        if not file.is_file():
            write_text(file, json.dumps(_recorded(run, device), indent=1) + "\n")
            made.append(file)
    return made


def _recorded(run: RealRun, device: str) -> dict[str, Any]:
    """Prune in a process of its own, and return what it left."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "result"
        words = ["prune", *run.options(), "--device", device, "--quiet"]
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if device == "cpu" else {}
        process = subprocess.Popen(
            [sys.executable, "-m", "snows_core.cli.app", *words, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **single},
        )
        assert process.stdout is not None  # it was asked for
        printed = process.stdout.read()
        used = _wait(process)
        if process.returncode:
            raise SnowsError(f"{run.stem}: `snows {shlex.join(words)}` failed: {printed.strip().splitlines()[-1:]}")
        manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
        report = pd.read_csv(out / "report.csv") if (out / "report.csv").is_file() else None
    return {
        "command": "snows " + shlex.join([*words[:-1], "--out", run.stem]),
        "run": vars(run),
        **used,
        "layers_pruned": None if report is None else int((report["status"] == "pruned").sum()),
        "manifest": _without_bulk(manifest),
    }


def _wait(process: subprocess.Popen[str]) -> dict[str, float | None]:
    """Wait for the end; return CPU seconds and peak memory in GB of the process, None where the system tells none."""
    if not hasattr(os, "wait4"):  # Windows
        process.wait()
        return {"cpu_seconds": None, "peak_gb": None}
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * unit / 1e9, 2),
    }


def _without_bulk(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_bulk(part) for key, part in value.items() if key not in BULKY}
    return value


def read_records(folder: Path) -> pd.DataFrame:
    """Return the records of a folder as a table, one row a run.

    Args:
        folder: of ``record_missing``; need not exist.

    Returns:
        Columns network, pattern (with " without GLOB" where layers were left dense), method, images, seed, accuracy,
        agreement (percent), low and high (Wilson's 95 % interval of the accuracy, or of the same neighbours where there
        are no classes), kl, cosine, cka, neighbours, dense, judged_on (images), cpu_seconds, peak_gb.
    """
    rows = []
    for file in sorted(folder.glob("*.json")):
        record = json.loads(file.read_text(encoding="utf-8"))
        found = record["manifest"]["evaluation"]
        pruned, dense = found["pruned"], found["dense"]
        left = record["run"].get("exclude")
        share = pruned["neighbours"] if pruned["accuracy"] is None else pruned["accuracy"]
        low, high = wilson(share / 100, pruned["images"])
        names = ("accuracy", "agreement", "kl", "cosine", "cka", "neighbours")
        rows.append(
            {name: record["run"][name] for name in ("network", "method", "images", "seed")}
            | {"pattern": record["run"]["pattern"] + ("" if left is None else f" without {left}")}
            | {name: pruned.get(name) for name in names}
            | {"low": 100 * low, "high": 100 * high, "dense": dense["accuracy"], "judged_on": pruned["images"]}
            | {"cpu_seconds": record["cpu_seconds"], "peak_gb": record["peak_gb"]}
        )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["method"] = pd.Categorical(frame["method"], list(METHODS), ordered=True)
        frame["left"] = frame["pattern"].str.contains(" without ")  # behind the others
        frame = frame.sort_values(["network", "left", "pattern", "method", "images"], ignore_index=True)
        frame = frame.drop(columns="left")
    return frame
