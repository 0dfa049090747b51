"""One layer to be solved, and whatever a layer-wise method may ask about it, lazily and once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from snows_core.activations.cache import ActivationCache, LazyBatches, whole_batches
from snows_core.activations.gram_matrices import normal_equations
from snows_core.activations.offload import DiskTensor
from snows_core.distributed import ALONE, Share
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.masks.patterns import Pattern
from snows_core.network.geometry import Geometry, geometry_of
from snows_core.network.graph import Layer, Network, Segment
from snows_core.network.residual import restart
from snows_core.solvers.row_factors import WIDE, RowFactors, full_factor_bytes


@dataclass(frozen=True)
class Budget:
    """How the solve of a layer is cut to fit in memory; nothing here changes a number.

    Attributes:
        retain: how many batches may keep their graphs, see :class:`~snows_core.loss.reconstruction.ReconstructionLoss`.
        factor_bytes: bound for the row factors, see :class:`~snows_core.solvers.row_factors.RowFactors`.
        factors_on_disk: whether they rest in files.
        working_bytes: bound for what a method holds of the rows that it has on their way, beside a few matrices of the
            size of the weight and of the Gram matrices; one row always has room.
    """

    retain: bool | int = True
    factor_bytes: float = math.inf
    factors_on_disk: bool = False
    working_bytes: float = math.inf


@dataclass(frozen=True)
class LayerValues:
    """The values inside the network that a layer's solve reads, batch by batch.

    Attributes:
        pruned: calibration values reached with the pruned layers before this one, standing at this layer.
        dense: the dense network's values at the taps and at the layer's input, or ``pruned`` itself where targets
            start from the pruned network.
        groups: the batches of each mini-batch; one group of all where every step uses all images.
        share: which images of each batch these are; None where they are all.
    """

    pruned: ActivationCache
    dense: ActivationCache
    groups: Sequence[Sequence[int]]
    share: Share | None = None


@dataclass(frozen=True)
class Before:
    """What a layer had before the sweep.

    Attributes:
        weight: after the stage before, of the weight's shape; None in the first.
        mask: bool, weight shape, chosen before the sweep, for a method that improves masks.
        own: weight of the method that chose the mask, where the solve is to start at it.
    """

    weight: Tensor | None = None
    mask: Tensor | None = None
    own: Tensor | None = None


@dataclass
class LayerProblem:
    """One layer to be solved, and whatever a layer-wise method may ask about it.

    Attributes:
        network: the traced network, dense weights.
        segments: the layer and the operations behind it: one, or several to choose from, shortest first.
        mask: bool, weight shape, True where a weight may stay. For a method that chooses masks: where it may choose.
        values: what the network computes before the layer, and at its taps.
        generator: source of random signs and lots, this layer's own.
        budget: how the solve is cut to fit in memory.
        pattern: the sparsity pattern, for a method that chooses masks; None where ``mask`` is to be kept as it is.
        before: what the layer had before the sweep.
        equations: what :meth:`normal_equations` has returned, by the number of batches; of another problem, where that
            one has the same inputs.
    """

    network: Network
    segments: Sequence[Segment]
    mask: Tensor
    values: LayerValues
    generator: torch.Generator
    budget: Budget = field(default_factory=Budget)
    pattern: Pattern | None = None
    before: Before = field(default_factory=Before)
    equations: dict[int, tuple[Tensor, Tensor | None]] = field(default_factory=dict, repr=False)

    @property
    def layer(self) -> Layer:
        """The layer's name, kind and place."""
        return self.segments[-1].layer

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.name

    @cached_property
    def geometry(self) -> Geometry:
        """How the layer reads its input."""
        return geometry_of(self.layer.node, self.weight)

    @cached_property
    def share(self) -> Share:
        """Which images of each batch this process has."""
        return Share(self.values.pruned.sizes) if self.values.share is None else self.values.share

    @property
    def sizes(self) -> list[int]:
        """Images of each batch, in all processes."""
        return self.share.sizes

    @property
    def weight(self) -> Tensor:
        """The dense weight, (out, in) or (out, in / groups, *kernel)."""
        return self.network.weight(self.layer)

    @property
    def masked(self) -> Tensor:
        """The dense weight with zeros where the mask is False."""
        return torch.where(self.mask, self.weight, 0.0)

    @property
    def current(self) -> Tensor:
        """The weight that chooses a mask: after the stage before, or the dense one in the first."""
        return self.weight if self.before.weight is None else self.before.weight

    @property
    def images(self) -> int:
        """Calibration images, in all processes."""
        return self.share.images

    @property
    def positions(self) -> float:
        """Output positions of the layer for an image."""
        x = self.values.pruned.read(self.layer.node.all_input_nodes[0], self.share.held()[0])[:1]
        return self.network.apply(self.layer, x).numel() / self.weight.shape[0]

    def normal_equations(self, images: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the Gram matrix of the layer's input, and the rows ``X y0'`` where the dense input is another one.

        Args:
            images: use the first ones, rounded up to whole batches; default all.

        Returns:
            Shapes (groups, d, d) and (out, d), summed over images and positions.
        """
        count = whole_batches(self.sizes, images)
        if count not in self.equations:
            self.equations[count] = self._equations(count)
        return self.equations[count]

    def _equations(self, batches: int) -> tuple[Tensor, Tensor | None]:
        """Sum the normal equations over the first batches, and over processes."""
        held, processes, rows = self.share.held(batches), self.share.processes, self.weight.flatten(1)
        if held:
            own, response = normal_equations(self._inputs(held), self.geometry, len(rows))
        else:  # other processes have the images of these batches
            own = rows.new_zeros(self.geometry.groups, rows.shape[1], rows.shape[1])
            response = None if self.values.dense is self.values.pruned else torch.zeros_like(rows)
        if response is None:
            return processes.total(own), None
        own, response = processes.totals([own, response])
        return own, response

    def _inputs(self, batches: Sequence[int]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield, batch by batch, the layer's input and the dense network's output on its own input, without bias."""
        source, nothing = self.layer.node.all_input_nodes[0], torch.zeros_like(self.weight)
        for batch in batches:
            y0 = None
            if self.values.dense is not self.values.pruned:
                x0 = self.values.dense.read(source, batch)
                y0 = self.network.apply(self.layer, x0) - self.network.apply(self.layer, x0[:1], nothing)
            yield self.values.pruned.read(source, batch), y0

    def row_factors(
        self, damping: float, images: int | None = None, mask: Tensor | None = None, whole: bool = False
    ) -> RowFactors:
        """Return the Cholesky factors of the Gram matrix on each row's kept weights.

        Args:
            damping: relative to the mean of the Gram matrix's diagonal.
            images: as in :meth:`normal_equations`.
            mask: bool, weight shape; default: the problem's own.
            whole: whether every process needs the factors themselves, not only what they solve.
        """
        gram, _ = self.normal_equations(images)
        kept = (self.mask if mask is None else mask).flatten(1)
        rest = DiskTensor if self.budget.factors_on_disk else None
        processes = ALONE if whole or full_factor_bytes(kept, gram) <= WIDE else self.share.processes
        return RowFactors(gram, kept, damping, None, self.budget.factor_bytes, rest, processes)

    def reconstruction(self, segment: Segment, options: LossOptions, batches: int) -> ReconstructionLoss:
        """Return the K-step loss of a segment over the first batches.

        Contexts come from the pruned network's values, targets from the dense one's: those have run ahead to the last
        tap; or the dense network is run from the pruned one's values at the input of the layer's residual unit.

        Args:
            segment: one of ``segments``.
            options: how it is weighed and computed; how many graphs are kept is for the budget to say.
            batches: how many.
        """
        keep = not self.values.pruned.rests_elsewhere
        above = restart(self.network, segment) if self.values.dense is self.values.pruned else None

        def target(batch: int) -> list[Tensor]:
            if above is not None:
                return self.values.pruned.restarted(segment, above, batch)
            return [self.values.dense.read(tap, batch) for tap in segment.taps]

        return ReconstructionLoss(
            self.network,
            segment,
            LazyBatches(lambda batch: self.values.pruned.context(segment, batch), batches, keep),
            LazyBatches(target, batches, keep),
            self.mask,
            replace(options, retain=self.budget.retain),
            self.share.of(range(batches)),
        )
