"""How good is a pruned network: accuracy and agreement with the dense one; without classes, likeness of features."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snows_core.activations.labelled import checked_batches
from snows_core.devices import resolve_device
from snows_core.errors import invalid_argument, switch
from snows_core.loss.features import FeaturePairs, gives_features, holds_features
from snows_core.loss.scores import Tally, read_scores
from snows_core.network.check_model import FLOATS, check_tensors
from snows_core.network.copies import plain_copy
from snows_core.network.example import run_on_example

if TYPE_CHECKING:
    import pandas as pd

OF_FEATURES = ("cosine", "cka", "neighbours")


@dataclass(frozen=True)
class Metrics:
    """Figures of merit on one set of images.

    Where a network classifies pixels, accuracy and agreement are percent of all pixels, and KL is the mean over them.

    Attributes:
        images: how many images were seen.
        accuracy: top-1 accuracy in percent, or None without labels.
        agreement: percent of images whose top-1 class equals the reference network's, or None without a reference.
        kl: mean Kullback-Leibler divergence KL(reference || model) of the class probabilities in nats, or None.
        cosine: of networks that give features instead of classes: mean cosine of an image's features in both, or None.
        cka: likewise: linear centred kernel alignment of the features of all images, 0 to 1, or None.
        neighbours: likewise: percent of images whose nearest other image, by cosine, is the same in both, or None.
    """

    images: int
    accuracy: float | None = None
    agreement: float | None = None
    kl: float | None = None
    cosine: float | None = None
    cka: float | None = None
    neighbours: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the figures as a plain dictionary, for JSON and tables; those of features only where there are any."""
        return {name: value for name, value in asdict(self).items() if value is not None or name not in OF_FEATURES}


def metrics_frame(dense: Metrics, pruned: Metrics | None = None) -> pd.DataFrame:
    """Return one row a network: accuracy and agreement in percent and KL in nats, or likeness of features; images."""
    import pandas as pd

    rows = {"dense": dense.as_dict()} | ({} if pruned is None else {"pruned": pruned.as_dict()})
    names = {"accuracy": "accuracy %", "agreement": "agreement %", "kl": "KL (nats)"}
    if (pruned or dense).cosine is not None:
        names = {"cosine": "cosine", "cka": "CKA", "neighbours": "same neighbour %"}
    names["images"] = "images"
    return pd.DataFrame(rows).T.rename(columns=names)[list(names.values())]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    reference: nn.Module | None = None,
    features: bool | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Metrics:
    """Measure a network on images, beside its labels and beside a reference network where they are given.

    Outputs may be logits (N, classes); one logit (N,) or (N, 1), whose sign decides between the classes 0 and 1; or
    logits of pixels (N, classes, H, W), as a segmentation network gives them. The class axis is axis 1, as in PyTorch's
    cross-entropy; transpose outputs (N, tokens, classes). In a mapping the logits stand under "logits" or "out".

    A network without a classifier gives features, one vector an image: (N, D), or "pooler_output" or "image_embeds" in
    a mapping. Beside a reference they are compared by cosine, linear CKA and nearest neighbours; labels do not count.

    Nothing of the caller's is changed: networks keep device and modes, also after an error, and images are copied for
    each network. Images take the network's floating-point dtype; the figures are computed in single precision at least.

    Args:
        model: network of images (N, C, H, W); evaluated in eval mode.
        images: tensor (N, C, H, W), or a DataLoader or iterable of batches: ``x``, ``(x, y)``, or dictionaries such as
            ``{"pixel_values": x, "labels": y}``.
        labels: class indices (N,), or (N, H, W) for pixels, where the labels 255 and -100 count as none; 0 and 1 for
            one logit. Only beside a tensor of images.
        reference: the dense network; gives agreement and KL, or the figures of features.
        features: whether outputs are features. Default: they are where the network says that it has no classes (timm's
            ``num_classes`` of 0) or returns pooled features and no logits.
        batch_size: images a batch, for a tensor of images.
        device: where to compute; default: where each network is. A network that is elsewhere is copied.

    Returns:
        The figures; those that cannot be computed are None.

    Raises:
        SnowsError: on no images, outputs or labels that are none of the above or do not match, logits that are not
            finite, or images that the network refuses.
    """
    return _measured(model, checked_batches(images, labels, batch_size), reference, features, device)[1]


