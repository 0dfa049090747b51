"""PyTorch's two exporters to ONNX behind one call: the same names, a free number of images, and not a word printed."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import io
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snows_core.errors import invalid_argument, reason_of

EXPORTERS: Mapping[str, str] = {
    "dynamo": "PyTorch's torch.export exporter (dynamo=True)",
    "torchscript": "PyTorch's TorchScript exporter (dynamo=False)",
}
"""Name to words, in the order in which they are tried: the first is PyTorch's present one, and keeps names of weights.

The second follows one run of the network, so that it also takes what the first cannot follow; whether that one run
stands for all others is seen by comparing outputs.
"""
INPUT = "images"
OUTPUT = "outputs"
PREFIX = "network."  # of the names of parameters inside of the wrapper
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"\s*(?:consider using|Caused by:|For more information|The following call raised).*", re.DOTALL)
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Flattened(nn.Module):
    """A network that takes one tensor and answers with a tuple of tensors, whatever it answered with before.

    Args:
        network: any network of images.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the tensors of the network's answer to images (N, C, H, W), in order."""
        return tuple(tensors_of(self.network(images)).values())


def tensors_of(answer: Any) -> dict[str, Tensor]:
    """Return the tensors in what a network answers, by the names that they get in the file.

    A single tensor is called "outputs"; of several each name says where it stands.

    >>> list(tensors_of({"logits": torch.ones(1), "hidden": [torch.ones(1), None]}))
    ['outputs_logits', 'outputs_hidden_0']
    """
    if isinstance(answer, Tensor):
        return {OUTPUT: answer}
    if not isinstance(answer, dict) and isinstance(answer, Mapping):
        answer = dict(answer)  # such as those that PyTorch has not been told how to take apart
    found = {}
    for path, value in pytree.tree_flatten_with_path(answer)[0]:
        if isinstance(value, Tensor):
            place = "_".join(re.sub(r"\W+", "", str(getattr(key, "key", getattr(key, "idx", key)))) for key in path)
            found[f"{OUTPUT}_{place}" if place else OUTPUT] = value
    if not found:
        raise invalid_argument(
            "model", f"a network that answers with a {type(answer).__name__}", "a network that answers with tensors"
        )
    return found


def exportable(network: nn.Module, outputs: list[str]) -> nn.Module:
    """Return a network as both exporters take it: itself, or wrapped where it gives no tensor, or takes any number.

    Args:
        network: in eval mode.
        outputs: names of the tensors that it answers with.
    """
    parameters = list(inspect.signature(network.forward).parameters.values())
    return network if outputs == [OUTPUT] and parameters[0].kind not in _SEVERAL else Flattened(network)


def run_exporter(
    exporter: str, network: nn.Module, example: Tensor, path: Path, names: list[str], opset: int | None
) -> None:
    """Write a network into an ONNX file by one of the exporters.

    Args:
        exporter: a key of ``EXPORTERS``.
        network: from :func:`exportable`, on the CPU.
        example: two images or more (N, C, H, W): a batch of one is taken for a number that is always one.
        path: the file; weights of more than two gigabytes are put into others beside it.
        names: of the outputs.
        opset: version of ONNX's operators; None for the one that PyTorch takes.
    """
    options: dict[str, Any] = {"input_names": [INPUT], "output_names": names, "opset_version": opset, "verbose": False}
    if exporter == "dynamo":
        options |= {"dynamic_shapes": ({0: torch.export.Dim("batch")},), "external_data": False}
    else:
        options |= {"dynamic_axes": {name: {0: "batch"} for name in (INPUT, *names)}}
    fast = torch.backends.mha.get_fastpath_enabled()
    with quiet(), torch.inference_mode(False), torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # one fused operation, which TorchScript's exporter does not know
        try:
            torch.onnx.export(network, (example,), str(path), dynamo=exporter == "dynamo", **options)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let nothing be printed, warned of or logged meanwhile; what was set before is set again afterwards."""
    before = logging.root.manager.disable
    words = io.StringIO()
    with contextlib.redirect_stdout(words), contextlib.redirect_stderr(words), _mute(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)


@contextlib.contextmanager
def _mute() -> Iterator[None]:
    """Send to nowhere what PyTorch's own C++ code prints: an exporter that fails prints its whole graph."""
    with contextlib.ExitStack() as undo:
        _empty_buffers()
        for number in (1, 2):
            try:
                kept = os.dup(number)
            except OSError:  # a process without that stream
                continue
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, number)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            undo.callback(os.close, nowhere)
            os.dup2(nowhere, number)
        undo.callback(_empty_buffers)
        yield


def _empty_buffers() -> None:
    """Let C's streams write what they hold, where Python can reach them."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)


class UnfitFileError(ValueError):
    """A file that was written and does not pass; its text is the reason."""


def why_it_failed(error: BaseException) -> str:
    r"""Return what lies behind an exporter's error in one line: its own words are pages of advice.

    >>> why_it_failed(RuntimeError("No ONNX function found\n\nconsider using another"))
    'RuntimeError: No ONNX function found'
    """
    if isinstance(error, UnfitFileError):
        return str(error)
    while error.__cause__ is not None:
        error = error.__cause__
    words = _ADVICE.sub("", _COLOURS.sub("", str(error)))
    return reason_of(RuntimeError(words)).replace("RuntimeError", type(error).__name__, 1)[:150]
