"""What the commands do once their options are read: load, check, prune, measure, save."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from snows_core.choose_k import K
from snows_core.errors import SnowsError, bad
from snows_core.estimate import estimate
from snows_core.evaluate import Metrics, evaluate
from snows_core.masks import parse_pattern
from snows_core.prune import prune
from snows_core.recipe import get_recipe
from snows_core.refine import flip_and_shift
from snows_core.result import PruneResult, check_target, load
from snows_core.tables import layer_table, metrics_frame, table
from snows_core.zoo.bundle import DataBundle
from snows_core.zoo.registry import EXPERIMENTS, Experiment, experiment

Say = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """Which network on which images.

    Attributes:
        model: name of an experiment, "timm/<name>" or "torchvision/<name>".
        data: name of a data set; None means the experiment's own.
        data_root: folder of the data sets.
        weights: local file of weights instead of the usual ones.
        device: where to compute.
    """

    model: str
    data: str | None = None
    data_root: Path | None = None
    weights: Path | None = None
    device: str | None = None

    def load(self) -> tuple[Experiment, nn.Module, DataBundle]:
        """Return the experiment, the dense network and the images.

        Raises:
            SnowsError: on an unknown name or device, or missing data or weights.
        """
        check_device(self.device)
        chosen = experiment(self.model)
        return chosen, chosen.load_model(self.weights), chosen.load_data(self.data_root, self.data)

    def record(self) -> dict[str, str | None]:
        """Return model, data and weights for a manifest, so that `snows evaluate` finds them again."""
        return {
            "model": self.model,
            "data": self.data,
            "weights": None if self.weights is None else str(self.weights.resolve()),
        }


@dataclass(frozen=True)
class PruneOptions:
    """Options of `snows prune`; None means the experiment's default.

    Attributes:
        out: folder of the result.
        overwrite: replace a result that is there.
        pattern: "2:4", "0.8", ...
        k: operations behind a layer, or "auto".
        images: how many calibration images.
        recipe: "fast" or "paper".
        seed: of the calibration sample.
        layers: globs of the layers to prune.
        exclude: globs of the layers to leave dense.
        progress: whether to show bars.
        refine: steps of joint refinement after the sweep.
        augment: mirror and shift images during refinement.
    """

    out: Path
    overwrite: bool = False
    pattern: str | None = None
    k: K | None = None
    images: int | None = None
    recipe: str = "fast"
    seed: int = 0
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    progress: bool = True
    refine: int = 0
    augment: bool = False


def check_dense(chosen: Experiment, model: nn.Module, bundle: DataBundle, device: str | None, say: Say) -> Metrics:
    """Measure the dense network, before anything else is done with it.

    Args:
        chosen: the experiment, with the recorded accuracy.
        model: the dense network.
        bundle: its images.
        device: where to compute.
        say: called with one line on what was found.

    Returns:
        The metrics, without accuracy where the images have no labels.

    Raises:
        SnowsError: on images that do not fit, or an accuracy that is not the recorded one.
    """
    if not bundle.labelled:
        chosen.check_images(bundle)
        say(f"{chosen.title}: {bundle.source} has no labels; agreement with the dense network is measured")
        return Metrics(images=len(bundle.test))
    dense = chosen.check_dense(model, bundle, device=device)
    known = next((record for record in chosen.records if record.data == bundle.name), None)
    recorded = f"recorded {known.accuracy:.2f} % ({known.origin})" if known else "none recorded"
    say(f"{chosen.title}: dense accuracy {dense.accuracy:.2f} % on {dense.images:,} test images, {recorded}")
    return dense


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        SnowsError: on an unknown name, or CUDA where there is none.
    """
    if device is None:
        return
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise bad("device", f"'{device}'", "cpu, cuda, cuda:1, ...") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise bad("device", f"'{device}'", f"one of {torch.cuda.device_count()} CUDA devices", "Use --device cpu.")


def prune_to_folder(source: Source, options: PruneOptions, say: Say) -> PruneResult:
    """Prune a network of the zoo, timm or torchvision, measure the result and save it.

    Everything that can be wrong is looked at before the pruning starts, the folder included; the test images are
    never used for calibration.

    Args:
        source: network and images.
        options: what to do.
        say: called with text for the user.

    Returns:
        The result; its manifest has the calibration images' positions and the measurements. Not ``complete`` after
        Ctrl-C: the layers solved so far are saved.

    Raises:
        SnowsError: on anything that cannot work; nothing is written then.
    """
    if options.out.is_dir() and any(options.out.iterdir()) and not options.overwrite:
        raise bad("--out", f"{options.out}, which is not empty", "a new folder", "Choose another, or pass --overwrite.")
    check_target(options.out, options.overwrite)
    get_recipe(options.recipe)
    if options.pattern is not None:
        parse_pattern(options.pattern)
    chosen, model, bundle = source.load()
    dense = check_dense(chosen, model, bundle, source.device, say)
    count = chosen.calibration_images if options.images is None else options.images
    images, _, positions = bundle.train.sample(count, options.seed)
    result = prune(
        model, images, options.pattern or chosen.pattern,
        k=chosen.k if options.k is None else options.k, recipe=options.recipe,
        layers=list(options.layers) or None, exclude=list(options.exclude or chosen.exclude) or None,
        device=source.device, seed=options.seed, progress=options.progress,
        refine=options.refine, augment=flip_and_shift if options.refine and options.augment else None,
    )  # fmt: skip
    if not result.complete and not result.masks:
        raise KeyboardInterrupt  # before the first layer was solved: there is nothing to keep
    result.manifest["source"] = source.record()
    result.manifest.setdefault("calibration", {}).update(
        data=bundle.name, split="train", seed=options.seed, indices=[int(i) for i in positions]
    )
    say(layer_table(result.report))
    try:  # whatever happens while measuring, the pruned network is kept
        if result.complete:
            pruned = measure(result.model, model, bundle, chosen, source.device)
            result.manifest["evaluation"] = {"dense": dense.as_dict(), "pruned": pruned.as_dict()}
            say(table(metrics_frame(dense, pruned), index=True))
    finally:
        result.save(options.out, overwrite=options.overwrite)
        say(f"saved to {options.out}")
    return result


