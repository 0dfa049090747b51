"""Options that would do nothing: whoever typed them expects something else than would come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from snows_core.errors import invalid_argument
from snows_core.settings import PruneSettings

_DEFAULTS = {setting.name: setting.default for setting in fields(PruneSettings)}


def refuse_idle(typed: Mapping[str, Any], refined: bool) -> None:
    """Refuse options that would do nothing beside the others that were typed.

    Args:
        typed: name to value, as it was typed.
        refined: whether there are steps of joint refinement.

    Raises:
        SnowsError: on the first.
    """
    for name, flag in (("moving_masks", "--moving-masks"), ("refine_solver", "--refine-solver")):
        if not refined and typed.get(name) not in (None, False, _DEFAULTS[name]):
            raise invalid_argument(flag, "no --refine", "steps of refinement to take", "For instance --refine 150.")
    if typed.get("masks") is None:
        return
    for name in ("pattern", "stages", "stage_k", "flops", "allocation", "permute"):
        if typed.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise invalid_argument(
                flag, f"{typed[name]} beside --masks", "one of the two", "Masks that are given stay as they are."
            )
