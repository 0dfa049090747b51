"""One experiment: which network, which data, what accuracy the dense network must show before it is pruned."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from snows_core.errors import SnowsError, invalid_argument
from snows_core.evaluate import Metrics, evaluate, in_eval_mode
from snows_core.loss.features import gives_features
from snows_core.loss.scores import read_scores
from snows_core.zoo import heads, sources
from snows_core.zoo.data import DATASETS, DataBundle, load_prepared
from snows_core.zoo.preparation import Preparation


@dataclass(frozen=True)
class Record:
    """A dense accuracy to compare with.

    Attributes:
        data: name of the data set.
        images: how many test images it was measured on.
        accuracy: top-1 in percent.
        origin: who measured it, on what.
        tolerance: difference in points that is no mistake when these very images are measured: 0.5 for our own
            measurements (three of 597 digits, five of 1,017 CIFAR images may flip by rounding), 1 for a published
            figure, whose image decoding and resizing may differ from ours.
    """

    data: str
    images: int
    accuracy: float
    origin: str
    tolerance: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """A network with its data and defaults.

    Attributes:
        name: key in ``EXPERIMENTS``.
        title: one line for tables.
        model: address of the network and its weights; see ``snows_core.zoo.sources``.
        data: data set to calibrate and measure on by default.
        profile: notebook profile that uses it: "default" (offline), "cifar" or "imagenet".
        records: known dense accuracies, the most relevant first.
        k: operations after a layer in its reconstruction loss.
        pattern: default sparsity pattern.
        exclude: globs of layers that stay dense, as in the published runs.
        calibration_images: how many images to prune with.
        batch_size: images a batch.
        note: anything a user should know.
    """

    name: str
    title: str
    model: str
    data: str
    profile: str
    records: tuple[Record, ...] = ()
    k: int = 5
    pattern: str = "2:4"
    exclude: tuple[str, ...] = ()
    calibration_images: int = 256
    batch_size: int = 256
    note: str = ""

    @property
    def dense_accuracy(self) -> float | None:
        """Recorded top-1 of the dense network in percent, or None: not recorded, measured and reported only."""
        return self.records[0].accuracy if self.records else None

    @property
    def recorded_on(self) -> str:
        """What ``dense_accuracy`` was recorded on, in words."""
        return self.records[0].origin if self.records else "not recorded"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the network takes."""
        return sources.preprocessing(self.model).image_shape

    def load_model(
        self, weights: str | Path | None = None, pretrained: bool = True, num_classes: int | None = None
    ) -> nn.Module:
        """Return the network in eval mode.

        Args:
            weights: local .safetensors or .pth file to use instead of the usual weights, of a fine-tuned network too:
                the number of its classes is read from the file. No internet is needed then.
            pretrained: without ``weights``: whether to load the trained weights, or leave random ones.
            num_classes: number of outputs, beside ``weights`` or ``pretrained=False``.

        Raises:
            SnowsError: when the weights do not fit or cannot be downloaded, or for a number of classes without weights.
        """
        if weights is not None:
            return heads.from_file(self.model, weights, num_classes)
        if not pretrained:
            return sources.build(self.model, num_classes)
        if num_classes is not None:
            raise invalid_argument(
                "num_classes",
                num_classes,
                "weights='<path>' beside it",
                "The trained weights that can be downloaded have their own classes.",
            )
        return sources.pretrained(self.model)

    def load_data(
        self,
        root: str | Path | None = None,
        data: str | None = None,
        download: bool = True,
        num_classes: int | None = None,
        progress: bool = True,
        test_share: float | None = None,
    ) -> DataBundle:
        """Return the data, prepared as the network's weights expect.

        Args:
            root: folder of all data sets; default the variable ``SNOWS_DATA``, else the user's cache folder.
            data: another data set than the usual one, for instance "imagenet" or "folder:<path>".
            download: whether the network may be used.
            num_classes: classes that the network tells apart, where it is a fine-tuned one; see ``load_data``.
            progress: whether to show a bar where it takes long to look for files.
            test_share: share of the images of a folder to set aside for testing; see ``load_folder``.

        Raises:
            SnowsError: see ``snows_core.zoo.data.load_data``.
        """
        expected, name = sources.preprocessing(self.model), self.data if data is None else data
        channels, size, _ = expected.image_shape
        if name in DATASETS and (name == "digits") != (channels == 1):
            raise invalid_argument(
                "data",
                f"'{name}' ({'grey' if name == 'digits' else 'colour'} images)",
                f"images with {channels} channel{'s' * (channels > 1)} for {self.name}",
                f"Use data='{self.data}', or a network made for these images.",
            )
        moments = expected.mean, expected.std
        wanted = Preparation(*moments, size, expected.transform, num_classes, progress, test_share)
        return load_prepared(name, root, wanted, download)

    def check_images(self, bundle: DataBundle) -> None:
        """Refuse images of another shape than the network takes.

        Args:
            bundle: the images, in splits.

        Raises:
            SnowsError: on grey images for a colour network, the reverse, or a wrong size.
        """
        if bundle.image_shape[0] != self.image_shape[0]:
            kind = {1: "grey (1 channel)", 3: "colour (3 channels)"}
            raise invalid_argument(
                "data",
                f"{kind.get(bundle.image_shape[0], bundle.image_shape)} images from '{bundle.name}'",
                f"{kind.get(self.image_shape[0], self.image_shape)} images for {self.name}",
                f"Use data='{self.data}'.",
            )
        if bundle.image_shape != self.image_shape:
            raise invalid_argument(
                "image_size",
                f"images {bundle.image_shape} from '{bundle.name}'",
                f"{self.image_shape} (channels, height, width) for {self.name}",
                f"Load them by experiment('{self.name}').load_data(), which resizes.",
            )

    def check_dense(
        self,
        model: nn.Module,
        bundle: DataBundle,
        images: int | None = None,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> Metrics:
        """Measure the dense network and compare with what is recorded, before anything is pruned.

        On the very images of a record the difference may be ``Record.tolerance``: 0.5 or 1 point. On a part of them it
        may be three standard errors of that part, 3 * sqrt(p (1 - p) / n), if that is more. The commonest mistake, a
        wrong mean and std, costs the published ResNet-20 36 points (90.86 to 54.18). Where nothing is recorded for
        the data, as for Imagenette, the accuracy is only returned, and a warning says so; of a network without classes
        only the number of images is.

        Args:
            model: the dense network.
            bundle: its data.
            images: measure on this many test images, drawn at random; default all.
            seed: of that draw.
            device: where to compute; default: where the model is.

        Returns:
            The metrics of the dense network.

        Raises:
            SnowsError: on images that do not fit, missing labels, or an accuracy that does not match.
        """
        self.check_fit(model, bundle, device)
        positions = None
        if images is not None:
            order = torch.randperm(len(bundle.test), generator=torch.Generator().manual_seed(seed))
            positions = order[: min(images, len(bundle.test))]
        metrics = evaluate(model, bundle.test.loader(self.batch_size, positions=positions), device=device)
        self.compare(metrics, bundle)
        return metrics

    def check_fit(self, model: nn.Module, bundle: DataBundle, device: torch.device | str | None = None) -> None:
        """Refuse images and labels that cannot be this network's, before anything long is begun.

        Args:
            model: the dense network.
            bundle: its data.
            device: where to compute; default: where the model is.

        Raises:
            SnowsError: on images that do not fit, missing labels, or another number of classes.
        """
        self.check_images(bundle)
        if gives_features(model):  # there is nothing to compare with labels
            return
        bundle.require_labels()
        _check_outputs(model, torch.zeros(1, *bundle.image_shape), bundle, device)

    def record_for(self, bundle: DataBundle) -> Record | None:
        """Return the known accuracy on these images, that of exactly so many before others; None where none is known.

        Args:
            bundle: the images; none is known of images that the network was likely trained on.
        """
        records = [record for record in self.records if record.data == bundle.name and bundle.held_out]
        return next((r for r in records if r.images == len(bundle.test)), max(records, key=_size, default=None))

    def compare(self, metrics: Metrics, bundle: DataBundle) -> None:
        """Compare the dense network's accuracy with what is recorded, as ``check_dense`` does; warn where nothing is.

        Args:
            metrics: of the dense network, on images with labels.
            bundle: their data.

        Raises:
            SnowsError: when the accuracy does not match.
        """
        if metrics.accuracy is None:  # of a network without classes
            return
        record = self.record_for(bundle)
        if record is None:
            if not bundle.held_out:
                _warn(f"{self.name} was likely trained on the images of {bundle.name} that judge it, which flatters it")
            elif bundle.name in DATASETS:
                _warn(
                    f"no accuracy of {self.name} on {bundle.name} is on record: it is measured, but cannot be checked"
                )
            return
        tolerance = record.tolerance
        if record.images != metrics.images:
            share = record.accuracy / 100
            tolerance = max(tolerance, 300 * math.sqrt(share * (1 - share) / metrics.images))
        if abs(metrics.accuracy - record.accuracy) > tolerance:
            raise SnowsError(
                f"model, data: {self.name} scores {metrics.accuracy:.2f} % on {metrics.images:,} images of"
                f" '{bundle.name}'; expected {record.accuracy:.2f} % within {tolerance:.2f} points ({record.origin})."
                f" The commonest causes are other weights than these, a wrong normalisation (these images have mean"
                f" {bundle.mean} and std {bundle.std}; in Python experiment('{self.name}').load_data() gives the right"
                " one), and shifted labels."
            )


def _size(record: Record) -> int:
    return record.images


def _warn(sentence: str) -> None:
    warnings.warn(f"{sentence}.", stacklevel=4)  # the caller of check_dense


@torch.no_grad()
def _check_outputs(
    model: nn.Module, image: torch.Tensor, bundle: DataBundle, device: torch.device | str | None
) -> None:
    """Refuse labels that cannot belong to the network's outputs."""
    with in_eval_mode(model, device) as run:
        outputs = read_scores(run(image), len(image)).logits.shape[1]
    if bundle.classes and len(bundle.classes) != outputs:
        raise invalid_argument(
            "data",
            f"{len(bundle.classes)} class{'es' * (len(bundle.classes) > 1)} from '{bundle.name}'",
            f"{outputs}, the outputs of the network",
            "Load weights of these classes by weights='<path>' (their number is read from the file), or name the"
            " folders by WordNet ids for ImageNet's labels; images in one flat folder are judged by agreement alone.",
        )
