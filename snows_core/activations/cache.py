"""Calibration images on their way through a network: advanced layer by layer, each node run once per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar, overload

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from snows_core.activations.offload import DiskTensor
from snows_core.network.graph import Network, Segment, Values
from snows_core.network.liveness import Liveness
from snows_core.network.residual import Restart


class ActivationCache:
    """The live values of a network at one cut, for every calibration batch.

    A cache starts at the images and only moves forward: :meth:`advance` runs the nodes between two cuts once, with the
    layer weights known by then, and forgets what no later node reads. Over a whole sweep that is one forward pass.

    Args:
        network: the traced network.
        batches: image batches (N_i, C, H, W); they rest where they are.
        storage: where values rest between uses: a device, "disk", or None for where they were computed.
        pin: let what rests in host memory rest in pinned memory, from which a GPU reads without waiting.

    Attributes:
        weights: parameter name to tensor, in place of the dense weights, for nodes yet to be run.
        needed_until: nodes whose values are kept after their last use in the network, and the index of the layer at
            which they are needed for the last time (targets of a cache that runs ahead); see :meth:`forget`.
        position: index in ``network.nodes`` of the first node not yet run.
        executed: how many nodes were run, summed over batches; for tests and reports.
    """

    def __init__(
        self,
        network: Network,
        batches: Sequence[Tensor],
        storage: torch.device | str | None = None,
        pin: bool = True,
    ) -> None:
        self.network = network
        self.storage, self.pin = storage, pin
        self.values: list[Values] = [{network.image: batch} for batch in batches]
        self.sizes = [len(batch) for batch in batches]
        self.weights: dict[str, Tensor] = {}
        self.needed_until: dict[fx.Node, int] = {}
        self.position = 1
        self.executed = 0

    def _rest(self, value: Any) -> Any:
        if self.storage is None:
            return value
        if self.storage == "disk":
            return pytree.tree_map_only(Tensor, DiskTensor, value)
        return move(value, self.storage, self.pin)

    @property
    def rests_elsewhere(self) -> bool:
        """Whether values rest anywhere else than where the network computes."""
        return self.storage is not None and str(self.storage) != str(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.module.parameters()).device

    @torch.no_grad()
    def advance(self, stop: int) -> None:
        """Run the nodes from the current position up to (not including) index ``stop`` on every batch.

        Raises:
            ValueError: when asked to move backwards.
        """
        if stop < self.position:
            raise ValueError(f"a cache only moves forward: it is at node {self.position}, asked for {stop}")
        nodes = self.network.nodes[self.position : stop]
        liveness = self.network.liveness
        read = {source for node in nodes for source in node.all_input_nodes}
        for i, values in enumerate(self.values):
            if not self.sizes[i]:  # a batch of which other processes have all images
                continue
            working = {node: move(value, self.device) for node, value in values.items() if node in read}
            for node in nodes:
                self.network.run((node,), working, self.weights)
                liveness.drop(working, node, keep=self.needed_until)
            # What was there already rests where it did: only new values are moved.
            self.values[i] = {
                node: values[node] if node in values else self._rest(working[node])
                for node in (*values, *(node for node in working if node not in values))
                if liveness.is_read_from(stop, node) or node in self.needed_until
            }
        self.executed += len(nodes) * len(self.values)
        self.position = stop

    @torch.no_grad()
    def context(self, segment: Segment, batch: int) -> Values:
        """Return what a segment reads from outside itself, for one batch, on the network's device.

        The cache must stand at the segment's layer. Values that come later in the order but do not depend on the
        layer (a shortcut convolution) are computed here.
        """
        known = dict(self.values[batch])
        wanted = {*segment.context, *(source for node in segment.prelude for source in node.all_input_nodes)}
        working: Values = {node: move(known[node], self.device) for node in wanted if node in known}
        self.network.run(segment.prelude, working, self.weights)
        return {node: working[node] for node in segment.context if node in working}

    def forget(self, layer: int) -> None:
        """Drop kept values that no layer at index ``layer`` or later needs."""
        self.needed_until = {node: until for node, until in self.needed_until.items() if until >= layer}
        for values in self.values:
            for node in [node for node in values if self._is_done(node)]:
                del values[node]

    def _is_done(self, node: fx.Node) -> bool:
        return not self.network.liveness.is_read_from(self.position, node) and node not in self.needed_until

    def read(self, node: fx.Node, batch: int) -> Tensor:
        """Return the value of one ``node`` in one batch, on the network's device."""
        value: Tensor = move(self.values[batch][node], self.device)
        return value

    @torch.no_grad()
    def taps(self, segment: Segment, batch: int) -> list[Tensor]:
        """Run a segment with the dense weights from this cache's values of one ``batch``; return its tap outputs."""
        values = self.context(segment, batch)
        run_keeping(self.network, segment.nodes, values, set(segment.taps))
        return [values[node] for node in segment.taps]

    @torch.no_grad()
    def restarted(self, segment: Segment, restart: Restart, batch: int) -> list[Tensor]:
        """Run the dense network from a residual unit's input, as it is in this cache, and return the tap outputs.

        The cache must still hold ``restart.reads``; see ``needed_until``.

        Args:
            segment: what the taps belong to.
            restart: where the residual unit begins, and what runs from there.
            batch: number of the batch.

        Returns:
            One tensor a tap, in the order of ``segment.taps``.
        """
        values: Values = {node: move(self.values[batch][node], self.device) for node in restart.reads}
        with sdpa_kernel(SDPBackend.MATH):  # the solver's own kernel: the same numbers whenever this is called
            run_keeping(self.network, restart.nodes, values, set(segment.taps))
        return [values[node] for node in segment.taps]

    def finish(self) -> list[Any]:
        """Run to the end and return the network's output for every batch."""
        self.advance(len(self.network.nodes))
        return [move(fx.map_arg(self.network.output, values.__getitem__), self.device) for values in self.values]


