"""Options that would change nothing, refused: who passes one expects something of it, and has mistyped another."""

from __future__ import annotations

from snows_core.errors import invalid_argument, shown
from snows_core.methods import METHODS
from snows_core.settings import PruneSettings


def check_effects(asked: PruneSettings, settings: PruneSettings) -> None:
    """Refuse options that can have no effect, as far as can be told without a network.

    Bounds (``max_images``, ``sweep_images``, ``max_memory``) may be larger than what there is.

    Args:
        asked: the settings as the caller gave them.
        settings: the same with what their effort stands for.

    Raises:
        SnowsError: on options of joint refinement without any, of stages where there is one, and on a saliency beside
            masks that are made otherwise.
    """
    if settings.refine == 0:
        check_refined(settings)
    if asked.stage_k is not None and settings.stages == 1:
        got = f"{asked.stage_k} with one stage"
        raise invalid_argument("stage_k", got, "it beside several stages", "Pass stages=, or leave stage_k out.")
    if not _asks_saliency(settings):
        beside = "masks=" if settings.masks is not None else f"mask={settings.mask!r}"
        expected = "masks that a saliency makes, as with mask='magnitude'"
        raise invalid_argument("saliency", f"{shown(settings.saliency)} with {beside}", expected, "Leave one out.")


def check_refined(settings: PruneSettings) -> None:
    """Refuse options of joint refinement for a run that has none.

    Raises:
        SnowsError: on the first of them.
    """
    fix = "Pass refine=, for instance refine=60, or leave {} out."
    for name, is_asked in (
        ("augment", settings.augment is not None),
        ("moving_masks", settings.moving_masks),
        ("refine_solver", settings.refine_solver != PruneSettings.refine_solver),
    ):
        if is_asked:
            got = f"{shown(getattr(settings, name))} without joint refinement"
            raise invalid_argument(name, got, "a run with steps of refinement", fix.format(name))


def _asks_saliency(settings: PruneSettings) -> bool:
    """Tell whether the saliency of these settings is the default or will be asked for scores."""
    if settings.saliency == PruneSettings.saliency or settings.permute:
        return True
    if settings.masks is not None:
        return False
    improves = settings.mask in METHODS and METHODS[settings.mask].improves_masks and callable(settings.saliency)
    return settings.mask in (None, "magnitude") or improves
