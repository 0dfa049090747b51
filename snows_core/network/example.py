"""A few images run through a model, to see that they fit it, and that another model answers them alike."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snows_core.errors import SnowsError, invalid_argument, reason_of
from snows_core.network.check_model import formats_fault

# Largest change of an output that may pass for rounding, as a share of the largest output.
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
ROUNDING_HALF = 0.1


def run_on_example(model: torch.nn.Module, example: Tensor, name: str = "model") -> Any:
    """Run a model on a few images to see that they fit it, and turn what it says into one clear error.

    Args:
        model: the network.
        example: images (N, C, H, W); they are copied, because a model may write into its image.
        name: of the model's argument, for messages.

    Returns:
        What the model answers.

    Raises:
        SnowsError: about ``images`` where the model refuses them, as by a wrong number of channels; about the model
            where its forward fails for another reason.
    """
    try:
        with torch.no_grad():
            return model(example.clone())
    except (torch.OutOfMemoryError, SnowsError):
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        fault = formats_fault(model)
        if isinstance(error, RecursionError | NotImplementedError) or fault:
            got = f"a network whose forward fails ({lines[0]})" if not fault else f"{fault} ({lines[0]})"
            raise invalid_argument(name, got, "a network that answers to images", "Try model(images[:2]).") from error
        raise SnowsError(
            f"images: got shape {tuple(example.shape)} of {example.dtype}, which the model refuses ({lines[0]}). "
            "Use the channels, size and dtype that the model was trained with."
        ) from error
    except Exception as error:  # anybody's forward can fail in any way
        got = f"a network whose forward fails ({reason_of(error)})"
        raise invalid_argument(name, got, "a network that answers to images", "Try model(images[:2]).") from error


class Change(NamedTuple):
    """How far the answers of two networks lie apart.

    Attributes:
        largest: largest difference of an output, as a share of the largest output.
        passes: whether it passes for rounding in the number format of the outputs.
    """

    largest: float
    passes: bool


def same_function(model: nn.Module, other: nn.Module, example: Tensor) -> Change:
    """Compare what two networks answer to a few images.

    Args:
        model: a network in eval mode.
        other: another one, which answers with tensors of the same shapes.
        example: images (N, C, H, W); they take the type of the model's parameters.

    Returns:
        How far the answers lie apart.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), example.dtype)
    answers = [pytree.tree_leaves(run_on_example(one, example.to(dtype))) for one in (model, other)]
    largest, passes = 0.0, True
    for value, again in zip(*answers, strict=True):
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            gap = float((value - again).abs().max()) / max(float(value.abs().max()), torch.finfo(value.dtype).tiny)
            largest = max(largest, gap)
            passes = passes and gap <= ROUNDING.get(value.dtype, ROUNDING_HALF)  # not so for NaN
    return Change(largest, passes)
