"""What an exported file says of itself, so that it can be verified alone: pattern and zeros of each pruned layer.

It is JSON under the key "snows" of the file's own metadata.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from snows_core.result import PruneResult

METADATA_KEY = "snows"
"""The key of a file's metadata that holds its promise."""


def promise_of(result: PruneResult) -> dict[str, Any]:
    """Return what a file of a result's weights promises.

    Args:
        result: a pruned network.

    Returns:
        JSON-ready: ``pattern`` of the run, and ``layers`` by name of the weight with its layer, pattern, shape, number
        of zeros, and the digest of where its kept weights are.
    """
    pattern = str(result.manifest.get("pattern", ""))
    layers = {}
    for layer, name in result.weight_names.items():
        if layer in result.masks:
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
    """Return the SHA-256 of where a weight (out, in, ...) is not zero, as packed bits in the order of its elements.

    >>> import torch
    >>> support_digest(torch.tensor([[0.0, 2.0]])) == support_digest(torch.tensor([[-0.0, 1.0]]))
    True
    """
    return hashlib.sha256(np.packbits((weight != 0).flatten().cpu().numpy()).tobytes()).hexdigest()
