"""DIMAP: weights scored by their share in what a module of a vision transformer knows, without any image.

He & Zhou 2024, "Data-independent Module-Aware Pruning for Hierarchical Vision Transformers": magnitudes of different
layers cannot be compared, and those of one module (attention, MLP, patch merging) can. Taking away the weights of a
module up to one of them distorts its output by no more than the share of their Frobenius norm, so a weight is scored by
its square relative to all squares of the module that are not smaller. That is the score of LAMP
(:func:`snows_core.masks.allocation.lamp_scores`) over modules in the place of layers. From memory of the paper, whose
text was not at hand, so constants and the exact normalisation may differ.

Modules are known by their names: the outermost part of a layer's name that speaks of attention or of an MLP. Every
other layer is a module of its own: patch merging, convolutions, and so a whole ConvNet, where it is LAMP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.masks.allocation import lamp_scores
from snows_core.masks.patterns import Masks
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin

WORDS = ("attn", "attention", "mlp", "ffn", "feed_forward", "feedforward")


class ModuleAware(NetworkMethod):
    """Keep the weights of largest share in the squares of their module; they stay as they are."""

    origin = Origin(
        paper="He & Zhou: Data-independent Module-Aware Pruning for Hierarchical Vision Transformers",
        year=2024,
        needs="nothing",
        cost="a sort of the p weights",
        limits="blind to the input; modules are told by names, without them it is LAMP; in one layer it is magnitude",
    )

    updates_weights = False
    reads_labels = False

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the shares of a ``problem``."""
        layers: dict[str, list[str]] = {}
        for layer in problem.weights:
            layers.setdefault(module_of(layer), []).append(layer)
        scores: dict[str, Tensor] = {}
        for names in layers.values():
            weights = [problem.weights[name] for name in names]
            shares = lamp_scores(torch.cat([weight.flatten() for weight in weights]))
            scores |= dict(zip(names, torch.split(shares, [weight.numel() for weight in weights]), strict=True))
        return problem.masks(problem.vector(scores))


def module_of(layer: str) -> str:
    """Return the name of the module that a layer is compared within: itself where it is in none.

    >>> module_of("layers.1.blocks.0.attn.qkv"), module_of("layers.1.downsample.reduction")
    ('layers.1.blocks.0.attn', 'layers.1.downsample.reduction')
    """
    parts = layer.split(".")
    for place, part in enumerate(parts):
        if any(word in part.lower() for word in WORDS):
            return ".".join(parts[: place + 1])
    return layer
