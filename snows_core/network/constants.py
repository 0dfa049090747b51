"""Places of a network's values that hold one number, whatever the image: behind a row of zeros, and what follows it.

That a place is constant is concluded from the weights: an output with a row of zeros is its bias, and an operation that
treats channel by channel makes a constant of a constant. The number itself is read off a run, where it also shows
whether it is the same at all positions (a convolution or pooling with borders of zeros changes it there).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Layer, Network

ROUNDING = 1e-5  # vectorised functions round their last few numbers in another way: a share of the number itself


class Constants:
    """What is constant along the channel axis of each value.

    Args:
        network: the traced network.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._claims: dict[fx.Node, Tensor] = {}
        self._values: dict[fx.Node, Tensor] = {}
        self._zero: dict[fx.Node, Tensor] = {}

    def claim(self, node: fx.Node, constant: Tensor) -> None:
        """Claim that places of the value of a ``node`` are ``constant``, (places,) bool."""
        self._claims[node] = constant

    def begin(self, node: fx.Node) -> None:
        """Claim the outputs of the layer at a ``node`` whose rows are zero."""
        self._claims[node] = self._zero_rows(node)

    def _zero_rows(self, node: fx.Node) -> Tensor:
        layer = next(layer for layer in self.network.layers if layer.node is node)
        return ~self.network.weight(layer).flatten(1).any(1)

    def follow(self, node: fx.Node, source: fx.Node, layer: Layer | None) -> None:
        """Claim what an operation makes of constant channels.

        Args:
            node: the operation.
            source: what it reads.
            layer: the depthwise convolution that it is, if it is one.
        """
        claim = self._claims.get(source)
        if layer is None:
            if claim is not None:
                self._claims[node] = claim  # stretched to the channels behind the operation in `note`
            return
        weight = self.network.weight(layer)
        times = len(weight) // geometry_of(node, weight).groups
        inputs = torch.zeros(len(weight) // times, dtype=torch.bool) if claim is None else claim.cpu()
        if not has_no_borders(node, weight):
            inputs = inputs & self._zero.get(source, torch.zeros_like(inputs))
        self._claims[node] = inputs.repeat_interleave(times) | self._zero_rows(node).cpu()

    def join(self, node: fx.Node, sources: Sequence[fx.Node], is_product: bool) -> None:
        """Claim what is constant in all sources, and in a product what is zero in one."""
        nothing = next((torch.zeros_like(self._claims[s]) for s in sources if s in self._claims), None)
        if nothing is None:
            return
        claims = [self._claims.get(source, nothing).cpu() for source in sources]
        claim = torch.stack(claims).all(0)
        if is_product:
            claim = claim | torch.stack([self._zero.get(source, nothing).cpu() for source in sources]).any(0)
        self._claims[node] = claim

    def note(self, node: fx.Node, value: Tensor, axis: int) -> None:
        """Read the numbers of a value off a run, and keep those claims that hold at all images and positions.

        Args:
            node: whose value it is.
            value: of a few images.
            axis: along which its channels lie.
        """
        claim = self._claims.get(node)
        if claim is None:
            return
        rows = value.detach().movedim(axis, 0).flatten(1)  # (places, numbers)
        claim = claim.to(rows.device)
        if len(claim) != len(rows):  # a flattening: each channel became several places
            claim = claim.repeat_interleave(len(rows) // len(claim))
        low, high = rows.amin(1), rows.amax(1)
        claim = claim & (high - low <= ROUNDING * high.abs())
        self._claims[node], self._values[node] = claim.cpu(), high.cpu()
        self._zero[node] = (claim & (low == 0) & (high == 0)).cpu()

    def of(self, node: fx.Node, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return which units of a value are constant (units,), and their numbers (units, n).

        Args:
            node: whose value it is.
            places: (units, n) places of each unit along the channel axis.
        """
        if node not in self._values:
            return torch.zeros(len(places), dtype=torch.bool), torch.zeros(places.shape)
        return self._claims[node][places].all(1), self._values[node][places]


def has_no_borders(node: fx.Node, weight: Tensor) -> bool:
    """Tell whether a layer adds no zeros around its input.

    Args:
        node: a convolution or linear layer.
        weight: its weight.

    Returns:
        False, too, for convolutions of one or three dimensions.
    """
    if weight.ndim not in (2, 4):
        return False
    geometry = geometry_of(node, weight)
    return geometry.padding in ("valid", (0, 0)) or (geometry.padding == "same" and geometry.kernel == (1, 1))
