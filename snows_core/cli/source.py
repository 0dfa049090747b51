"""Which network on which images a command works with, and whether the dense network is what it should be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snows_core.cli.judging import JudgingImages
from snows_core.devices import resolve_device
from snows_core.errors import LIMIT, SnowsError, cannot_go_on, invalid_argument
from snows_core.evaluate import Metrics, evaluate
from snows_core.files.bounded import read_json
from snows_core.loss.features import gives_features
from snows_core.zoo.bundle import DataBundle
from snows_core.zoo.experiment import Experiment
from snows_core.zoo.heads import classes_of
from snows_core.zoo.registry import experiment

Say = Callable[[str], None]
TEXTS = ("model", "data", "weights")  # attributes of a source that a manifest holds
NUMBERS = ("num_classes", "test_images")  # and those that it holds where they were given


@dataclass(frozen=True)
class Source:
    """Which network on which images.

    Attributes:
        model: name of an experiment, "timm/<name>" or "torchvision/<name>".
        data: name of a data set; None means the experiment's own.
        data_root: folder of the data sets.
        weights: local file of weights instead of the usual ones.
        device: where to compute.
        num_classes: outputs of a fine-tuned network; None means as many as the file of weights has.
        test_images: how many test images to judge on; None means all.
        workers: processes that read the test images; None means as many as pay.
    """

    model: str
    data: str | None = None
    data_root: Path | None = None
    weights: Path | None = None
    device: str | None = None
    num_classes: int | None = None
    test_images: int | None = None
    workers: int | None = None

    def load(self, progress: bool = False) -> tuple[Experiment, nn.Module, DataBundle]:
        """Return the experiment, the dense network and the images.

        Args:
            progress: whether to show a bar where it takes long to look for files.

        Raises:
            SnowsError: on an unknown name or device, or missing data or weights.
        """
        check_device(self.device)
        chosen = experiment(self.model)
        model = chosen.load_model(self.weights, num_classes=self.num_classes)
        classes = None if self.weights is None else classes_of(model)
        return chosen, model, chosen.load_data(self.data_root, self.data, num_classes=classes, progress=progress)

    def judging(self, chosen: Experiment, bundle: DataBundle, progress: bool = False) -> JudgingImages:
        """Return the test images of this command.

        Args:
            chosen: the experiment.
            bundle: its images.
            progress: whether to show a bar.

        Raises:
            SnowsError: when more test images are asked for than there are.
        """
        return JudgingImages(bundle, chosen.batch_size, self.test_images, self.workers, progress)

    def record(self) -> dict[str, Any]:
        """Return for a manifest what `snows evaluate` needs to find network and images again, from any folder."""
        data = self.data
        if data is not None and data.startswith("folder:"):
            data = f"folder:{Path(data.removeprefix('folder:')).expanduser().resolve()}"
        weights = None if self.weights is None else str(self.weights.resolve())
        numbers = {name: getattr(self, name) for name in NUMBERS if getattr(self, name) is not None}
        return {"model": self.model, "data": data, "weights": weights, **numbers}


def source_of(
    folder: Path | None,
    model: str | None = None,
    data: str | None = None,
    weights: Path | None = None,
    **others: Any,
) -> Source:
    """Return what to measure: as named, filled up from the manifest of a saved result where no network is named.

    Args:
        folder: a saved result, or None.
        model: network named by the user, or None.
        data: data named by the user, or None.
        weights: file of the dense network's weights, or None.
        others: other attributes of the source.

    Returns:
        The source.

    Raises:
        SnowsError: when neither the user nor the manifest names a network.
    """
    if model is not None:
        return Source(model, data, weights=weights, **others)
    if folder is None:
        expected = "a folder that `snows prune` wrote, or --model NAME"
        raise invalid_argument("model", "nothing to measure", expected)
    known = _recorded_source(folder)
    recorded = known.get("weights")
    weights = Path(recorded) if weights is None and recorded else weights
    numbers = {name: known[name] for name in NUMBERS if name in known and others.get(name) is None}
    if data is not None:
        numbers.pop("test_images", None)  # they were of other data
    return Source(known["model"], data or known.get("data"), weights=weights, **{**others, **numbers})


def _recorded_source(folder: Path) -> dict[str, Any]:
    """Return what a result's manifest says about its network and images, checked as far as it is used."""
    path = folder / "manifest.json"
    expected = "a folder that `snows prune` wrote"
    if not path.is_file():
        raise invalid_argument("folder", f"'{folder}', which has no manifest.json", expected)
    try:
        manifest = read_json(path)
    except (OSError, ValueError) as error:
        raise cannot_go_on("folder", f"'{path}', which cannot be read ({error})", expected) from error
    known = manifest.get("source", {}) if isinstance(manifest, dict) else None
    if not isinstance(known, dict):
        raise cannot_go_on("folder", f"'{path}', which is no manifest of a result", expected)
    for name, value in known.items():
        kind = "a text" if name in TEXTS else "a whole number >= 1" if name in NUMBERS else ""
        right = isinstance(value, str) if name in TEXTS else _is_count(value)
        if kind and value is not None and not right:
            got = f"'{path}', which is no manifest of a result: its {name} is {value!r}, not {kind}"
            raise cannot_go_on("folder", got, expected)
    if not known.get("model"):
        raise invalid_argument("folder", f"'{folder}', whose manifest names no network", "--model NAME beside it")
    try:
        experiment(known["model"])
    except SnowsError as error:
        got = f"'{path}', whose network {known['model']!r} is not known here"
        raise cannot_go_on("folder", got, "one that `snows experiments` lists", "Or pass --model NAME.") from error
    return known


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < LIMIT


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have, or that holds no numbers.

    Raises:
        SnowsError: on an unknown name, or CUDA where there is none.
    """
    if device is not None and resolve_device(device, torch.device("cpu")).type == "meta":
        raise invalid_argument("device", f"'{device}'", "a device that computes", "For instance --device cpu.")


def check_dense(
    chosen: Experiment, model: nn.Module, bundle: DataBundle, images: JudgingImages, device: str | None, say: Say
) -> Metrics:
    """Measure the dense network, before anything else is done with it: on all test images, of many on a sample.

    Args:
        chosen: the experiment, with the recorded accuracy.
        model: the dense network.
        bundle: the data.
        images: its test images.
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
        return Metrics(images=len(images))
    chosen.check_fit(model, bundle, device)
    if gives_features(model):
        say(f"{chosen.title}: it has no classes; its features are compared with the dense network's")
        return Metrics(images=len(images))
    dense = evaluate(model, images.kept(), device=device)
    chosen.compare(dense, bundle)
    known = chosen.record_for(bundle)
    recorded = f"recorded {known.accuracy:.2f} % ({known.origin})" if known else "none recorded"
    say(f"{chosen.title}: dense accuracy {dense.accuracy:.2f} % on {images.words(dense.images)}, {recorded}")
    return dense