def move(value: Any, device: torch.device | str, pin: bool = True) -> Any:
    """Move the tensors inside a (nested) value to a device; anything else stays as it is.

    Copies between a GPU and pinned host memory do not wait: what reads them next is a copy back on the same CUDA
    stream. Host code that looks at their numbers has to synchronise first.

    Args:
        value: a tensor, or anything that holds some.
        device: where to.
        pin: let a copy from a GPU to the host land in pinned memory.

    Returns:
        The value, its tensors on the device.
    """
    if isinstance(value, Tensor | DiskTensor | tuple | list | dict):
        return pytree.tree_map_only((Tensor, DiskTensor), lambda leaf: _move_leaf(leaf, device, pin), value)
    return value


def _move_leaf(leaf: Tensor | DiskTensor, device: torch.device | str, pin: bool) -> Tensor:
    if isinstance(leaf, DiskTensor):
        return leaf.load(device)
    if leaf.is_cuda and torch.device(device).type == "cpu":
        if not pin:
            return leaf.cpu()
        return torch.empty_like(leaf, device="cpu", pin_memory=True).copy_(leaf, non_blocking=True)
    return leaf.to(device, non_blocking=leaf.is_pinned() if leaf.device.type == "cpu" else True)


def run_keeping(
    network: Network,
    nodes: Sequence[fx.Node],
    values: Values,
    keep: Iterable[fx.Node],
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Run nodes, extending ``values`` in place and dropping every value after its last use unless it is to be kept."""
    liveness = Liveness(nodes, keep)
    for node in nodes:
        network.run((node,), values, weights)
        liveness.drop(values, node)


Item = TypeVar("Item")


class LazyBatches(Sequence[Item]):
    """A sequence with one item per batch, made when asked for, and kept only where there is room.

    Args:
        make: batch number to item.
        length: number of batches.
        keep: remember items once made.
    """

    def __init__(self, make: Callable[[int], Item], length: int, keep: bool) -> None:
        self.make, self.length, self.keep = make, length, keep
        self.kept: dict[int, Item] = {}

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, batch: int) -> Item: ...
    @overload
    def __getitem__(self, batch: slice) -> Sequence[Item]: ...
    def __getitem__(self, batch: Any) -> Any:
        if isinstance(batch, slice):
            return [self[i] for i in range(*batch.indices(self.length))]
        if not 0 <= batch < self.length:
            raise IndexError(batch)
        if batch in self.kept:
            return self.kept[batch]
        item = self.make(batch)
        if self.keep:
            self.kept[batch] = item
        return item


def whole_batches(sizes: Sequence[int], images: int | None) -> int:
    """Return how many batches hold that many images: all of them for None, or where there are fewer images.

    >>> whole_batches([4, 4, 2], 5), whole_batches([4, 4, 2], None)
    (2, 3)
    """
    if images is None:
        return len(sizes)
    return next((i for i, end in enumerate(accumulate(sizes), start=1) if end >= images), len(sizes))
