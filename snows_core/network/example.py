"""A few images run through a model, to see that they fit it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from snows_core.errors import SnowsError


def run_on_example(model: torch.nn.Module, example: Tensor) -> Any:
    """Run a model on a few images to see that they fit it, and turn what torch says into one clear error."""
    try:
        with torch.no_grad():
            output = model(example.clone())  # a model may write into its image
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SnowsError(
            f"images: got shape {tuple(example.shape)} of {example.dtype}, which the model refuses ({reason}). "
            "Use the channels, size and dtype that the model was trained with."
        ) from error
    return output