@torch.no_grad()
def evaluate_both(
    model: nn.Module, reference: nn.Module, images: Iterable[Any], *, device: torch.device | str | None = None
) -> tuple[Metrics, Metrics]:
    """Measure a pruned network and its dense one in one pass, so that no image is read twice; see :func:`evaluate`.

    Args:
        model: the pruned network.
        reference: the dense one.
        images: DataLoader or iterable of batches.
        device: where to compute; default: where each network is.

    Returns:
        Metrics of the dense network (its accuracy), and of the pruned one.

    Raises:
        SnowsError: as :func:`evaluate`.
    """
    return _measured(model, checked_batches(images, None, 1), reference, None, device)


def _measured(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor | None]],
    reference: nn.Module | None,
    features: bool | None,
    device: torch.device | str | None,
) -> tuple[Metrics, Metrics]:
    """Return the metrics of the reference (empty where there is none), and of the model."""
    features = None if features is None else switch("features", features)
    tally, own, vectors, seen = Tally(), Tally(), FeaturePairs(), 0
    with contextlib.ExitStack() as networks:
        run = networks.enter_context(in_eval_mode(model, device))
        dense = None
        if reference is not None:
            dense = networks.enter_context(in_eval_mode(reference, device, "reference"))
        for x, y in batches:
            output, wanted = run(x), None if dense is None else dense(x)
            seen += len(x)
            if features is None:
                features = gives_features(model) or holds_features(output)
            if features:
                vectors.add(output, wanted, len(x))
                continue
            scores = read_scores(output, len(x))
            if y is not None:
                tally.add_labels(scores, y)
            if wanted is not None:
                target = read_scores(wanted, len(x), "reference")
                tally.add_reference(scores, target)
                if y is not None:
                    own.add_labels(target, y)
    if seen == 0:
        raise invalid_argument("images", "no images", "at least one image")
    if features:
        return Metrics(seen), Metrics(seen, **vectors.compared())
    return _metrics(own, seen), _metrics(tally, seen)


def _metrics(tally: Tally, images: int) -> Metrics:
    return Metrics(
        images=images,
        accuracy=100 * tally.right / tally.labelled if tally.labelled else None,
        agreement=100 * tally.same / tally.compared if tally.compared else None,
        kl=max(0.0, tally.divergence / tally.compared) if tally.compared else None,
    )


@contextlib.contextmanager
def in_eval_mode(
    model: nn.Module, device: torch.device | str | None = None, name: str = "model"
) -> Iterator[Callable[[Tensor], Any]]:
    """Give a function from images (N, C, H, W) to what the network returns, and afterwards the network as it was.

    Args:
        model: the network; copied only where ``device`` is not where it is.
        device: where to compute; default: where the network is.
        name: "model" or "reference", for messages.

    Yields:
        The function; its images are copied to the network's device and floating-point dtype.

    Raises:
        SnowsError: when this is no network, or there is no such device.
    """
    check_tensors(model, name)
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    model_device = tensors[0].device if tensors else torch.device("cpu")
    place = resolve_device(device, model_device)
    dtype = next((t.dtype for t in tensors if t.dtype in FLOATS), None)
    if device is not None and any(t.device != place for t in tensors):
        model = _copied(model, name).to(place)
    modes = [(module, module.training) for module in model.modules()]

    def run(images: Tensor) -> Any:
        kind = dtype if dtype is not None and images.is_floating_point() else images.dtype
        return run_on_example(model, images.to(place, kind), name)

    try:
        model.eval()
        yield run
    finally:
        for module, mode in modes:
            module.training = mode


def _copied(model: nn.Module, name: str) -> nn.Module:
    try:
        return plain_copy(model)
    except Exception as error:  # a lock, a file, a generator: each refuses in its own way
        raise invalid_argument(
            name,
            f"a {type(model).__name__} that is not on the device and cannot be copied there ({error})",
            "a network that copy.deepcopy copies",
            "Move it yourself with model.to(device), and leave device out.",
        ) from error
