"""The sweep over the layers, front to back: streams, memory, progress, interruption, and recovery from a full GPU."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor
from tqdm.auto import tqdm

from snows_core.activations.cache import ActivationCache
from snows_core.activations.calibration import near_equal
from snows_core.masks.patterns import Masks
from snows_core.methods.choose_k import ladder
from snows_core.methods.snows import LayerOutcome, Work, solve_layer
from snows_core.network.graph import Network, Segment
from snows_core.network.residual import restart
from snows_core.settings import K, Recipe
from snows_core.solvers.row_factors import full_factor_bytes
from snows_core.sweep.memory import MemoryPlan, Probe, memory_budget, plan_memory, probe_layers
from snows_core.sweep.select import LayerSelection


class Sweep:
    """One run over the layers of a network.

    Args:
        network: the traced network, on the device of the run.
        todo: layers to prune, in execution order.
        masks: their masks by name, on that device.
        k: operations behind each layer, or "auto".
        recipe: how to solve.
        images: calibration images (N, C, H, W), on that device or in host memory; they stay where they are.
        max_memory: see :func:`snows_core.sweep.memory.memory_budget`.
        seed: of the curvature probes.

    Attributes:
        outcomes: what became of each layer so far.
        interrupted: whether Ctrl-C ended the run.
    """

    def __init__(
        self,
        network: Network,
        todo: Sequence[LayerSelection],
        masks: Masks,
        k: K,
        recipe: Recipe,
        images: Tensor,
        max_memory: float | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.todo, self.masks, self.recipe, self.images = network, todo, masks, recipe, images
        self.device = next(network.module.parameters()).device
        self.seed = seed
        self.outcomes: dict[str, LayerOutcome] = {}
        self.interrupted = False
        self.ladders = {entry.name: ladder(network, entry.layer, k, recipe.tap_rule) for entry in todo}
        self.probes: dict[str, Probe] = {}
        self._probe(images[:2].to(self.device))
        budget = memory_budget(max_memory, self.device)
        self.memory: MemoryPlan = plan_memory(self.probes, len(images), recipe, budget, self.device)
        # Choosing K asks for a second batch, to judge on.
        two = -(-len(images) // 2) if k == "auto" and len(images) > 1 else len(images)
        self._open_streams(min(self.memory.batch_size, two))

    def _probe(self, example: Tensor) -> None:
        """Measure each layer's longest segment; one that cannot be differentiated twice gets shorter until it can."""
        todo = {name: segments[-1] for name, segments in self.ladders.items()}
        while todo:
            found = probe_layers(self.network, todo, self.masks, example, self.recipe)
            self.probes |= found
            todo = {name: segment for name, segment in todo.items() if name not in found}
            for name, segment in todo.items():
                shorter = self.network.segment(segment.layer, segment.k - 1, self.recipe.tap_rule)
                self.ladders[name] = (*(s for s in self.ladders[name] if s.k < shorter.k), shorter)
                todo[name] = shorter
        self.segments = {name: segments[-1] for name, segments in self.ladders.items()}

    def _open_streams(self, batch_size: int) -> None:
        """Start both streams at the images, with the weights that are solved already."""
        self.batch_size = batch_size
        groups = near_equal(len(self.images), self.recipe.batch_size if self.recipe.mini_batches else len(self.images))
        sizes = [near_equal(group, batch_size) for group in groups]
        ends = list(accumulate(map(len, sizes), initial=0))
        self.groups = [range(start, end) for start, end in pairwise(ends)]
        batches = self.images.split(list(chain(*sizes)))
        self.pruned = self._stream(batches)
        self.pruned.weights = {
            entry.layer.weight_name: self.outcomes[entry.name].weight
            for entry in self.todo
            if entry.name in self.outcomes
        }
        needed = self.pruned.needed_until
        self.dense = self.pruned
        if self.recipe.targets == "dense":
            self.dense = self._stream(batches)
            needed = self.dense.needed_until
        for segment in self.segments.values():  # in execution order: the last layer that needs a node wins
            place = self.network.index[segment.layer.node]
            if self.dense is self.pruned:
                nodes = restart(self.network, segment).reads
            else:
                nodes = (*segment.taps, segment.layer.node.all_input_nodes[0])
            needed.update(dict.fromkeys(nodes, place))

    def _stream(self, batches: Sequence[Tensor]) -> ActivationCache:
        storage = self.memory.storage or (self.device if self.images.device != self.device else None)
        return ActivationCache(self.network, batches, storage, self.memory.pin)

    def run(self, progress: bool, known: Mapping[str, LayerOutcome]) -> None:
        """Solve every layer; Ctrl-C ends the run and keeps what is done.

        Args:
            progress: show a bar with layer, loss and seconds.
            known: outcomes of layers that an earlier, interrupted run has solved.
        """
        bar = tqdm(self.todo, desc="pruning", unit="layer", disable=not progress)
        try:
            for entry in bar:
                bar.set_postfix_str(entry.name)
                start = time.perf_counter()
                if entry.name in known:
                    done = known[entry.name]
                else:
                    done = self._solve(entry)
                    done.seconds = time.perf_counter() - start
                self.outcomes[entry.name] = done
                self.pruned.weights[entry.layer.weight_name] = done.weight
                bar.set_postfix_str(f"{entry.name} loss {done.loss_end:.3g} {done.seconds:.1f} s")
        except KeyboardInterrupt:
            self.interrupted = True
            if progress:
                tqdm.write("interrupted: the layers solved so far are kept, the others stay dense", file=sys.stderr)
        finally:
            bar.close()

    def _solve(self, entry: LayerSelection) -> LayerOutcome:
        """Solve one layer; when the device runs out of memory, halve the batches and begin the layer again."""
        while True:
            try:
                self._advance(entry)
                return solve_layer(
                    self.network,
                    entry,
                    self.ladders[entry.name],
                    self.masks[entry.name],
                    self.pruned,
                    self.dense,
                    self.recipe,
                    self._signs(entry),
                    self._work(entry),
                )
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
            warnings.warn(f"out of memory at '{entry.name}': batches of {self.batch_size} are halved", stacklevel=4)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._open_streams(max(1, self.batch_size // 2))

    def _work(self, entry: LayerSelection) -> Work:
        """Return how a layer's solve is cut: what is kept of a whole set, or of the largest mini-batch."""
        mask, sizes = self.masks[entry.name], self.pruned.sizes
        factors = full_factor_bytes(mask.flatten(1), self.network.weight(entry.layer))
        factors = factors if self.recipe.warm_start or self.recipe.precondition else 0.0
        largest = max(([sizes[i] for i in group] for group in self.groups), key=sum)
        retain = self.memory.retained(self.probes[entry.name], largest, factors)
        return Work(self.groups, retain, self.memory.factors, self.memory.factors_on_disk(factors))

    def _signs(self, entry: LayerSelection) -> torch.Generator:
        """Return the source of a layer's random signs: its own, so that a resumed run draws the same."""
        return torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + self.network.index[entry.layer.node])

    def _advance(self, entry: LayerSelection) -> None:
        place, segment = self.network.index[entry.layer.node], self.segments[entry.name]
        self.pruned.forget(place)
        self.pruned.advance(place)
        if self.dense is not self.pruned:
            self.dense.forget(place)
            self.dense.advance(max(self.dense.position, self._last_tap(segment) + 1))

    def _last_tap(self, segment: Segment) -> int:
        return max(self.network.index[tap] for tap in segment.taps)
