"""What the commands do once their options are read: load, check, prune, measure, save."""

from __future__ import annotations

import copy
import shlex
import tempfile
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from snows_core.cli.judging import JudgingImages
from snows_core.cli.source import Say, Source, check_dense, check_device, source_of
from snows_core.distributed import is_main, on_main
from snows_core.errors import cannot_go_on, invalid_argument
from snows_core.estimate import estimate
from snows_core.evaluate import Metrics, evaluate, evaluate_both, metrics_frame
from snows_core.files.journal import check_journal, is_journal, remove_journal
from snows_core.interruption import shielded
from snows_core.methods import methods
from snows_core.methods.cost import SYMBOLS
from snows_core.prune import prune
from snows_core.result import CHECKPOINT, PruneResult, check_target, is_interrupted, load
from snows_core.sweep.augment import flip_and_shift
from snows_core.sweep.prepare import checked_settings
from snows_core.tables import layer_table, table
from snows_core.zoo.bundle import DataBundle
from snows_core.zoo.registry import EXPERIMENTS, Experiment

__all__ = [
    "Source",
    "calibration_record",
    "check_dense",
    "check_device",
    "estimate_table",
    "evaluate_folder",
    "experiments_frame",
    "image_count",
    "methods_text",
    "prune_to_folder",
    "source_of",
]


def image_count(asked: int | None, chosen: Experiment, bundle: DataBundle, say: Say) -> int:
    """Return how many calibration images there will be: as asked, else the experiment's number or all there are.

    Raises:
        SnowsError: when more were asked for than there are.
    """
    there = len(bundle.train)
    if asked is None:
        if there < chosen.calibration_images:
            say(f"{bundle.source}: all {there:,} training images are used, {chosen.calibration_images} are usual")
        return min(there, chosen.calibration_images)
    if asked > there:
        raise invalid_argument("--images", f"{asked}", f"at most {there}, the training images of {bundle.source}")
    return asked


def calibration_record(bundle: DataBundle, seed: int, positions: Tensor) -> dict[str, Any]:
    """Return for a manifest which training images a network was pruned on: those that could be read.

    Args:
        bundle: the data.
        seed: that drew them.
        positions: of those that were drawn, after they were read.
    """
    indices = [int(i) for i in bundle.train.readable(positions)]
    left_out = {"unreadable": len(positions) - len(indices)} if len(indices) < len(positions) else {}
    return {"data": bundle.name, "split": "train", "seed": seed, "indices": indices, **left_out}