def estimate_table(source: Source, pattern: str | None, k: K | None, images: int | None, recipe: str) -> str:
    """Return the cost of pruning, layer by layer and in all, as text.

    Args:
        source: network and images.
        pattern: as ``snows prune`` takes it; None for the experiment's own.
        k: operations behind a layer; None for the experiment's own.
        images: calibration images of the run; None for the experiment's own.
        recipe: "fast" or "paper".

    Returns:
        The table and a line of sums.
    """
    chosen, model, bundle = source.load()
    example, _, _ = bundle.train.sample(min(32, len(bundle.train)), 0)
    frame = estimate(
        model, example, pattern or chosen.pattern, k=chosen.k if k is None else k, recipe=recipe,
        count=chosen.calibration_images if images is None else images,
        exclude=list(chosen.exclude) or None, device=source.device,
    )  # fmt: skip
    sums = (
        f"in all: {frame['products'].sum():.0f} products, about {frame['seconds'].sum():.0f} s, "
        f"at most {frame['peak_bytes'].max() / 1e9:.2f} GB beside the network if nothing is held back"
    )
    shown = frame.assign(
        seconds=frame["seconds"].round(2), peak_MB=(frame["peak_bytes"] / 1e6).round(1), products=frame["products"]
    )
    return f"{table(shown[['layer', 'k', 'products', 'seconds', 'peak_MB']])}\n{sums}"


def evaluate_folder(folder: Path | None, source: Source, say: Say) -> pd.DataFrame:
    """Measure a saved result beside its dense network, or a dense network alone.

    Args:
        folder: what `snows prune` wrote, or None.
        source: network and images.
        say: called with one line on the dense network.

    Returns:
        Accuracy, agreement and KL, one row a network.

    Raises:
        SnowsError: on a folder without a result, one that does not name its network, or weights that do not fit.
    """
    if folder is not None and not folder.is_dir():
        raise bad("folder", f"'{folder}', which is no folder", "a folder that `snows prune` wrote")
    chosen, model, bundle = source.load()
    result = None if folder is None else load(folder, copy.deepcopy(model))
    dense = check_dense(chosen, model, bundle, source.device, say)
    if result is None:
        return metrics_frame(dense)
    return metrics_frame(dense, measure(result.model, model, bundle, chosen, source.device))


def source_of(
    folder: Path | None, given: Source | None, data: str | None, root: Path | None, device: str | None
) -> Source:
    """Return what to measure: as given, filled up from the manifest of a saved result.

    Args:
        folder: a saved result, or None.
        given: network named by the user, or None.
        data: data named by the user, or None.
        root: folder of the data sets.
        device: where to compute.

    Returns:
        The source.

    Raises:
        SnowsError: when neither the user nor the manifest names a network.
    """
    if given is not None:
        return given
    if folder is None:
        raise SnowsError("model: got nothing to measure; expected a folder that `snows prune` wrote, or --model NAME.")
    path = folder / "manifest.json"
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")).get("source", {})
    except OSError as error:
        raise bad("folder", f"'{folder}', which has no manifest.json", "a folder that `snows prune` wrote") from error
    except ValueError as error:
        raise bad("folder", f"'{path}', which is no JSON", "a folder that `snows prune` wrote") from error
    if not known.get("model"):
        raise bad("folder", f"'{folder}', whose manifest names no network", "--model NAME beside it")
    weights = known.get("weights")
    return Source(known["model"], data or known.get("data"), root, None if weights is None else Path(weights), device)


def measure(
    model: nn.Module, dense: nn.Module, bundle: DataBundle, chosen: Experiment, device: str | None = None
) -> Metrics:
    """Return accuracy (where there are labels), agreement and KL on the test images."""
    return evaluate(model, bundle.test.loader(chosen.batch_size), reference=dense, device=device)


def experiments_frame() -> pd.DataFrame:
    """Return the registry as a table."""
    rows = [
        (e.name, e.title, e.data, e.dense_accuracy, e.pattern, e.k, e.calibration_images, e.recorded_on)
        for e in EXPERIMENTS.values()
    ]
    return pd.DataFrame(rows, columns=["name", "network", "data", "dense %", "pattern", "k", "images", "recorded on"])
