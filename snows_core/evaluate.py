"""How good is a pruned network: accuracy, and the quieter measure, agreement with the dense network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snows_core.errors import bad


@dataclass(frozen=True)
class Metrics:
    """Figures of merit on one set of images.

    Attributes:
        images: how many images were seen.
        accuracy: top-1 accuracy in percent, or None without labels.
        agreement: percent of images whose top-1 class equals the reference network's, or None without a reference.
        kl: mean Kullback-Leibler divergence KL(reference || model) of the class probabilities in nats, or None.
    """

    images: int
    accuracy: float | None = None
    agreement: float | None = None
    kl: float | None = None

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the figures as a plain dictionary, for JSON and tables."""
        return asdict(self)


def _batches(images: Any, labels: Tensor | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    if isinstance(images, Tensor):
        if labels is not None and len(labels) != len(images):
            raise bad("labels", f"{len(labels)} labels", f"one per image ({len(images)})")
        for start in range(0, len(images), batch_size):
            part = slice(start, start + batch_size)
            yield images[part], None if labels is None else labels[part]
        return
    if labels is not None:
        raise bad("labels", "a tensor beside a loader", "None", "Let the loader yield (images, labels) pairs instead.")
    for batch in images:
        if isinstance(batch, list | tuple):
            yield batch[0], (batch[1] if len(batch) > 1 else None)
        else:
            yield batch, None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Metrics:
    """Measure a classifier on images, beside its labels and beside a reference network where they are given.

    Args:
        model: network that maps images (N, C, H, W) to logits (N, classes); evaluated in eval mode.
        images: tensor (N, C, H, W), or a DataLoader or iterable of ``x`` or ``(x, y)`` batches.
        labels: class indices (N,), only beside a tensor of images.
        reference: the dense network; gives agreement and KL.
        batch_size: images a batch, for a tensor of images.
        device: where to compute; default: where the model is.

    Returns:
        The figures; those that cannot be computed are None.

    Raises:
        SnowsError: on no images, or labels that do not match them.
    """
    device = torch.device(device) if device is not None else next(model.parameters()).device
    networks = [network for network in (model, reference) if network is not None]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval().to(device)
    seen = labelled = right = same = 0
    divergence = 0.0
    try:
        for x, y in _batches(images, labels, batch_size):
            logits = model(x.to(device))
            top = logits.argmax(1)
            seen += len(x)
            if y is not None:
                labelled += len(x)
                right += int((top == y.to(device)).sum())
            if reference is not None:
                target = reference(x.to(device))
                same += int((top == target.argmax(1)).sum())
                divergence += float(
                    F.kl_div(F.log_softmax(logits, 1), F.log_softmax(target, 1), reduction="sum", log_target=True)
                )
    finally:
        for module, mode in modes:
            module.training = mode
    if seen == 0:
        raise bad("images", "no images", "at least one image")
    return Metrics(
        images=seen,
        accuracy=100 * right / labelled if labelled else None,
        agreement=100 * same / seen if reference is not None else None,
        kl=divergence / seen if reference is not None else None,
    )
