"""The sweep over the layers, front to back: streams, memory, progress, interruption, and recovery from a full GPU."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from snows_core.choose_k import K, ladder
from snows_core.graph import Network, Segment
from snows_core.layer_solver import LayerOutcome, solve_layer
from snows_core.layerwise import full_factor_bytes
from snows_core.masks import Masks
from snows_core.memory import MemoryPlan, Probe, memory_budget, plan_memory, probe_layers
from snows_core.plan import PlannedLayer
from snows_core.recipe import Recipe
from snows_core.stream import Stream


class Sweep:
    """One run over the layers of a network.

    Args:
        network: the traced network, on the device of the run.
        todo: layers to prune, in execution order.
        masks: their masks by name, on that device.
        k: operations behind each layer, or "auto".
        recipe: how to solve.
        images: calibration images (N, C, H, W), on that device or in host memory.
        max_memory: see :func:`snows_core.memory.memory_budget`.
        seed: of the curvature probes.

    Attributes:
        outcomes: what became of each layer so far.
        interrupted: whether Ctrl-C ended the run.
    """

    def __init__(
        self,
        network: Network,
        todo: Sequence[PlannedLayer],
        masks: Masks,
        k: K,
        recipe: Recipe,
        images: Tensor,
        max_memory: float | None = None,
        seed: int = 0,
    ) -> None:
        self.network, self.todo, self.masks, self.recipe, self.images = network, todo, masks, recipe, images
        self.device = next(network.module.parameters()).device
        self.ladders = {entry.name: ladder(network, entry.layer, k, recipe.taps) for entry in todo}
        self.segments = {name: segments[-1] for name, segments in self.ladders.items()}
        self.seed = seed
        self.outcomes: dict[str, LayerOutcome] = {}
        self.interrupted = False
        example = images[: min(2, len(images))].to(self.device)
        self.probes: dict[str, Probe] = probe_layers(network, self.segments, masks, example, recipe)
        budget = memory_budget(max_memory, self.device)
        self.memory: MemoryPlan = plan_memory(self.probes, len(images), recipe, budget, self.device)
        # Choosing K asks for a second batch, to judge on.
        two = -(-len(images) // 2) if k == "auto" and len(images) > 1 else len(images)
        self._open_streams(min(self.memory.batch_size, two))

    def _open_streams(self, batch_size: int) -> None:
        """Start both streams at the images, with the weights that are solved already."""
        self.batch_size = batch_size
        batches = self.images.split(batch_size)
        storage = self.memory.storage if self.memory.storage is not None else self.device
        own = None if storage == self.images.device else storage
        self.pruned = Stream(self.network, batches, own)
        self.pruned.weights = {
            entry.layer.weight_name: self.outcomes[entry.name].weight
            for entry in self.todo
            if entry.name in self.outcomes
        }
        self.dense = self.pruned
        if self.recipe.targets == "dense":
            self.dense = Stream(self.network, batches, own)
            self.dense.needed_until = {
                node: self.network.index[segment.layer.node]
                for segment in self.segments.values()  # in execution order: the last layer that needs a node wins
                for node in (*segment.taps, segment.layer.node.all_input_nodes[0])
            }

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
                done = known[entry.name] if entry.name in known else self._solve(entry)
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

    def _solve(self, entry: PlannedLayer) -> LayerOutcome:
        """Solve one layer; when the device runs out of memory, halve the batches and begin the layer again."""
        while True:
            try:
                self._advance(entry)
                mask = self.masks[entry.name]
                factors = full_factor_bytes(mask.flatten(1), self.network.weight(entry.layer))
                retain = self.memory.retained(self.probes[entry.name], self.pruned.sizes, factors)
                return solve_layer(
                    self.network, entry, self.ladders[entry.name], mask, self.pruned, self.dense, self.recipe,
                    self._signs(entry), True if self.recipe.mini_batches else retain, self.memory.factors,
                )  # fmt: skip
            except torch.OutOfMemoryError:
                if self.batch_size == 1 or self.recipe.mini_batches:
                    raise
            warnings.warn(f"out of memory at '{entry.name}': batches of {self.batch_size} are halved", stacklevel=4)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self._open_streams(max(1, self.batch_size // 2))

    def _signs(self, entry: PlannedLayer) -> torch.Generator:
        """Return the source of a layer's random signs: its own, so that a resumed run draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.network.index[entry.layer.node])

    def _advance(self, entry: PlannedLayer) -> None:
        place, segment = self.network.index[entry.layer.node], self.segments[entry.name]
        self.pruned.advance(place)
        if self.dense is not self.pruned:
            self.dense.forget(place)
            self.dense.advance(max(self.dense.position, self._last_tap(segment) + 1))

    def _last_tap(self, segment: Segment) -> int:
        return max(self.network.index[tap] for tap in segment.taps)
