"""The test images of a comparison: the same for every cell, with the figures of each image kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snows_core.activations.labelled import checked_batches
from snows_core.errors import invalid_argument
from snows_core.evaluate import in_eval_mode
from snows_core.loss.features import gives_features, holds_features, read_features
from snows_core.loss.scores import Scores, per_image, read_scores
from snows_core.provenance import tensor_digest

KEPT_BYTES = 2**28  # so much of what the dense network says stays in memory from one cell to the next
PIXELS = 256  # of an image that tell whether it is the same one

Values = dict[str, Tensor]


class Judge:
    """Judges pruned networks beside the dense one, image by image.

    Args:
        model: the dense network.
        test: test images: a tensor (N, C, H, W), a tuple of it and labels (N,), or a loader or list of batches.
        device: where to compute; default: where each network is.

    Attributes:
        dense: figures of the dense network itself, (N,) each: accuracy, where there are labels.
        digest: of the images and labels.

    Raises:
        SnowsError: on images that can be read only once, and as :func:`snows_core.evaluate.evaluate`.
    """

    def __init__(self, model: nn.Module, test: Any, device: torch.device | str | None = None) -> None:
        self.model, self.device = model, device
        pair = isinstance(test, tuple) and len(test) == 2
        self.images: Any = test[0] if pair else test
        self.labels: Any = test[1] if pair else None
        if isinstance(self.images, Iterator):
            fix = "Pass a tensor, a list of batches, or a DataLoader: every cell reads them anew."
            raise invalid_argument("test", f"a {type(test).__name__}, which is read once", "test images", fix)
        self._kept: list[Any] = []
        self._room = KEPT_BYTES
        self._marks: list[str] = []
        found = self._judged(None)
        self.dense = {name: values for name, values in found.items() if name == "accuracy"}
        self.count = len(next(iter(found.values())))
        self.digest = hashlib.sha256("".join(self._marks).encode()).hexdigest()[:16]

    def __call__(self, pruned: nn.Module) -> Values:
        """Return the figures of a pruned network.

        Args:
            pruned: the network.

        Returns:
            Name to (N,) float64: accuracy (beside labels), agreement and kl, or, of features, cosine.

        Raises:
            SnowsError: on outputs that are none, or not finite, or when the images are not those of the first time.
        """
        return self._judged(pruned)

    @torch.no_grad()
    def _judged(self, pruned: nn.Module | None) -> Values:
        """Return the figures of a network, or of the dense one itself, whose outputs are kept then."""
        found: dict[str, list[Tensor]] = {}
        network = self.model if pruned is None else pruned
        with in_eval_mode(self.model, self.device) as dense, in_eval_mode(network, self.device) as run:
            number = -1
            for number, (x, y) in enumerate(checked_batches(self.images, self.labels, 256)):
                self._check(number, x, y, first=pruned is None)
                wanted = self._kept[number] if number < len(self._kept) else self._read(dense(x), x)
                if pruned is None:
                    self._keep(number, wanted)
                got = wanted if pruned is None else self._read(run(x), x)
                for name, values in _compared(got, wanted, y).items():
                    found.setdefault(name, []).append(values)
        if number + 1 != len(self._marks):
            raise self._changed()
        if not found:
            raise invalid_argument("test", "no images", "at least one image")
        batches = len(self._marks)
        return {name: torch.cat(values) for name, values in found.items() if len(values) == batches}

    def _read(self, output: Any, x: Tensor) -> Scores | Tensor:
        if gives_features(self.model) or holds_features(output):
            return read_features(output, len(x))
        return read_scores(output, len(x))

    def _keep(self, number: int, wanted: Scores | Tensor) -> None:
        tensor = wanted.logits if isinstance(wanted, Scores) else wanted
        self._room -= tensor.numel() * tensor.element_size()
        if self._room >= 0 and number == len(self._kept):
            self._kept.append(wanted)

    def _check(self, number: int, x: Tensor, y: Tensor | None, first: bool) -> None:
        """Note which images a batch holds, or see that they are those of the first time."""
        pixels = x.flatten(1)
        mark = tensor_digest(pixels[:, :: max(1, pixels.shape[1] // PIXELS)])
        mark += "" if y is None else tensor_digest(y)
        if first:
            self._marks.append(mark)
        elif number >= len(self._marks) or self._marks[number] != mark:
            raise self._changed()

    def _changed(self) -> Exception:
        fix = "A loader must not shuffle or change them."
        return invalid_argument("test", "other images than the first time", "the same images for every cell", fix)


def _compared(got: Scores | Tensor, wanted: Scores | Tensor, labels: Tensor | None) -> Values:
    if isinstance(got, Scores) and isinstance(wanted, Scores):
        return per_image(got, wanted, labels)
    assert isinstance(got, Tensor) and isinstance(wanted, Tensor)  # one network's outputs are all of one kind
    return {"cosine": F.cosine_similarity(got, wanted).double()}
