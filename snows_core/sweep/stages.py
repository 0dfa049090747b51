"""Stages: sweeps one after the other, each at a sparser pattern, its masks chosen by the weights re-fitted before.

Targets are always the dense network's. Segments, probes and the plan of memory are the same for all stages between, and
so are the dense network's values where they fit beside the rest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from snows_core.distributed import current
from snows_core.errors import invalid_argument
from snows_core.masks.patterns import Masks, PerLayer
from snows_core.methods import GivenWeights
from snows_core.methods.base import LayerSolution
from snows_core.settings import PruneSettings
from snows_core.sweep.checkpoint import Checkpoint, Reached, with_costs
from snows_core.sweep.choose_masks import stage_masks
from snows_core.sweep.image_scores import ImageScores, needs_images
from snows_core.sweep.network_steps import chooses_network_masks, network_steps
from snows_core.sweep.prepare import Prepared
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep


class StagedSweep:
    """All stages of a run.

    Args:
        prepared: network and layers.
        masks: of the only stage, by layer name, on the device of the run; with several stages, or masks that are made
            from images, each stage makes its own.
        steps: what is done with each layer.
        images: calibration images (N, C, H, W); the sweeps see as many of the first as ``settings.sweep_images`` says.
        settings: schedule, memory, seed and so on; labels in the order of the images.
        checkpoint: keeps on disk what is done; None for nothing.

    Attributes:
        solutions: what became of each layer so far; costs are those of all stages.
        records: one for each stage begun: pattern, k, sparsity, seconds, products, image_products, complete.
        solved, pending: see :class:`Reached`.
        interrupted: whether Ctrl-C ended the run.
        sweep: the last one begun.
        whole: methods that look at the whole network; None where there is none.
    """

    def __init__(
        self,
        prepared: Prepared,
        masks: Masks,
        steps: LayerSteps,
        images: Tensor,
        settings: PruneSettings,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.prepared, self.masks, self.steps, self.images = prepared, masks, steps, images
        self.settings, self.checkpoint = settings, checkpoint
        self.solutions: dict[str, LayerSolution] = {}
        self.records: list[Mapping[str, Any]] = []
        self.solved: frozenset[str] = frozenset()
        self.pending: Masks = {}
        self.interrupted = False
        self.sweep: Sweep
        self._before: Mapping[str, Tensor] = {}  # layer name to the weight after the stage before
        self._between: Sweep | None = None
        self._scores: ImageScores | None = None
        if needs_images(settings):
            self._scores = ImageScores(prepared.network, prepared.layers, images[: settings.sweep_images], settings)
        self.whole = network_steps(prepared, images[: settings.sweep_images], settings)
        self._from_images = self._scores is not None or chooses_network_masks(settings)

    @property
    def where(self) -> str:
        """Where it was interrupted, for the report."""
        count = len(self.prepared.schedule)
        return "interrupted" if count == 1 else f"interrupted in stage {len(self.records)} of {count}"

    def run(self, reached: Reached | None = None) -> None:
        """Run every stage; Ctrl-C ends the run and keeps what is done.

        Args:
            reached: where an earlier, interrupted run ended.

        Raises:
            SnowsError: where it ended inside a stage whose weights are not there to begin with any more.
        """
        reached = Reached() if reached is None else reached
        lost = reached.stage > 1 and reached.solved and reached.before is None
        if lost and isinstance(self.steps.update, GivenWeights):
            got = f"a result inside stage {reached.stage}, with update={self.settings.update!r}"
            expected = "one between two stages, or of the first: this method begins with all weights of the one before"
            raise invalid_argument("resume", got, expected, "Run it anew, without resume.")
        self.solutions, self.records = dict(reached.solutions), list(reached.records)
        if self.whole is not None and reached.gradients:
            self.whole.record, self.whole.operations = reached.gradients["record"], reached.gradients["operations"]
        for number in range(reached.stage, len(self.prepared.schedule) + 1):
            now = reached if number == reached.stage else None
            known = {} if now is None else {name: self.solutions[name] for name in now.solved} | dict(now.alone)
            self.solved = frozenset(known)
            try:
                self._begin_stage(number, known, now)
            except KeyboardInterrupt:
                if not self.solutions or current().several:
                    raise  # there is nothing to keep, or the others are elsewhere and would wait for this one
                self.interrupted = True
                self.records.append(self._record(number, {}, 0.0))
                return
            self._run_stage(number, known)
            if self.interrupted:
                return

    def _begin_stage(self, number: int, known: Mapping[str, LayerSolution], now: Reached | None) -> None:
        """Make masks and sweep of a stage, of which some layers may be ``known``; keep what the stages before gave."""
        self._before = {name: done.weight for name, done in self.solutions.items()} if number > 1 else {}
        if now is not None and now.before is not None:
            self._before = now.before
        elif self.checkpoint is not None and number > 1:
            self.checkpoint.keep_stage(number, self.records, self.solutions)
        masks = {name: done.mask for name, done in known.items()} | ({} if now is None else dict(now.pending))
        if len(masks) < len(self.prepared.layers):
            masks = self.stage_masks(number) | masks
            if self.checkpoint is not None and self._makes_masks:
                self.checkpoint.keep_masks(masks, self._gradients)
        self._stage_masks = masks
        self.sweep = self._sweep_of(number, masks)
        if now is not None and now.batch_size is not None:
            self.sweep.shrink(now.batch_size)

    @property
    def _makes_masks(self) -> bool:
        """Whether masks are made in each stage."""
        return len(self.prepared.schedule) > 1 or self._from_images

    @property
    def _gradients(self) -> dict[str, Any]:
        """What a manifest says of methods that look at the whole network."""
        if self.whole is None:
            return {}
        return {"record": self.whole.record, "operations": self.whole.operations}

    def stage_masks(self, number: int) -> Masks:
        """Return the masks of a stage, whose weights before are known; those of the only one may be there already."""
        if not self._makes_masks:
            return dict(self.masks)
        prepared, settings = self.prepared, self.settings
        weights = dict(self._before)
        pattern, saliency = prepared.schedule[number - 1], settings.saliency
        if self.whole is not None and chooses_network_masks(settings):
            return self.whole.masks(pattern, weights)
        if self._scores is not None:
            scores = self._scores.at(weights)
            saliency = lambda name, _: scores[name]  # noqa: E731
        made = stage_masks(prepared.network, prepared.layers, pattern, saliency, settings.seed, weights)
        device = next(prepared.network.module.parameters()).device
        return {name: mask.to(device) for name, mask in made.items()}

    def _sweep_of(self, number: int, masks: Masks) -> Sweep:
        """Return the sweep of a stage; the stages between share one plan."""
        last = number == len(self.prepared.schedule)
        steps = self.steps.of_stage(self.prepared.schedule[number - 1], last)
        before = self._before
        if self.whole is not None and steps.own_start and not self.whole.own:  # a resumed run has its masks already
            self.whole.masks(self.prepared.schedule[number - 1], before)
        if self.whole is not None and isinstance(steps.update, GivenWeights):
            steps.update.weights = self.whole.weights(self.prepared.schedule[number - 1], before, masks)
        if not last and self._between is not None:
            self._between = self._between.again(masks, before, steps)
            self._between.own = {} if self.whole is None else self.whole.own
            return self._between
        self._between = None  # its values are not needed any more
        settings, layers = self.settings, self.prepared.layers
        images = self.images[: settings.sweep_images]
        sweep = Sweep(self.prepared.network, layers, masks, steps, images, settings.max_memory, settings.seed, before)
        sweep.own = {} if self.whole is None else self.whole.own
        if not last:
            sweep.keep_dense_values()
            self._between = sweep
        return sweep

    def _run_stage(self, number: int, known: Mapping[str, LayerSolution]) -> None:
        count = len(self.prepared.schedule)
        pattern = self.prepared.schedule[number - 1]
        words = pattern.title if isinstance(pattern, PerLayer) else pattern
        title = "pruning" if count == 1 else f"stage {number} of {count}, {words}"
        start = time.perf_counter()
        self.sweep.run(self.settings.progress, known, title, self._keep)
        done, self.interrupted = self.sweep.solutions, self.sweep.interrupted
        earlier = sum(solution.statistics.seconds for solution in known.values())
        self.records.append(self._record(number, done, earlier + time.perf_counter() - start))
        for name, solution in done.items():
            fresh = name not in known
            self.solutions[name] = with_costs(solution, self.solutions.get(name)) if fresh else solution
        self.solved = frozenset(done)
        if self.interrupted and self._makes_masks:
            self.pending = {name: mask for name, mask in self._stage_masks.items() if name not in done}

    def _keep(self, name: str, done: LayerSolution) -> None:
        if self.checkpoint is not None:
            self.checkpoint.keep_layer(name, done, self.sweep.batch_size)

    def _record(self, number: int, done: Mapping[str, LayerSolution], seconds: float) -> Mapping[str, Any]:
        """Return what a manifest says of a stage."""
        last, given = number == len(self.prepared.schedule), self.settings.masks is not None
        kept = sum(int(solution.mask.sum()) for solution in done.values())
        statistics = [solution.statistics for solution in done.values()]
        return {
            "pattern": "given masks" if given else str(self.prepared.schedule[number - 1]),
            "k": self.settings.k if last else self.settings.stage_k,
            "layers": len(done),
            "sparsity": 1 - kept / max(1, sum(solution.mask.numel() for solution in done.values())),
            "products": sum(of_layer.products for of_layer in statistics),
            "image_products": sum(of_layer.image_products for of_layer in statistics),
            "seconds": seconds,
            "complete": not self.interrupted,
        }
