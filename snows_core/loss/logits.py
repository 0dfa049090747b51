"""The whole network's logits at weights other than its own, followed by autograd where these are free."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from snows_core.activations.cache import run_keeping
from snows_core.loss.scores import Scores, read_scores
from snows_core.network.graph import Network, Values


def network_scores(network: Network, x: Tensor, weights: Mapping[str, Tensor], who: str) -> Scores:
    """Run the whole network, with a graph where some weights are given.

    Args:
        network: the traced network.
        x: images (n, C, H, W), on its device.
        weights: parameter name to weight, in place of the network's own.
        who: asks for logits, for messages.

    Returns:
        The logits (n, classes, *positions).

    Raises:
        SnowsError: where the network's output is not one tensor of finite logits.
    """
    values: Values = {network.image: x}
    answers = [leaf for leaf in pytree.tree_leaves(network.output) if isinstance(leaf, fx.Node)]
    with torch.set_grad_enabled(bool(weights)):
        run_keeping(network, network.nodes[1:], values, answers, weights)
        return read_scores(fx.map_arg(network.output, values.__getitem__), len(x), who)


def free_copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of weights that autograd follows."""
    return {name: weight.detach().clone().requires_grad_(True) for name, weight in weights.items()}


def add_squared_gradients(
    total: dict[str, Tensor], logits: Tensor, free: Mapping[str, Tensor], signal: Tensor, keep_graph: bool
) -> None:
    """Add the squares of the gradients that one vector at the logits gives.

    Args:
        total: parameter name to the sum so far, changed in place.
        logits: (n, classes, *positions), followed by autograd.
        free: parameter name to the weight that autograd follows, in the order of ``total``.
        signal: of the logits' shape.
        keep_graph: whether another vector follows.
    """
    found = torch.autograd.grad(logits, list(free.values()), signal, retain_graph=keep_graph)
    for name, gradient in zip(free, found, strict=True):
        total[name] += gradient.square()