def _checked(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was typed as keywords of a function, after refusing what can be refused without a network."""
    keywords = {**options, **({"augment": flip_and_shift} if options.get("augment") else {})}
    checked_settings(function, **keywords)
    return keywords


def _filled_up(options: Mapping[str, Any], chosen: Experiment, device: str | None) -> dict[str, Any]:
    """Return keywords of ``prune`` and ``estimate`` where what was not typed is as the experiment has it."""
    usual = {"pattern": chosen.pattern, "k": chosen.k, "exclude": list(chosen.exclude)}
    typed = {name: value for name, value in options.items() if name != "max_images"}  # so many are drawn already
    return {**usual, **typed, "device": device}


def prune_to_folder(
    source: Source,
    out: Path,
    options: Mapping[str, Any],
    say: Say,
    overwrite: bool = False,
    checkpoint_dir: Path | None = None,
) -> PruneResult:
    """Prune a network of the zoo, timm or torchvision, measure the result and save it.

    Everything that can be wrong is looked at before the pruning starts, the folder included; the test images are
    never used for calibration. What is done is kept on the way: the same call after a kill or Ctrl-C goes on there, and
    may replace the interrupted result.

    Args:
        source: network and images.
        out: folder of the result.
        options: keywords of ``prune`` from :func:`snows_core.cli.options.read_options`.
        say: called with text for the user.
        overwrite: replace a result that is there.
        checkpoint_dir: folder for what is kept; default: in ``out``. It is removed once the whole result is saved.

    Returns:
        The result; its manifest has the calibration images' positions and the measurements. ``interrupted`` after
        Ctrl-C: the layers solved so far are saved, and not measured.

    Raises:
        SnowsError: on anything that cannot work; nothing is written then.
    """
    kept = out / CHECKPOINT if checkpoint_dir is None else checkpoint_dir
    overwrite = on_main(_check_folders, out, kept, overwrite)
    options = _checked(prune, options)
    chosen, model, bundle = source.load(options["progress"])
    count = image_count(options.get("max_images"), chosen, bundle, say)
    judging = source.judging(chosen, bundle, options["progress"])
    check_dense(chosen, model, bundle, judging, source.device, say)
    images, positions = bundle.train.drawn(count, options["seed"])  # read as they are asked for: held once, by the run
    keywords = _filled_up(options, chosen, source.device)
    if is_journal(kept):
        say(f"{kept} holds what an interrupted run has done: it goes on there")
    result = prune(model, images, **keywords, max_images=count, checkpoint_dir=kept)
    if not result.complete and not result.masks:
        raise KeyboardInterrupt  # before the first layer was solved: there is nothing to keep
    sample = calibration_record(bundle, options["seed"], positions)
    result.manifest["source"] = source.record() | {"calibration": sample}
    if not is_main():
        return result  # the first of several processes measures, prints and saves
    try:  # whatever happens from here on, the pruned network is kept
        say(layer_table(result.report))
        if not result.interrupted:
            dense, pruned = evaluate_both(result.module, model, judging, device=source.device)
            found = {"dense": dense.as_dict(), "pruned": pruned.as_dict(), "sample": judging.record()}
            result.manifest["evaluation"] = found
            say(table(metrics_frame(dense, pruned), index=True))
            _compare_whole(chosen, dense, bundle, judging)
    finally:
        with shielded():
            _save(result, out, overwrite, say)
            if not result.interrupted:
                remove_journal(kept)
    say("next: the same command goes on there" if result.interrupted else next_step(source, out))
    return result


def _check_folders(out: Path, kept: Path, overwrite: bool) -> bool:
    """Refuse a folder of a result, or of what is kept on the way, that cannot be used; tell whether to replace one."""
    if kept.absolute() == out.absolute():
        fix = f"Leave it out: records then lie in {out / CHECKPOINT}."
        raise invalid_argument("checkpoint_dir", f"{kept}, the folder of the result", "another folder", fix)
    replaces = overwrite or (is_interrupted(out) and is_journal(kept))
    check_target(out, replaces)
    check_journal(kept, "out" if kept.parent == out else "checkpoint_dir")
    return replaces


def _save(result: PruneResult, out: Path, overwrite: bool, say: Say) -> None:
    """Save a result; where its folder has become impossible since it was checked, beside the temporary files."""
    try:
        result.save(out, overwrite=overwrite)
    except Exception as error:  # a full disk, rights taken away: hours of work must not end with that
        spare = Path(tempfile.mkdtemp(prefix="snows-")) / "result"
        result.save(spare)
        raise cannot_go_on(
            "--out",
            f"{out}, which could not be written ({error})",
            "a folder that can be written",
            f"The result is in {spare} instead.",
        ) from error
    say(f"saved to {out}")


def next_step(source: Source, out: Path) -> str:
    """Return one line for the user: how to measure a saved result again, and how to load it in Python.

    Args:
        source: what was pruned.
        out: where the result is.

    Returns:
        Two lines; their commands can be pasted.
    """
    words = ["snows", "evaluate", str(out)]
    for option, value in (("--data-root", source.data_root), ("--device", source.device)):
        words += [] if value is None else [option, str(value)]
    weights = "" if source.weights is None else repr(str(source.weights))
    network = f"snows_core.zoo.experiment({source.model!r}).load_model({weights})"
    return f"next: {shlex.join(words)}\nin Python: snows_core.load({str(out)!r}, {network}).model"


def estimate_table(source: Source, options: Mapping[str, Any], say: Say = lambda line: None) -> str:
    """Return the cost of pruning, layer by layer and in all, as text.

    Args:
        source: network and images.
        options: keywords of ``prune`` from :func:`snows_core.cli.options.read_options`.
        say: called with text for the user.

    Returns:
        The table and a line of sums.

    Raises:
        SnowsError: on anything that `snows prune` would refuse.
    """
    options = _checked(estimate, options)
    chosen, model, bundle = source.load(options["progress"])
    count = image_count(options.get("max_images"), chosen, bundle, say)
    example, _, _ = bundle.train.sample(min(32, len(bundle.train)), options["seed"])
    frame = estimate(model, example, count=count, **_filled_up(options, chosen, source.device))
    sums = (
        f"in all: {frame['products'].sum():.0f} products, about {frame['seconds'].sum():.0f} s, "
        f"at most {frame['peak_bytes'].max() / 1e9:.2f} GB beside the network if nothing is held back"
    )
    shown = frame.assign(
        seconds=frame["seconds"].round(2), peak_MB=(frame["peak_bytes"] / 1e6).round(1), products=frame["products"]
    )
    return f"{table(shown[['layer', 'k', 'products', 'seconds', 'peak_MB']])}\n{sums}"


def evaluate_folder(folder: Path | None, source: Source, say: Say, progress: bool = False) -> pd.DataFrame:
    """Measure a saved result beside its dense network, or a dense network alone.

    Args:
        folder: what `snows prune` wrote, or None.
        source: network and images.
        say: called with one line on the dense network.
        progress: whether to show bars.

    Returns:
        Accuracy, agreement and KL, one row a network.

    Raises:
        SnowsError: on a folder without a result, one that does not name its network, or weights that do not fit.
    """
    if folder is not None and not folder.is_dir():
        raise invalid_argument("folder", f"'{folder}', which is no folder", "a folder that `snows prune` wrote")
    chosen, model, bundle = source.load(progress)
    result = None if folder is None else load(folder, copy.deepcopy(model))
    judging = source.judging(chosen, bundle, progress)
    dense, pruned = check_dense(chosen, model, bundle, judging, source.device, say), None
    if result is not None:
        dense, pruned = evaluate_both(result.module, model, judging, device=source.device)
    elif len(judging.others) and bundle.labelled:
        dense = evaluate(model, judging, device=source.device)
    _compare_whole(chosen, dense, bundle, judging)
    return metrics_frame(dense, pruned)


def _compare_whole(chosen: Experiment, dense: Metrics, bundle: DataBundle, images: JudgingImages) -> None:
    """Compare the dense accuracy again where it was first measured on a sample only."""
    if len(images.others) and bundle.labelled:
        chosen.compare(dense, bundle)


def experiments_frame() -> pd.DataFrame:
    """Return the registry as a table."""
    rows = [
        (e.name, e.title, e.data, e.dense_accuracy, e.pattern, e.k, e.calibration_images, e.recorded_on)
        for e in EXPERIMENTS.values()
    ]
    return pd.DataFrame(rows, columns=["name", "network", "data", "dense %", "pattern", "k", "images", "recorded on"])


def methods_text() -> str:
    """Return the table of methods as text, a few lines a method, at most 120 columns wide."""
    lines = ["cost in multiply-adds, of a layer or the whole network:"]
    lines += [f"  {symbol}  {words}" for symbol, words in SYMBOLS.items()] + [""]
    listed = methods()
    width = max(map(len, listed.index)) + 2
    indent = " " * width
    for name, row in listed.iterrows():
        first = f"{name:<{width}}{row['gives']:<15}"
        lines += _in_columns(row["cost"], first, " " * len(first))
        lines += _in_columns(f"{row['paper']}, {row['year']}", indent, indent)
        lines += _in_columns(f"needs {row['needs']}; {row['limits']}", indent, indent)
    return "\n".join(lines)


def _in_columns(text: str, start: str, behind: str) -> list[str]:
    return textwrap.wrap(text, 120, initial_indent=start, subsequent_indent=behind, break_on_hyphens=False)
