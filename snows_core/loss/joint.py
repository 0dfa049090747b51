"""The joint loss of refinement: the pruned network held against the dense one, everywhere at once.

    sum over taps t of  mean (f_t(x; theta) - f_t(x; theta_dense))^2 / variance of f_t(x; theta_dense),

the variance taken over the calibration images, with taps at every residual addition (every activation where there is
none) and at the output. It is convex in what the taps show, which its Gauss-Newton matrix rests on
(:mod:`snows_core.loss.joint_curvature`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from snows_core.devices import batch_bytes, widest
from snows_core.distributed import ALONE, Processes
from snows_core.errors import invalid_argument
from snows_core.loss.curvature import random_signs
from snows_core.loss.graph_bytes import saved_bytes
from snows_core.loss.joint_forward import JointForward
from snows_core.network.graph import Network
from snows_core.network.operations import Kind, is_addition

PROBED = 2  # images whose graph tells what an image takes


def joint_taps(network: Network) -> list[fx.Node]:
    """Return where dense and pruned network are compared: the residual stream (else activations), and the output.

    The residual stream is observed at its additions, behind the activation that follows one, if any (ResNet). What
    does not depend on the image is not observed.
    """
    depends = {network.image}
    for node in network.nodes[1:]:
        if not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    additions = [n for n in network.nodes if is_addition(n) and all(s in depends for s in n.args[:2])]
    taps = [_behind_activation(network, node) for node in additions]
    if not taps:
        taps = [node for node, kind in network.kinds.items() if kind is Kind.ACTIVATION and node in depends]
    outputs = [leaf for leaf in pytree.tree_leaves(network.output) if isinstance(leaf, fx.Node) and leaf in depends]
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
        processes: who share all images that this loss is asked about: each is given all, and looks at its own.

    Attributes:
        taps: where both networks are compared: those of :func:`joint_taps` that show numbers.
        graph_bytes: what the graph of one image takes.
        piece: images whose graph is held at a time.

    Raises:
        SnowsError: where no tap shows numbers that follow the image and the free parameters.
    """

    def __init__(
        self, network: Network, images: Tensor, state: Mapping[str, Tensor], processes: Processes = ALONE
    ) -> None:
        self.processes = processes
        self.device = next(network.module.parameters()).device
        self.forward = JointForward(network, joint_taps(network))
        self.variances: dict[fx.Node, Tensor] = {}
        self.shapes: list[torch.Size] = []  # of what the taps show for one image
        probe = images[:PROBED].to(self.device)
        self.taps = self._with_numbers(probe)
        self.forward = JointForward(network, self.taps)
        self.graph_bytes = self._graph_bytes(network, probe, state)
        self.piece = max(1, int(batch_bytes(self.device) / max(self.graph_bytes, 1.0)))
        self._measure(images)

    def _with_numbers(self, probe: Tensor) -> list[fx.Node]:
        values = dict(zip(self.forward.taps, self.targets(probe), strict=True))
        found = [tap for tap, value in values.items() if isinstance(value, Tensor) and value.is_floating_point()]
        if not found:
            kinds = sorted({_words(value) for value in values.values()})
            raise _nothing_to_compare(f"no residual addition, no activation, and {' and '.join(kinds) or 'no output'}")
        self.shapes = [values[tap][:1].shape for tap in found]
        return found

    def _graph_bytes(self, network: Network, probe: Tensor, state: Mapping[str, Tensor]) -> float:
        """Return what the graph of one more image takes; what it holds of weights does not grow with images."""
        free = {name: value.detach().requires_grad_(True) for name, value in state.items()}
        sizes = []
        for count in range(1, len(probe) + 1):
            with saved_bytes(network) as storages, torch.enable_grad():
                loss = self._squares(probe[:count], free)
            sizes.append(sum(storages.values()))
        if state and not loss.requires_grad:
            raise _nothing_to_compare("outputs that pass no gradient to the weights")
        return float(sizes[-1] - sum(sizes[:-1]))

    @torch.no_grad()
    def targets(self, x: Tensor) -> list[Tensor]:
        """Run the dense network.

        Args:
            x: images of one piece, (n, C, H, W), on its device.

        Returns:
            What the taps show, one tensor each.
        """
        return self.forward(x, {})

    def outputs(self, x: Tensor, state: Mapping[str, Tensor]) -> list[Tensor]:
        """Run the network with other parameters; autograd follows them.

        Args:
            x: images of one piece, (n, C, H, W), on its device.
            state: parameters in place of the dense ones, by name.

        Returns:
            What the taps show, one tensor each.
        """
        return self.forward(x, state)

    def total(self, outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
        """Return the loss of one piece, summed over its images, as a convex function of what the taps show.

        Args:
            outputs: what the taps show.
            targets: what the dense network's show.

        Returns:
            A scalar.
        """
        terms = []
        for tap, output, target in zip(self.taps, outputs, targets, strict=True):
            variance = self.variances.get(tap, torch.ones(())).to(target)
            terms.append(F.mse_loss(output, target) / variance * len(target))  # a scalar
        return torch.stack(terms).sum()

    def signals(self, outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
        """Draw random signals e at the taps with ``E[e e'] = C``, the Hessian of :meth:`total` in what they show.

        Args:
            outputs: what the taps show for images of one piece.
            generator: source of randomness, drawn on its own device.

        Returns:
            One tensor a tap, of the shape of what it shows.
        """
        # Image by image, so that the pieces that images come in change nothing.
        images = [[random_signs(output[i : i + 1], generator) for output in outputs] for i in range(len(outputs[0]))]
        return [
            torch.cat(signs) * (2 / (self.variances[tap].to(output) * (output.numel() / len(output)))).sqrt()
            for tap, output, signs in zip(self.taps, outputs, zip(*images, strict=True), strict=True)
        ]

    def pass_over(self, images: int, generator: torch.Generator) -> None:
        """Draw from a ``generator`` the signals of so many ``images`` of another process, to go on behind them."""
        for shape in images * self.shapes:
            random_signs(torch.empty(shape), generator)

    def _measure(self, images: Tensor) -> None:
        """Take each tap's variance over the images."""
        sums: dict[fx.Node, Tensor] = {}
        for x in self.pieces(images):
            for tap, value in zip(self.taps, self.targets(x), strict=True):
                wide = value.to(widest(self.device))
                # (3,): sum, sum of squares, and count of the values of a tap
                part = torch.stack([wide.sum(), wide.square().sum(), wide.new_tensor(float(wide.numel()))])
                sums[tap] = sums.get(tap, 0) + part
        nothing = torch.zeros(3, dtype=widest(self.device), device=self.device)  # of a process without images
        own = torch.stack([sums.get(tap, nothing) for tap in self.taps])
        for tap, (first, second, count) in zip(self.taps, self.processes.total(own), strict=True):
            self.variances[tap] = (second / count - (first / count) ** 2).clamp(min=1e-12)

    def pieces(self, images: Tensor) -> Iterator[Tensor]:
        """Yield this process's part of images (N, C, H, W) in pieces whose graphs fit, on the device."""
        own = self.processes.own(images)
        return (x.to(self.device) for x in torch.split(own, self.piece) if len(x))

    def _squares(self, x: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the sum over taps and images of the mean squared error of an image relative to the variance."""
        return self.total(self.outputs(x, state), self.targets(x))

    @torch.no_grad()
    def value(self, images: Tensor, state: Mapping[str, Tensor]) -> float:
        """Return the loss on images, wherever they are, with the parameters in ``state`` in place of the dense ones."""
        own = sum(float(self._squares(x, state)) for x in self.pieces(images))
        return self.processes.total_number(own) / len(images)

    def backward(self, images: Tensor, state: Mapping[str, Tensor]) -> float:
        """Add the gradient of the loss on ``images`` to the parameters in ``state``, in pieces that fit.

        Returns:
            The loss.
        """
        while True:
            total = 0.0
            try:
                for x in self.pieces(images):
                    with torch.enable_grad():
                        part = self._squares(x, state) / len(images)
                        torch.autograd.backward(part)
                    total += float(part.detach())
                self._add_up(state)
                return self.processes.total_number(total)
            except torch.OutOfMemoryError:
                if self.piece == 1:
                    raise
            self.piece = -(-self.piece // 2)
            for value in state.values():
                value.grad = None

    def _add_up(self, state: Mapping[str, Tensor]) -> None:
        """Let the gradient of every parameter be the sum over processes, zero where none has reached it."""
        if self.processes.several:
            own = [torch.zeros_like(value) if value.grad is None else value.grad for value in state.values()]
            for value, gradient in zip(state.values(), self.processes.totals(own), strict=True):
                value.grad = torch.empty_like(value).copy_(gradient)

    def gradient(self, images: Tensor, state: Mapping[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
        """Return the loss on ``images``, and its gradient in every parameter in ``state``, by name."""
        leaves = {name: value.detach().requires_grad_(True) for name, value in state.items()}
        loss = self.backward(images, leaves)
        return loss, {n: torch.zeros_like(v) if v.grad is None else v.grad for n, v in leaves.items()}


def _words(value: object) -> str:
    return f"an output of {value.dtype}" if isinstance(value, Tensor) else f"an output of type {type(value).__name__}"


def _nothing_to_compare(got: str) -> Exception:
    expected = "one of them that follows the image in floating-point numbers"
    return invalid_argument("refine", f"a network with {got}", expected, "Leave refine at 0 for this network.")
