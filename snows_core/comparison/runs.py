"""Prunes one network by one cell after the other, and makes once what cells share.

All cells share the images in their order and the model that receives the weights. Cells of one pattern share the trace,
the layers, masks of magnitude, the plan of memory, and, where they fit, the dense network's values at every layer and
the Gram matrices of dense inputs (:meth:`snows_core.sweep.sweep.Sweep.keep_dense_values`): those of the first layer,
and those of all layers where fixed masks are chosen. With fixed masks, cells of one mask share the mask. Other Gram
matrices are of the values that the layers pruned before have left, which are others in every cell.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images, shuffled
from snows_core.comparison.cells import MAGNITUDE, Cell, cell_settings
from snows_core.devices import resolve_device
from snows_core.loss.precision import plain_numerics
from snows_core.masks.patterns import Masks, Pattern
from snows_core.methods import NETWORK_METHODS, GivenWeights, KeepDense
from snows_core.methods.base import LayerSolution, Needs
from snows_core.network.copies import plain_copy
from snows_core.network.memory_format import channels_last
from snows_core.provenance import images_digest, state_digest
from snows_core.settings import PruneSettings, get_recipe
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.network_steps import network_steps, with_labels_in_order
from snows_core.sweep.prepare import Prepared, prepare
from snows_core.sweep.stages import StagedSweep
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep


@dataclass(frozen=True)
class Pruned:
    """What one cell gave.

    Attributes:
        weights: parameter name to weight.
        masks: layer name to mask.
        figures: sparsity of the pruned layers, loss (K-step, at the end, a sum over layers), image_products,
            mask_seconds (of choosing a fixed mask) and seconds (of the sweep, which chooses all other masks).
    """

    weights: dict[str, Tensor]
    masks: Masks
    figures: dict[str, float]


class SharedRuns:
    """Runs cells, pattern by pattern and in each mask by mask.

    Args:
        model: the dense network; not changed.
        images: calibration images, as ``prune`` takes them.
        settings: of all cells, from :func:`snows_core.sweep.prepare.checked_settings`.
        fixed_masks: whether a mask is chosen once for all updates.

    Attributes:
        count, digest: of the calibration images.
        device: where cells are computed; known after :meth:`begin`.

    Raises:
        SnowsError: on images that are none.
    """

    def __init__(
        self, model: nn.Module, images: Tensor | Iterable[Any], settings: PruneSettings, fixed_masks: bool = False
    ) -> None:
        self.model, self.settings, self.fixed_masks = model, settings, fixed_masks
        self.parts = calibration_parts(images, settings.max_images)
        self.count, self.digest = sum(map(len, self.parts)), images_digest(self.parts)
        self.example = first_images(self.parts, 2)
        self.images: Tensor | None = None
        self.module: nn.Module | None = None

    @plain_numerics()
    def begin(self, pattern: Pattern) -> None:
        """Make ready for the cells of a pattern.

        Raises:
            SnowsError: on a model that cannot be pruned, or a pattern that fits none of its layers.
        """
        self.pattern = pattern
        self._sweeps: dict[Needs, Sweep] = {}
        self._chosen: tuple[str, tuple[Masks, float] | Exception] | None = None
        self._of_network: dict[str, Masks] = {}
        self.prepared: Prepared = prepare(self.model, [self.example], replace(self.settings, pattern=pattern))
        network = self.prepared.network
        self.device = resolve_device(self.settings.device, next(network.module.parameters()).device)
        self.placed = self.prepared.move(self.device)
        dtype = next(network.module.parameters()).dtype
        like = channels_last(network, self.example.to(self.device, dtype))
        if self.images is None:
            at_home = self.example.device == self.device
            self.images, order = shuffled(self.parts, self.settings.seed, like if at_home else like.cpu())
            self.settings = with_labels_in_order(self.settings, order)

    @property
    def dense_digest(self) -> str:
        """Digest of the dense weights."""
        return state_digest(self.prepared.model)

    @plain_numerics()
    def run(self, cell: Cell) -> Pruned:
        """Return what a cell of the pattern gives.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
        """
        if len(self.prepared.schedule) > 1:
            return self._staged(cell)
        if cell.mask in NETWORK_METHODS or cell.method in NETWORK_METHODS:
            return self._whole(cell)
        if not self.fixed_masks or cell.mask == MAGNITUDE or cell.chooses_in_its_sweep:
            steps = layer_steps(cell_settings(cell, self.pattern, self.settings))
            return self._swept(steps, self.placed, str(cell))
        masks, seconds = self._choose(cell.mask)
        done = self._swept(self._steps(MAGNITUDE, cell.update), masks, str(cell))  # on masks that are there
        return replace(done, figures=done.figures | {"mask_seconds": seconds})

    def write(self, pruned: Pruned) -> nn.Module:
        """Return a copy of the model, the same every time, with the weights of a cell."""
        self.module = plain_copy(self.prepared.model) if self.module is None else self.module
        parameters = dict(self.module.named_parameters(remove_duplicate=False))  # a tied weight has several names
        with torch.no_grad():
            for name, weight in pruned.weights.items():
                parameters[name].copy_(weight.to(parameters[name]))
        return self.module

    def _whole(self, cell: Cell) -> Pruned:
        """Return what a cell gives where a method looks at the whole network: its masks are made once a pattern."""
        assert self.images is not None  # from begin
        start = time.perf_counter()
        settings = cell_settings(cell, self.pattern, self.settings)
        whole, steps, masks = network_steps(self.prepared, self.images, settings), layer_steps(settings), self.placed
        assert whole is not None  # one of the two is such a method
        if cell.mask in NETWORK_METHODS:
            if cell.chooses_in_its_sweep or cell.mask not in self._of_network:  # its weights are solved with the mask
                self._of_network[cell.mask] = whole.masks(self.pattern, {})
            masks = self._of_network[cell.mask]
        if isinstance(steps.update, GivenWeights):
            steps.update.weights = whole.weights(self.pattern, {}, masks)
        seconds = time.perf_counter() - start
        done = self._swept(steps, masks, str(cell), whole.own)
        return replace(done, figures=done.figures | {"mask_seconds": seconds})

    def _staged(self, cell: Cell) -> Pruned:
        """Return what a cell gives in stages, whose masks and values are its own."""
        assert self.images is not None  # from begin
        settings, start = cell_settings(cell, self.pattern, self.settings), time.perf_counter()
        run = StagedSweep(self.prepared, self.placed, layer_steps(settings), self.images, settings)
        run.run()
        if run.interrupted:
            raise KeyboardInterrupt
        return self._pruned(run.solutions, start)

    def _choose(self, mask: str) -> tuple[Masks, float]:
        """Return the masks of a method and its seconds, chosen once, on the dense network's inputs."""
        if self._chosen is None or self._chosen[0] != mask:
            try:
                steps = self._steps(mask, "none")
                steps = replace(steps, update=KeepDense(get_recipe(self.settings.recipe), self.settings.k))
                done = self._swept(steps, self.placed, f"{self.pattern} {mask}")
                self._chosen = mask, (done.masks, done.figures["seconds"])
            except Exception as error:  # the other cells of this mask fail in the same way
                self._chosen = mask, error
        found = self._chosen[1]
        if isinstance(found, Exception):
            raise found
        return found

    def _steps(self, mask: str, update: str) -> LayerSteps:
        return layer_steps(cell_settings(Cell(str(self.pattern), mask, update), self.pattern, self.settings))

    def _swept(
        self, steps: LayerSteps, masks: Masks, title: str, own: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Pruned:
        assert self.images is not None  # from begin
        network, layers, settings = self.prepared.network, self.prepared.layers, self.settings
        needs = replace(steps.update.needs, row_factors=True)
        start = time.perf_counter()
        known = self._sweeps.pop(needs, None)  # it comes back when it has gone well
        if known is None:
            sweep = Sweep(network, layers, masks, steps, self.images, settings.max_memory, settings.seed)
            sweep.keep_dense_values()
        else:
            sweep = known.again(masks, {}, steps)
        sweep.own = own
        sweep.run(settings.progress, {}, title)
        if sweep.interrupted:
            raise KeyboardInterrupt
        self._sweeps[needs] = sweep
        return self._pruned(sweep.solutions, start)

    def _pruned(self, solutions: Mapping[str, LayerSolution], start: float) -> Pruned:
        """Gather what layers were solved to since a time of the clock."""
        solved = {entry.layer.weight_name: solutions[entry.name] for entry in self.prepared.layers}
        kept = {name: done.mask for name, done in solutions.items()}
        reached = [done.statistics for done in solved.values()]
        figures = {
            "sparsity": 1 - sum(int(m.sum()) for m in kept.values()) / sum(m.numel() for m in kept.values()),
            "loss": sum(of_layer.loss_end for of_layer in reached),
            "image_products": float(sum(of_layer.image_products for of_layer in reached)),
            "mask_seconds": 0.0,
            "seconds": time.perf_counter() - start,
        }
        return Pruned({name: done.weight for name, done in solved.items()}, kept, figures)
