"""Sparsities of layers from measurement: the K-step loss of each layer alone, then whole candidates by KL.

One pass over the dense network measures each layer at several sparsities, and dynamic programming shares the weights
out so that the losses add up to the least. What adds up best is not known: powers of the loss are candidates,
beside them the closed forms (:mod:`snows_core.masks.allocation`), and what lies halfway between the two kinds. Each
candidate is pruned once by least squares, the best of them in all stages too, and the one whose outputs stay nearest to
the dense network's on images held back is taken. No label is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from snows_core.activations.cache import ActivationCache
from snows_core.distributed import current
from snows_core.errors import SnowsError, invalid_argument
from snows_core.loss.joint import JointLoss
from snows_core.loss.scores import Tally, read_scores
from snows_core.masks.allocation import ALLOCATIONS, allocate, allocate_by_losses, halfway, sizes_of
from snows_core.masks.patterns import PerLayer, Unstructured, masks_for, parse_pattern
from snows_core.masks.schedule import allocated
from snows_core.methods import BetweenStages, MeasureLosses
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, get_recipe
from snows_core.sweep.choose_masks import choose_masks
from snows_core.sweep.image_scores import stand_in
from snows_core.sweep.prepare import Prepared, stages_of
from snows_core.sweep.stages import StagedSweep
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep

POINTS = 8  # sparsities at which a layer is measured
LEAST_SHARE = 0.25  # of what a layer keeps on average stays in each
POWERS = (1.0, 2.0)  # of the loss, see :func:`snows_core.masks.allocation.allocate_by_losses`
MIXED = ("uniform", "erk")  # closed forms that are mixed with the last power: losses alone exaggerate where stages help
FINALISTS = 3  # of the candidates go all stages, where there are several: what one sweep loses, stages may repair
FITTED, TRIED, JUDGED = 256, 128, 128  # images at most, for measuring, for pruning by a candidate, and for judging


def measured(prepared: Prepared, images: Tensor, settings: PruneSettings) -> Prepared:
    """Choose the sparsity of each layer by measurement.

    Args:
        prepared: network and layers, on the device of the run.
        images: calibration images in random order (N, C, H, W); the last of those read judge.
        settings: of the run; its pattern is an overall sparsity. Where its saliency or mask looks at images, magnitudes
            stand in for them while candidates are compared.

    Returns:
        The same with masks and schedule of those sparsities, and a record of every candidate.

    Raises:
        KeyboardInterrupt: on Ctrl-C: there is nothing to keep yet.
    """
    pattern = _with_cap(parse_pattern(settings.pattern))
    asked, settings = settings, replace(settings, saliency=stand_in(settings), mask="magnitude", update="layerwise")
    held = min(JUDGED, len(images) // 4)
    fitted = images[: min(FITTED, len(images) - held)]
    judges = images[len(images) - held :] if held else fitted
    losses = _losses(prepared, fitted, pattern, settings)
    weights = {entry.name: prepared.network.weight(entry.layer) for entry in prepared.layers}
    sizes = sizes_of(weights)
    candidates = {name: allocate(weights, pattern, name) for name in ALLOCATIONS}
    by_loss = {f"loss^{power:g}": allocate_by_losses(losses, sizes, pattern, power) for power in POWERS}
    last = list(by_loss)[-1]
    mixed = {f"{last}, {name}": halfway(by_loss[last], candidates[name], sizes, pattern) for name in MIXED}
    candidates |= by_loss | mixed
    judge = Judge(prepared.network, judges)
    trials = {
        name: with_sparsities(prepared, {"sparsities": shares.sparsities}, settings)
        for name, shares in candidates.items()
    }
    few = fitted[:TRIED]
    once = {name: replace(trial, schedule=trial.schedule[-1:]) for name, trial in trials.items()}
    divergences = _divergences(judge, once, few, settings)
    ranked = sorted(divergences, key=divergences.__getitem__)
    finals = {}
    if len(prepared.schedule) > 1:
        finals = _divergences(judge, {name: trials[name] for name in ranked[:FINALISTS]}, few, settings)
    best = min(finals, key=finals.__getitem__) if finals else ranked[0]
    record = {
        "name": "measured",
        "chosen": best,
        "judged_by": judge.measure,
        "candidates": divergences,
        "finalists": finals,
        "images": {"measured": len(fitted), "tried": len(few), "judged": len(judges)},
        "sparsities": dict(candidates[best].sparsities),
    }
    return with_sparsities(prepared, record, asked)


def with_sparsities(prepared: Prepared, record: Mapping[str, Any], settings: PruneSettings) -> Prepared:
    """Return a run's network and layers with the masks and stages of sparsities that were measured before.

    Args:
        prepared: of the run.
        record: its manifest's entry of the allocation.
        settings: of the run.

    Raises:
        SnowsError: when the sparsities are not those of the run's layers.
    """
    found = record.get("sparsities") or {}
    if found.keys() != {entry.name for entry in prepared.layers}:
        expected = "one with the sparsity of each layer that is pruned"
        raise invalid_argument("resume", "a result whose allocation has other layers", expected)
    stages = allocated(stages_of(settings), PerLayer(found))
    saliency = stand_in(settings)  # as in `prepare`
    selection, masks = choose_masks(prepared.network, prepared.selection, stages[-1], saliency, settings.seed)
    return replace(prepared, selection=selection, masks=masks, schedule=stages, allocation=dict(record))


def _with_cap(pattern: object) -> Unstructured:
    """Return an overall sparsity whose cap leaves every layer a share of what layers keep on average."""
    assert isinstance(pattern, Unstructured)  # `check_allocation` refused the others
    return replace(pattern, cap=min(pattern.cap, 1 - LEAST_SHARE * (1 - pattern.sparsity)))


def _losses(
    prepared: Prepared, images: Tensor, pattern: Unstructured, settings: PruneSettings
) -> Mapping[str, Mapping[int, float]]:
    """Measure every layer at sparsities from mild to the cap, geometric in what stays."""
    sparsities = [1 - (1 - pattern.cap) ** (point / POINTS) for point in range(1, POINTS + 1)]
    recipe = get_recipe(settings.recipe)
    method = MeasureLosses(recipe, settings.k, sparsities, settings.saliency, settings.seed)
    weights = {entry.name: prepared.network.weight(entry.layer) for entry in prepared.layers}
    densest = masks_for(weights, Unstructured(sparsities[0]), settings.saliency, settings.seed)
    sweep = Sweep(
        prepared.network, prepared.layers, densest, LayerSteps(method), images, settings.max_memory, settings.seed
    )
    sweep.run(settings.progress, {}, "measuring")
    if sweep.interrupted:
        raise KeyboardInterrupt
    return method.losses


class Judge:
    """How far a pruned network's outputs are from the dense one's, on images held back.

    Args:
        network: the traced network, with the dense weights.
        images: (N, C, H, W), anywhere.

    Attributes:
        measure: "KL", or "joint loss" (:mod:`snows_core.loss.joint`) where the outputs are no logits.
    """

    def __init__(self, network: Network, images: Tensor) -> None:
        self.network, self.images = network, images
        self.device = next(network.module.parameters()).device
        self.joint: JointLoss | None = None
        self.measure = "KL"
        try:
            self.dense = [read_scores(output, len(x)) for x, output in self._outputs({})]
        except SnowsError:
            self.measure = "joint loss"

    def _outputs(self, weights: Mapping[str, Tensor]) -> Sequence[tuple[Tensor, Any]]:
        batches = [x.to(self.device) for x in self.images.split(64)]
        cache = ActivationCache(self.network, batches)
        cache.weights = dict(weights)
        return list(zip(batches, cache.finish(), strict=True))

    def divergence(self, weights: Mapping[str, Tensor]) -> float:
        """Return how far the network is from the dense one, with ``weights`` by parameter name in place of its own."""
        if self.measure != "KL":
            self.joint = self.joint or JointLoss(self.network, self.images, weights)
            return self.joint.value(self.images, weights)
        tally = Tally()
        try:
            for (x, output), dense in zip(self._outputs(weights), self.dense, strict=True):
                tally.add_reference(read_scores(output, len(x)), dense)
        except SnowsError:  # outputs that are not finite
            return float("inf")
        return max(0.0, tally.divergence / tally.compared)


def _divergences(
    judge: Judge, trials: Mapping[str, Prepared], images: Tensor, settings: PruneSettings
) -> dict[str, float]:
    """Prune by each of several allocations, every stage by least squares, and return how far each network is.

    Args:
        judge: who says how far.
        trials: name to network and layers with the masks and stages of an allocation.
        images: to fit on.
        settings: of the run.

    Returns:
        Name to divergence.
    """
    cheap = replace(settings, k=0, stage_k=0, progress=False)
    steps = LayerSteps(BetweenStages(get_recipe(settings.recipe), 0))
    found: dict[str, float] = {}
    for name, trial in tqdm(trials.items(), "judging", unit="allocation", disable=not settings.progress):
        run = StagedSweep(trial, trial.move(judge.device), steps, images, cheap)
        run.run()
        if run.interrupted:
            raise KeyboardInterrupt
        weights = {entry.layer.weight_name: run.solutions[entry.name].weight for entry in trial.layers}
        found[name] = judge.divergence(weights)
    return dict(zip(found, current().agreed(list(found.values())), strict=True))
