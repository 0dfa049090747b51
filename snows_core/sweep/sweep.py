"""The sweep over the layers, front to back: caches, memory, progress, interruption, and recovery from a full GPU.

It knows no method by name: what it holds ready follows from a method's :class:`~snows_core.methods.base.Needs`.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from snows_core.activations.cache import ActivationCache
from snows_core.activations.calibration import near_equal
from snows_core.devices import out_of_memory
from snows_core.distributed import Share, current
from snows_core.masks.patterns import Masks, PerLayer
from snows_core.methods.base import LayerSolution
from snows_core.methods.fallback import choose_mask, solve_layer
from snows_core.methods.problem import Before, Budget, LayerProblem, LayerValues
from snows_core.network.graph import Network, Segment
from snows_core.network.residual import restart
from snows_core.solvers.row_factors import full_factor_bytes
from snows_core.sweep.memory import MemoryPlan, Probe, memory_budget, plan_memory, probe_layers
from snows_core.sweep.select import PrunableLayer
from snows_core.sweep.steps import LayerSteps

DENSE_SHARE = 0.3  # of the memory may hold the dense network's values from one stage to the next


class Sweep:
    """One run over the layers of a network.

    Args:
        network: the traced network, on the device of the run.
        layers: layers to prune, in execution order.
        masks: their masks by name, on that device; where a method chooses masks, of as many weights as it will keep.
        steps: what is done with each layer.
        images: calibration images (N, C, H, W), on that device or in host memory; they stay where they are.
        max_memory: see :func:`snows_core.sweep.memory.memory_budget`.
        seed: of random signs and lots.
        before: layer name to the weight that it had after the stage before.

    Attributes:
        solutions: what became of each layer so far.
        interrupted: whether Ctrl-C ended the run.
        own: layer name to the weight that a method of the whole network gave, where solves are to start there.
    """

    def __init__(
        self,
        network: Network,
        layers: Sequence[PrunableLayer],
        masks: Masks,
        steps: LayerSteps,
        images: Tensor,
        max_memory: float | None = None,
        seed: int = 0,
        before: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.network, self.layers, self.masks, self.steps, self.images = network, layers, masks, steps, images
        self.processes = current().with_images(len(images))
        self.needs = steps.update.needs
        self.device = next(network.module.parameters()).device
        self.seed = seed
        self.before = before or {}
        self.own: Mapping[str, Tensor] = {}
        self._keeps_dense = False
        # Normal equations by layer, of layers whose input is the dense one; None where they have no room.
        self._equations: dict[str, dict[int, tuple[Tensor, Tensor | None]]] | None = None
        self._is_dense = True  # whether all layers that this run has reached kept their dense weights
        self.solutions: dict[str, LayerSolution] = {}
        self.interrupted = False
        self.ladders = {entry.name: steps.update.segments(network, entry.layer) for entry in layers}
        self.probes: dict[str, Probe] = {}
        self._probe(images[:2].to(self.device))
        budget, most = self.processes.least(memory_budget(max_memory, self.device)), self.processes.most(len(images))
        self.memory: MemoryPlan = plan_memory(self.probes, most, self.needs.batch_size, budget, self.device)
        # A method that chooses among segments asks for a second batch, to judge on.
        choosing = any(len(segments) > 1 for segments in self.ladders.values())
        two = -(-len(images) // 2) if choosing and len(images) > 1 else len(images)
        self._open_caches(min(self.memory.batch_size, two))

    def again(self, masks: Masks, before: Mapping[str, Tensor], steps: LayerSteps) -> Sweep:
        """Return a sweep for the next stage: the same layers, segments, memory and dense values, with other masks.

        Where :meth:`keep_dense_values` was called, Gram matrices of dense inputs are the same, too.

        Args:
            masks: of that stage.
            before: layer name to the weight after this stage.
            steps: the same methods for the pattern of that stage, or others whose needs differ in row factors alone.
        """
        other = copy(self)
        other.masks, other.before, other.steps, other.needs = masks, before, steps, steps.update.needs
        other.solutions, other.interrupted, other._is_dense, other.own = {}, False, True, {}
        other._open_caches(self.batch_size, self.dense if self._keeps_dense else None)
        return other

    def keep_dense_values(self) -> None:
        """Keep what the dense network computes for the layers to come, where it takes a small part of the memory.

        To be called before the run. A sweep made by :meth:`again` then finds those values, and does not run the dense
        network any more; and of a layer before which no weight has changed it finds the normal equations, if there is
        room for those of all layers.
        """
        bytes_ = sum(probe.dense for probe in self.probes.values()) * self.processes.most(len(self.images))
        equations = sum(self._equation_bytes(entry) for entry in self.layers)
        if bytes_ + equations <= DENSE_SHARE * self.memory.bytes:
            self._equations = {}
        self._keeps_dense = self.dense is not self.pruned and bytes_ <= DENSE_SHARE * self.memory.bytes
        if self._keeps_dense:
            last = len(self.network.nodes)
            self.dense.needed_until = dict.fromkeys(self.dense.needed_until, last)

    def _equation_bytes(self, entry: PrunableLayer) -> int:
        """Return the bytes of the Gram matrices of a layer, and of the rows beside them."""
        weight = self.network.weight(entry.layer)
        width = weight[0].numel()
        return weight.element_size() * width * (width * entry.geometry.groups + len(weight))

    def _probe(self, example: Tensor) -> None:
        """Measure each layer's longest segment; one that cannot be differentiated twice gets shorter until it can."""
        todo = {name: segments[-1] for name, segments in self.ladders.items()}
        while todo:
            found = probe_layers(self.network, todo, self.masks, example, self.needs.loss, 0)
            self.probes |= found
            todo = {name: segment for name, segment in todo.items() if name not in found}
            for name, segment in todo.items():
                shorter = self.network.segment(segment.layer, segment.k - 1, self.needs.loss.tap_rule)
                self.ladders[name] = (*(s for s in self.ladders[name] if s.k < shorter.k), shorter)
                todo[name] = shorter
        self.segments = {name: segments[-1] for name, segments in self.ladders.items()}

    def _open_caches(self, batch_size: int, dense: ActivationCache | None = None) -> None:
        """Start both caches at the images, with the weights that are solved already.

        Args:
            batch_size: images per batch at most.
            dense: the dense network's cache, where one of another stage still holds what is needed.
        """
        self.batch_size = batch_size
        group = self.needs.batch_size if self.needs.mini_batches else len(self.images)
        sizes = [near_equal(images, batch_size) for images in near_equal(len(self.images), group)]
        ends = list(accumulate(map(len, sizes), initial=0))
        self.groups = [range(start, end) for start, end in pairwise(ends)]
        self.share = Share(list(chain(*sizes)), self.processes)
        batches = self.share.cut(self.images)
        self.pruned = self._cache(batches)
        self.pruned.weights = {
            entry.layer.weight_name: self.solutions[entry.name].weight
            for entry in self.layers
            if entry.name in self.solutions
        }
        needed = self.pruned.needed_until
        self.dense = self.pruned
        if self.needs.targets == "dense":
            self.dense = self._cache(batches) if dense is None else dense
            needed = self.dense.needed_until
        if dense is not None:
            return
        for segment in self.segments.values():  # in execution order: the last layer that needs a node wins
            place = self.network.index[segment.layer.node]
            if self.dense is self.pruned:
                nodes = restart(self.network, segment).reads
            else:
                nodes = (*segment.taps, segment.layer.node.all_input_nodes[0])
            needed.update(dict.fromkeys(nodes, place))

    def _cache(self, batches: Sequence[Tensor]) -> ActivationCache:
        storage = self.memory.storage or (self.device if self.images.device != self.device else None)
        return ActivationCache(self.network, batches, storage, self.memory.pin)

    def shrink(self, batch_size: int) -> None:
        """Cut the images into smaller batches, as an earlier run had to; to be called before the run."""
        if batch_size < self.batch_size:
            self._keeps_dense, self._equations = False, None
            self._open_caches(batch_size)

    def run(
        self,
        progress: bool,
        known: Mapping[str, LayerSolution],
        title: str = "pruning",
        keep: Callable[[str, LayerSolution], None] = lambda name, done: None,
    ) -> None:
        """Solve every layer; Ctrl-C ends the run and keeps what is done.

        Args:
            progress: show a bar with layer, loss and seconds.
            known: solutions of layers that an earlier, interrupted run has reached.
            title: of the bar.
            keep: called with the name and the solution of each layer that is solved now.
        """
        bar = tqdm(self.layers, desc=title, unit="layer", disable=not progress)
        try:
            for entry in bar:
                bar.set_postfix_str(entry.name)
                done = known[entry.name] if entry.name in known else self._timed(entry)
                self.solutions[entry.name] = done
                if entry.name not in known:
                    keep(entry.name, done)
                self.pruned.weights[entry.layer.weight_name] = done.weight
                self._is_dense = self._is_dense and torch.equal(done.weight, self.network.weight(entry.layer))
                reached = done.statistics
                bar.set_postfix_str(f"{entry.name} loss {reached.loss_end:.3g} {reached.seconds:.1f} s")
        except KeyboardInterrupt:
            if self.processes.several:  # the others are elsewhere, and would wait for this one
                raise
            self.interrupted = True
            if progress:
                tqdm.write("interrupted: the layers solved so far are kept, the others stay dense", file=sys.stderr)
        finally:
            bar.close()

    def _timed(self, entry: PrunableLayer) -> LayerSolution:
        start = time.perf_counter()
        done = self._solve(entry).of_main(self.processes)
        return replace(done, statistics=replace(done.statistics, seconds=time.perf_counter() - start))

    def _solve(self, entry: PrunableLayer) -> LayerSolution:
        """Solve one layer; when the device runs out of memory, halve the batches and begin the layer again."""
        while True:
            try:
                self._advance(entry)
                problem = self._problem(entry)
                self._choose(problem)
                return solve_layer(self.steps.update, problem)
            except (RuntimeError, MemoryError) as error:
                # Batches are the same in all processes: one of several cannot have others.
                if self.batch_size == 1 or self.processes.several or not out_of_memory(error):
                    raise
            warnings.warn(f"out of memory at '{entry.name}': batches of {self.batch_size} are halved", stacklevel=8)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._keeps_dense, self._equations = False, None
            self._open_caches(max(1, self.batch_size // 2))

    def _choose(self, problem: LayerProblem) -> None:
        """Bring the mask that a method chooses into a ``problem``, and its weight where the solve is to start at it."""
        choose = self.steps.choose
        if choose is None or choose is self.steps.update:
            return
        if self.steps.own_start:
            done = solve_layer(choose, problem)
            problem.mask, problem.before = done.mask, replace(problem.before, own=done.weight)
        else:
            problem.mask = choose_mask(choose, problem)
        problem.pattern = None

    def _problem(self, entry: PrunableLayer) -> LayerProblem:
        mask, pattern = self.masks[entry.name], None
        if self.steps.choose is not None:  # among the weights that are not zero yet
            mask, pattern = self.network.weight(entry.layer) != 0, self.steps.pattern
        # Its own source of random signs, so that a resumed run draws the same; on the CPU, so that every device does.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.network.index[entry.layer.node])
        values = LayerValues(self.pruned, self.dense, self.groups, self.share)
        budget = self._budget(entry)
        pattern = pattern.of(entry.name) if isinstance(pattern, PerLayer) else pattern
        before = Before(self.before.get(entry.name), self.masks[entry.name], self.own.get(entry.name))
        problem = LayerProblem(self.network, self.ladders[entry.name], mask, values, generator, budget, pattern, before)
        if self._is_dense and self._equations is not None:
            problem.equations = self._equations.setdefault(entry.name, {})
        return problem

    def _budget(self, entry: PrunableLayer) -> Budget:
        """Return how a layer's solve is cut: what is kept of a whole set, or of the largest mini-batch."""
        sizes = self.pruned.sizes
        factors = 0.0
        if self.needs.row_factors:
            factors = full_factor_bytes(self.masks[entry.name].flatten(1), self.network.weight(entry.layer))
        largest = max(([sizes[i] for i in group] for group in self.groups), key=sum)
        memory, probe = self.memory, self.probes[entry.name]
        retain = memory.retained(probe, largest, factors, copied=self.processes.several)  # parts are joined there
        working = memory.working(probe, sizes, factors)
        return Budget(retain, memory.factors, memory.factors_on_disk(factors), working)

    def _advance(self, entry: PrunableLayer) -> None:
        place, segment = self.network.index[entry.layer.node], self.segments[entry.name]
        self.pruned.forget(place)
        self.pruned.advance(place)
        if self.dense is not self.pruned:
            self.dense.forget(place)
            self.dense.advance(max(self.dense.position, self._last_tap(segment) + 1))

    def _last_tap(self, segment: Segment) -> int:
        return max(self.network.index[tap] for tap in segment.taps)
