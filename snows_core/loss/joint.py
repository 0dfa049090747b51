"""The joint loss of refinement: the pruned network held against the dense one, everywhere at once.

    sum over taps t of  mean (f_t(x; theta) - f_t(x; theta_dense))^2 / variance of f_t(x; theta_dense),

the variance taken over the calibration images, with taps at every residual addition (every activation where there is
none) and at the output.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from snows_core.activations.cache import run_keeping
from snows_core.devices import batch_bytes, widest
from snows_core.loss.graph_bytes import saved_bytes
from snows_core.network.graph import Network, Values
from snows_core.network.operations import Kind, is_addition

PROBED = 2  # images whose graph tells what an image takes


def joint_taps(network: Network) -> list[fx.Node]:
    """Return where dense and pruned network are compared: the residual stream (else activations), and the output.

    The residual stream is observed at its additions, behind the activation that follows one, if any (ResNet).
    """
    depends = {network.image}
    for node in network.nodes[1:]:
        if not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    additions = [n for n in network.nodes if is_addition(n) and all(s in depends for s in n.args[:2])]
    taps = [_behind_activation(network, node) for node in additions]
    if not taps:
        taps = [node for node, kind in network.kinds.items() if kind is Kind.ACTIVATION and node in depends]
    outputs = [leaf for leaf in pytree.tree_leaves(network.output) if isinstance(leaf, fx.Node)]
    return list(dict.fromkeys([*taps, *outputs]))


def _behind_activation(network: Network, node: fx.Node) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and network.kinds.get(users[0]) is Kind.ACTIVATION else node


class JointLoss:
    """The loss at the top of this file, a few images at a time, so that memory does not grow with their number.

    Args:
        network: the traced dense network.
        images: calibration images, from which each tap's variance is taken.
        state: parameter name to value, used once to see what the graph of two images takes.
    """

    def __init__(self, network: Network, images: Tensor, state: Mapping[str, Tensor]) -> None:
        self.network, self.taps = network, joint_taps(network)
        self.device = next(network.module.parameters()).device
        self.variances: dict[fx.Node, Tensor] = {}
        with saved_bytes(network) as storages, torch.enable_grad():
            free = {name: value.detach().requires_grad_(True) for name, value in state.items()}
            loss = self._squares(images[:PROBED].to(self.device), free)
        graph = sum(storages.values()) / min(PROBED, len(images))
        del loss
        self.piece = max(1, int(batch_bytes(self.device) / max(graph, 1.0)))
        self._measure(images)

    def _dense(self, x: Tensor) -> Values:
        values: Values = {self.network.image: x}
        with torch.no_grad():
            run_keeping(self.network, self.network.nodes[1:], values, self.taps)
        return {tap: values[tap] for tap in self.taps if isinstance(values[tap], Tensor)}

    def _measure(self, images: Tensor) -> None:
        """Take each tap's variance over the images."""
        sums: dict[fx.Node, Tensor] = {}
        for x in torch.split(images, self.piece):
            for tap, value in self._dense(x.to(self.device)).items():
                wide = value.to(widest(self.device))
                # (3,): sum, sum of squares, and count of the values of a tap
                part = torch.stack([wide.sum(), wide.square().sum(), wide.new_tensor(float(wide.numel()))])
                sums[tap] = sums.get(tap, 0) + part
        for tap, (first, second, count) in sums.items():
            self.variances[tap] = (second / count - (first / count) ** 2).clamp(min=1e-12)

    def _squares(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over taps and images of the mean squared error of an image relative to the variance."""
        dense = self._dense(x)
        values: Values = {self.network.image: x}
        run_keeping(self.network, self.network.nodes[1:], values, self.taps, state)
        terms = [  # a scalar a tap; x is (n, C, H, W)
            (values[tap] - target).square().mean() / self.variances.get(tap, torch.ones(())).to(target) * len(x)
            for tap, target in dense.items()
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def value(self, images: Tensor, state: Mapping[str, Tensor]) -> float:
        """Return the loss on images, wherever they are, with the parameters in ``state`` in place of the dense ones."""
        parts = torch.split(images, self.piece)
        return sum(float(self._squares(x.to(self.device), state)) for x in parts) / len(images)

    def backward(self, images: Tensor, state: Mapping[str, Tensor]) -> None:
        """Add the gradient of the loss on ``images`` to the parameters in ``state``, in pieces that fit."""
        while True:
            try:
                for x in torch.split(images, self.piece):
                    with torch.enable_grad():
                        torch.autograd.backward(self._squares(x, state) / len(images))
                return
            except torch.OutOfMemoryError:
                if self.piece == 1:
                    raise
            self.piece = -(-self.piece // 2)
            for value in state.values():
                value.grad = None
