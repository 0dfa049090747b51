"""What comes before any solve: the traced network, the layers, and their masks; the same for a run and its estimate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import first_images
from snows_core.distributed import is_main
from snows_core.errors import SnowsError, invalid_argument
from snows_core.masks.patterns import NM, Masks, Pattern, masks_for, parse_pattern
from snows_core.masks.saliency import check_name
from snows_core.masks.schedule import most_stages, schedule
from snows_core.network.copies import unwrap
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings, get_effort, get_recipe, settings_of
from snows_core.sweep.augment import check_augment
from snows_core.sweep.choose_masks import choose_masks, read_masks
from snows_core.sweep.image_scores import stand_in
from snows_core.sweep.layer_budgets import allocation_record, budgeted, check_allocation
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.no_effect import check_effects, check_refined
from snows_core.sweep.permute import Permutation, check_permute, permuted
from snows_core.sweep.refine import check_refinable
from snows_core.sweep.select import LayerSelection, PrunableLayer, select_layers
from snows_core.sweep.select_units import check_units, with_units


@dataclass(frozen=True)
class Prepared:
    """A network ready to be pruned.

    Attributes:
        model: the caller's network without wrappers, or a copy of it with permuted channels.
        network: its traced copy, in single or double precision, on the device of the model.
        selection: every layer, with the reason where it stays dense.
        masks: the masks of the others by name, for the last stage as the dense weights choose them (by magnitude where
            the saliency looks at images).
        schedule: the patterns of all stages.
        allocation: what the manifest says of how an overall sparsity was shared out; None where its scope said so.
        permutations: channels of ``model`` that were put in another order than the caller's.
        is_refinable: whether joint refinement can compare it with the dense network; False where nobody needs to know.
    """

    model: nn.Module
    network: Network
    selection: LayerSelection
    masks: Masks
    schedule: tuple[Pattern, ...]
    allocation: Mapping[str, Any] | None = None
    permutations: tuple[Permutation, ...] = ()
    is_refinable: bool = False

    @property
    def layers(self) -> list[PrunableLayer]:
        """Layers to be pruned, in execution order."""
        return self.selection.prunable

    def move(self, device: torch.device) -> Masks:
        """Bring the traced network to a device, and return the masks there."""
        self.network.module.to(device)
        return {name: mask.to(device) for name, mask in self.masks.items()}

    def remask(self, settings: PruneSettings) -> Callable[[dict[str, Tensor]], Masks]:
        """Return what chooses masks of the same pattern from other scores; weights that came as zeros stay zero."""
        pattern = self.schedule[-1]
        given = {entry.name: self.network.weight(entry.layer) != 0 for entry in self.layers}

        def masks(scores: dict[str, Tensor]) -> Masks:
            chosen = masks_for(scores, pattern, lambda _, score: score, settings.seed)
            return {name: mask & given[name].to(mask.device) for name, mask in chosen.items()}

        return masks


def checked_settings(function: Callable[..., Any], /, **options: Any) -> PruneSettings:
    """Read what a function was given, the pattern and the names of methods included.

    Args:
        function: who asks.
        **options: see :func:`snows_core.settings.settings_of`.

    Returns:
        The settings, with the pattern itself instead of its text, and what their effort stands for; of several
        processes only the first one shows progress.

    Raises:
        SnowsError: on an unknown option or method, or a value that cannot be meant.
    """
    asked = settings_of(function, **options)
    settings = with_effort(replace(asked, pattern=parse_pattern(asked.pattern)))
    layer_steps(settings)  # refuses names that no method has, before any work
    check_allocation(settings)
    check_units(settings)
    check_permute(settings)
    check_name(settings.saliency)
    stages_of(settings)
    check_effects(asked, settings)
    return replace(settings, progress=settings.progress and is_main())


def with_effort(settings: PruneSettings) -> PruneSettings:
    """Return settings in which what was left to the effort is chosen.

    Other methods, and the published procedure, are one sweep: with stages they would be something else. Masks that are
    given stay as they are.
    """
    own = settings.update == "snows" and get_recipe(settings.recipe).name != "paper"
    effort = get_effort(settings.effort if own else "quick")
    pattern = parse_pattern(settings.pattern)
    made, of_groups = settings.masks is None and settings.mask in (None, "magnitude"), isinstance(pattern, NM)
    swaps = effort.swaps and made and of_groups and settings.saliency == "magnitude" and settings.mask is None
    mask = "swaps" if swaps else settings.mask or "magnitude"
    stages = most_stages(pattern, effort.stages) if made and not swaps else 1
    # A function of the caller's that scores may know the weights by their places.
    permute = effort.permute and made and of_groups and isinstance(settings.saliency, str)
    return replace(
        settings,
        mask=mask,
        stages=stages if settings.stages is None else settings.stages,
        sweep_images=effort.sweep_images if settings.sweep_images is None else settings.sweep_images,
        stage_k=effort.stage_k if settings.stage_k is None else settings.stage_k,
        refine=0 if settings.refine is None and effort.passes == 0 else settings.refine,
        permute=permute if settings.permute is None else settings.permute,
    )


def with_refinement(settings: PruneSettings, prepared: Prepared, images: int) -> PruneSettings:
    """Return settings that say how many steps of joint refinement there are, by effort where nobody has asked for any.

    Args:
        settings: from :func:`with_effort`.
        prepared: the network; one whose answers cannot be compared is refined only by who asks for it.
        images: calibration images.

    Raises:
        SnowsError: where there are none, and an option of refinement asks for them.
    """
    if settings.refine is not None:
        return settings
    steps = get_effort(settings.effort).refine(images) if prepared.is_refinable else 0
    if steps == 0:
        check_refined(settings)
    return replace(settings, refine=steps)


def prepare(model: nn.Module, parts: list[Tensor], settings: PruneSettings) -> Prepared:
    """Trace a network, choose its layers and make or read their masks.

    Args:
        model: the caller's network in eval mode, possibly wrapped; not changed.
        parts: calibration images; two of them are run.
        settings: what the caller asked for, from :func:`checked_settings`.

    Returns:
        The network, its layers and masks.

    Raises:
        SnowsError: on a model that cannot be pruned, images that do not fit it, or settings that cannot be met.
    """
    if not isinstance(model, nn.Module):
        raise invalid_argument(
            "model", type(model).__name__, "a torch.nn.Module", "Pass the network itself, not its name."
        )
    model = unwrap(model)
    example = first_images(parts, 2)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None:
        example = example.to(first.device, torch.float64 if first.dtype == torch.float64 else torch.float32)
    if settings.augment is not None and settings.refine != 0:
        check_augment(settings.augment, example)
    given, pattern = settings.masks, parse_pattern(settings.pattern)

    def read(model: nn.Module) -> tuple[Network, LayerSelection]:
        network = Network(model, settings.leaf_modules, example=example)
        layers, exclude = settings.layers, settings.exclude
        return network, select_layers(network, model, example, layers, exclude, keep_ends=given is None)

    network, selection = read(model)
    is_refinable = _is_refinable(network, selection, example, settings)
    permutations: tuple[Permutation, ...] = ()
    if settings.permute and isinstance(pattern, NM):
        chosen = [entry.name for entry in selection.prunable]
        model, done = permuted(network, model, example, pattern, stand_in(settings), chosen)
        (network, selection), permutations = read(model), tuple(done)
    stages = stages_of(settings)
    if given is not None:
        selection, masks = read_masks(network, selection, pattern, given)
        return Prepared(model, network, selection, masks, stages, is_refinable=is_refinable)
    selection, stages = budgeted(network, selection, stages, settings.allocation)
    selection, stages = with_units(network, model, example, selection, stages)
    # Scores that look at images come with the sweep: until then magnitudes stand for them, in counts and checks.
    selection, masks = choose_masks(network, selection, stages[-1], stand_in(settings), settings.seed)
    record = allocation_record(settings.allocation, stages[-1])
    return Prepared(model, network, selection, masks, stages, record, permutations, is_refinable)


def _is_refinable(network: Network, selection: LayerSelection, example: Tensor, settings: PruneSettings) -> bool:
    """Tell whether joint refinement can compare a network with its dense self.

    Returns:
        False, too, where there will be no refinement.

    Raises:
        SnowsError: when it cannot, and the caller asked for steps.
    """
    if settings.refine == 0:
        return False
    try:
        check_refinable(network, [entry.layer.weight_name for entry in selection.prunable], example)
    except SnowsError:
        if settings.refine:
            raise
        return False
    return True


def stages_of(settings: PruneSettings) -> tuple[Pattern, ...]:
    """Return the patterns of all stages.

    Raises:
        SnowsError: on stages that do not lead to the pattern, or beside given masks.
    """
    pattern = parse_pattern(settings.pattern)
    if settings.masks is not None and settings.stages not in (None, 1):
        fix = "Masks that are given are the same in every stage: leave stages out."
        raise invalid_argument("stages", f"{settings.stages!r} with masks=", "one stage beside given masks", fix)
    return schedule(pattern, settings.stages or 1)
