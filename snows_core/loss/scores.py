"""What a batch of outputs says about classes: for images, for pixels, and for networks of a single logit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from snows_core.errors import SnowsError, invalid_argument

SHAPES = "(N, classes), or (N,) for one logit, or (N, classes, *positions) for classes of pixels"
NO_LABEL = -100  # a pixel that does not count, in PyTorch's cross-entropy
VOID = 255  # the same in the label images of torchvision's segmentation data


@dataclass(frozen=True)
class Scores:
    """Outputs of a network in one form.

    Attributes:
        logits: (N, C, *positions), float32 or float64, finite, C at least 2. One logit z becomes the pair (0, z): its
            softmax is the Bernoulli distribution of z, its largest entry the sign of z.
        one_logit: whether the network gave one logit.
    """

    logits: Tensor
    one_logit: bool


def read_scores(output: Any, count: int, network: str = "model") -> Scores:
    """Read what a network returned, with PyTorch's convention of cross-entropy: the class axis is axis 1.

    Args:
        output: tensor of logits; a mapping or named tuple with "logits" or "out"; or any container of one tensor.
        count: N, how many images went in.
        network: "model" or "reference", for messages.

    Returns:
        The scores, in single precision at least.

    Raises:
        SnowsError: when it holds no such tensor, or one with NaN or infinite values.
    """
    logits = _tensor_of(output, network)
    shape = tuple(logits.shape)
    if not logits.is_floating_point() or not shape or shape[0] != count or logits.numel() == 0:
        raise invalid_argument(
            network,
            f"an output of shape {shape} and {logits.dtype} for {count} images",
            f"floating-point logits of shape {SHAPES}",
            "Wrap the network so that its forward returns such logits.",
        )
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if not torch.isfinite(logits).all():
        odd = int((~torch.isfinite(logits)).flatten(1).any(1).sum())
        raise SnowsError(
            f"{network}: got NaN or infinite logits for {odd} of {count} images; expected finite ones. Check the"
            " weights and the normalisation of the images; in half precision also for overflow, with model.float()."
        )
    if logits.ndim == 1:
        logits = logits.unsqueeze(1)
    if logits[0, 0].numel() == 1:  # (N, C, 1, 1) of a network without a final flatten: images, not pixels
        logits = logits.flatten(1)
    if logits.shape[1] > 1:
        return Scores(logits, False)
    return Scores(torch.cat([torch.zeros_like(logits), logits], 1), True)


def _tensor_of(output: Any, network: str) -> Tensor:
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "_asdict"):
        output = output._asdict()
    for key in ("logits", "out"):
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(found, Tensor):
            return found
    values = list(output.values()) if isinstance(output, Mapping) else output
    tensors = [value for value in values if isinstance(value, Tensor)] if isinstance(values, list | tuple) else []
    if len(tensors) == 1:
        return tensors[0]
    held = f"{len(tensors) or 'no'} tensors"
    if isinstance(output, Mapping):
        held += f" and the keys {', '.join(map(str, output))}"
    raise invalid_argument(
        network,
        f"an output of type {type(output).__name__} with {held}",
        f"one tensor of logits: {SHAPES}",
        "Wrap the network so that its forward returns the logits alone.",
    )


def read_labels(labels: Tensor, scores: Scores) -> tuple[Tensor, Tensor | None]:
    """Return class indices (N, *positions), int64, where the logits are, and which of them count (None: all).

    For pixels, the labels -100 and, for networks of 2 to 255 classes, 255 count as none.

    Args:
        labels: whole numbers (N, *positions) or (N, 1, *positions); for one logit 0 and 1 of any dtype.
        scores: what the network gave.

    Raises:
        SnowsError: on labels that are no class indices of these outputs.
    """
    n, classes, *positions = scores.logits.shape
    wanted = (n, *positions)
    if tuple(labels.shape) == (n, 1, *positions) or (not positions and labels.numel() == n == len(labels)):
        labels = labels.reshape(wanted)
    if tuple(labels.shape) != wanted:
        raise _wrong_shape(labels, scores, wanted)
    whole = not (labels.is_floating_point() or labels.is_complex())
    if not (scores.one_logit or whole) or (labels.dtype == torch.bool and classes > 2):
        fix = "If they are whole numbers, pass labels.long()."
        raise invalid_argument("labels", f"dtype {labels.dtype}", f"class indices 0 to {classes - 1} as integers", fix)
    labels = labels.long() if whole else labels
    counted = None
    if positions:
        outside = labels == NO_LABEL
        if not scores.one_logit and classes <= VOID:
            outside |= labels == VOID
        counted = ~outside if outside.any() else None
        labels = labels.masked_fill(outside, 0)
    _check_range(labels, classes, scores.one_logit)
    place = scores.logits.device
    return labels.long().to(place), None if counted is None else counted.to(place)


def _wrong_shape(labels: Tensor, scores: Scores, wanted: tuple[int, ...]) -> SnowsError:
    shape, n = tuple(labels.shape), wanted[0]
    if shape and shape[0] != n:
        return invalid_argument("labels", f"{shape[0]} labels", f"one per image ({n})")
    fix = ""
    if shape == tuple(scores.logits.shape):
        fix = "One-hot labels become class indices by labels.argmax(1)."
        if len(shape) > 2:
            fix += f" A network of one logit a pixel gives (N, 1, *positions), not {shape}."
    elif len(shape) == len(wanted) > 1:
        fix = "Bring outputs and labels to one height and width."
    return invalid_argument(
        "labels", f"shape {shape}", f"class indices of shape {wanted}, (N,) or (N, *positions)", fix
    )


def _check_range(labels: Tensor, classes: int, one_logit: bool) -> None:
    if one_logit:
        odd = labels[(labels != 0) & (labels != 1)]
        fix = "One logit tells two classes apart; a mask of 0 and 255 is divided by 255, -100 leaves a pixel out."
    else:
        odd = labels[(labels < 0) | (labels >= classes)]
        fix = "Classes are counted from 0; use the labels that the network was trained with."
    if len(odd):
        raise invalid_argument(
            "labels", f"{odd[0].item()} ({len(odd)} such labels)", f"class indices 0 to {classes - 1}", fix
        )


@dataclass
class Tally:
    """Counts over all batches; every image, or every pixel of dense outputs, weighs the same."""

    labelled: int = 0
    right: int = 0
    compared: int = 0
    same: int = 0
    divergence: float = 0.0

    def add_labels(self, scores: Scores, labels: Tensor) -> None:
        """Count right answers; see ``read_labels`` for what is refused."""
        indices, counted = read_labels(labels, scores)
        hits = scores.logits.argmax(1) == indices
        self.labelled += hits.numel() if counted is None else int(counted.sum())
        self.right += int((hits if counted is None else hits & counted).sum())

    def add_reference(self, scores: Scores, target: Scores) -> None:
        """Count equal answers and add up KL(target || scores).

        Raises:
            SnowsError: when the two networks' outputs differ in shape.
        """
        logits, wanted = _alike(scores, target)
        self.compared += logits.shape[0] * logits[0, 0].numel()
        self.same += int((logits.argmax(1) == wanted.argmax(1)).sum())
        self.divergence += float(divergence(scores, target))


def divergence(scores: Scores, target: Scores) -> Tensor:
    """Return KL(target || scores) in nats, summed over images and positions, as a tensor that autograd follows.

    Args:
        scores: what the network gave.
        target: what the dense network gave.

    Raises:
        SnowsError: when the two networks' outputs differ in shape.
    """
    log_q, log_p = (_log_softmax(values) for values in _alike(scores, target))
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def per_image(scores: Scores, target: Scores, labels: Tensor | None) -> dict[str, Tensor]:
    """Return how good each image's answer is, where a :class:`Tally` adds up; of pixels the mean over an image's.

    Args:
        scores: what the network gave.
        target: what the dense network gave.
        labels: see ``read_labels``; None where there are none.

    Returns:
        Tensors (N,), float64, on the CPU: "accuracy" (1 where the answer is right; beside labels alone), "agreement"
        (1 where it is the dense network's) and "kl", KL(target || scores) in nats.

    Raises:
        SnowsError: as ``read_labels``, or when the two networks' outputs differ in shape.
    """
    logits, wanted = _alike(scores, target)
    chosen = logits.argmax(1)
    log_q, log_p = (_log_softmax(values) for values in (logits, wanted))
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    found = {"agreement": _of_images(chosen == wanted.argmax(1)), "kl": _of_images(divergence)}
    if labels is not None:
        indices, counted = read_labels(labels, scores)
        hits = chosen == indices
        found["accuracy"] = _of_images(hits)
        if counted is not None:  # pixels without a label are neither right nor wrong
            found["accuracy"] = _of_images(hits & counted) / _of_images(counted).clamp(min=1e-12)
    return found


def _of_images(values: Tensor) -> Tensor:
    """Return one float64 number an image, the mean over its positions, on the CPU."""
    return values.flatten(1).cpu().double().mean(1) if values.ndim > 1 else values.cpu().double()


def _alike(scores: Scores, target: Scores) -> tuple[Tensor, Tensor]:
    """Return the logits of two networks, of one shape."""
    if scores.logits.shape != target.logits.shape or scores.one_logit != target.one_logit:
        shapes = [f"{tuple(s.logits.shape)}{' (one logit)' if s.one_logit else ''}" for s in (target, scores)]
        fix = "Compare with the dense network that the model was pruned from."
        raise invalid_argument("reference", f"outputs of shape {shapes[0]}", f"{shapes[1]}, as the model gives", fix)
    return scores.logits, target.logits.to(scores.logits)


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log-probabilities over axis 1, none of them -inf: 0 * inf would be NaN in the divergence."""
    return F.log_softmax(logits, 1).clamp_min(torch.finfo(logits.dtype).min / 4)
