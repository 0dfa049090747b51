"""What a file of pruned weights says of itself, so that it can be verified alone."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from snows_core.result import PruneResult

KEY = "snows"
"""Under which a promise stands in the metadata of a file, as JSON."""


def promise_of(result: PruneResult) -> dict[str, Any]:
    """Return what the weights of a result promise: the pattern, and for each pruned layer where its zeros are.

    Args:
        result: of a run, or loaded.

    Returns:
        ``pattern`` and ``layers``: weight name to layer, pattern, shape, zeros and support.
    """
    pattern = str(result.manifest.get("pattern", "unknown"))
    pruned = result.report.loc[result.report["status"] == "pruned", "layer"]
    layers = {}
    for layer in pruned:
        name = result.weight_names[layer]
        weight = result.state[name]
        layers[name] = {
            "layer": layer,
            "pattern": pattern,
            "shape": list(weight.shape),
            "zeros": int((weight == 0).sum()),
            "support": support_digest(weight),
        }
    return {"pattern": pattern, "layers": layers}


def support_digest(weight: Tensor) -> str:
    """Return the SHA-256 of where a weight is not zero, in PyTorch's orientation (out, in, kh, kw), packed in bits."""
    support = (weight.detach().cpu() != 0).flatten().numpy()
    return hashlib.sha256(np.packbits(support).tobytes()).hexdigest()
