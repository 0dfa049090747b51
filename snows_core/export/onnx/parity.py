"""A network in PyTorch beside its ONNX file in ONNX Runtime, on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snows_core.activations.calibration import near_equal
from snows_core.export.onnx.exporters import INPUT, OUTPUT, UnfitFileError, tensors_of
from snows_core.network.example import run_on_example

LARGEST_BATCH = 32
_NUMBERS = 2**22  # in the images of a batch
_SMALLEST_BATCH = 3  # beside one image, and the two that the network was exported with
LOGITS = ("logits", "out")
"""Names under which networks with several outputs answer with their classes."""


@dataclass
class Parity:
    """How far the outputs of a file lie from the network's.

    Attributes:
        difference: largest absolute difference of an output.
        relative: the same as a share of the largest absolute value of that output, over all images; of several outputs
            the largest.
        agreement: percent of images (of pixels, where these are classified) with the same top-1 class.
        images: how many there were.
        batches: sizes of the batches, each once.
    """

    difference: float = 0.0
    relative: float = 0.0
    agreement: float = 100.0
    images: int = 0
    batches: list[int] = field(default_factory=list)


@torch.no_grad()
def compare(path: Path, network: nn.Module, images: Sequence[Tensor], dtype: torch.dtype) -> Parity:
    """Run a file under ONNX Runtime and a network under PyTorch, both on the CPU, one image alone and then batches.

    Args:
        path: the ONNX file.
        network: in eval mode, on the CPU, in the number format of the file.
        images: parts (n, C, H, W).
        dtype: of the images that the file takes.

    Returns:
        How far they lie apart.

    Raises:
        UnfitFileError: when the outputs are others in number, shape or kind.
    """
    session = session_of(path)
    gaps, scales, same, asked, sizes = dict[str, float](), dict[str, float](), 0, 0, set[int]()
    for batch, count in _batches(images):
        batch = batch.detach().to("cpu", dtype).contiguous()
        wanted = {name: value.numpy() for name, value in tensors_of(run_on_example(network, batch)).items()}
        given = session.run(None, {INPUT: batch.numpy()})
        if len(given) != len(wanted):
            raise UnfitFileError(f"{len(given)} outputs where the network has {len(wanted)}")
        chosen = _of_classes(list(wanted))
        for value, (name, reference) in zip(given, wanted.items(), strict=True):
            if value.shape != reference.shape:
                raise UnfitFileError(f"'{name}' of shape {value.shape} where the network's is {reference.shape}")
            gap, scale = _gap(value, reference)
            gaps[name], scales[name] = max(gap, gaps.get(name, 0.0)), max(scale, scales.get(name, 0.0))
            if name == chosen and count:
                equal = _classes(value[:count]) == _classes(reference[:count])
                same, asked = same + int(equal.sum()), asked + equal.size
        sizes.add(len(batch))
    tiny = float(np.finfo(np.float32).tiny)
    return Parity(
        max(gaps.values()),
        max(gap / max(scales[name], tiny) for name, gap in gaps.items()),
        100 * same / asked if asked else 100.0,
        sum(map(len, images)),
        sorted(sizes),
    )


def session_of(path: Path) -> Any:
    """Return ONNX Runtime's session of a file on the CPU, as a user would make it, but silent."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _batches(images: Sequence[Tensor]) -> Iterator[tuple[Tensor, int]]:
    """Yield the first image alone, then all others in batches; of too few some come again, and do not count."""
    size = max(_SMALLEST_BATCH, min(LARGEST_BATCH, _NUMBERS // images[0][0].numel()))
    first, rest = images[0][:1], [images[0][1:], *images[1:]]
    yield first, 1
    if sum(map(len, rest)) < _SMALLEST_BATCH:
        few = torch.cat(rest)
        again = torch.cat([few, first.repeat(_SMALLEST_BATCH - len(few), *[1] * (first.ndim - 1))])
        yield again, len(few)
        return
    for part in (part for part in rest if len(part)):
        start = 0
        for length in near_equal(len(part), size):
            yield part[start : start + length], length
            start += length


def _gap(value: Any, reference: Any) -> tuple[float, float]:
    """Return the largest difference of two arrays, and the largest number in the second; NaN equals NaN alone."""
    value, reference = value.astype(np.float64), reference.astype(np.float64)
    if not reference.size:
        return 0.0, 0.0
    same = (value == reference) | (np.isnan(value) & np.isnan(reference))
    with np.errstate(invalid="ignore"):
        gap = np.where(same, 0.0, np.abs(value - reference))
    finite = np.abs(reference[np.isfinite(reference)])
    return float(np.nan_to_num(gap, nan=np.inf).max()), float(finite.max()) if finite.size else 0.0


def _of_classes(names: list[str]) -> str:
    return next((f"{OUTPUT}_{key}" for key in LOGITS if f"{OUTPUT}_{key}" in names), names[0])


def _classes(scores: Any) -> Any:
    """Return the class of each image, or of each pixel: axis 1 is of classes; one logit decides by its sign."""
    if scores.ndim < 2 or scores.shape[1] == 1:
        return scores > 0
    return scores.argmax(1)
