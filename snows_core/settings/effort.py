"""How much work a run may be: one word for stages, their K, and joint refinement.

"quick" is one sweep. "standard" and "best" were chosen by measurement on ResNet-20, CIFAR-10 (figures/steps); every
single option overrides what the word says.
"""

from __future__ import annotations

from dataclasses import dataclass

from snows_core.errors import closest, invalid_argument


@dataclass(frozen=True)
class Effort:
    """What a word stands for.

    Attributes:
        stages: how many, or as many as N:M has steps where that is fewer.
        stage_k: K of the re-fit between two stages.
        refine: steps of joint refinement.
        sweep_images: images of the sweeps at most; refinement takes all there are.
    """

    stages: int = 1
    stage_k: int = 0
    refine: int = 0
    sweep_images: int | None = None


EFFORTS = {
    "quick": Effort(),
    "standard": Effort(stages=5, stage_k=2),
    "best": Effort(stages=5, stage_k=2, refine=1500, sweep_images=1024),
}
"""Word to what it stands for."""


def get_effort(effort: str) -> Effort:
    """Return what a word stands for.

    Args:
        effort: "quick", "standard" or "best".

    Raises:
        SnowsError: on another word.

    >>> get_effort("quick").stages
    1
    """
    if not isinstance(effort, str) or effort not in EFFORTS:
        raise invalid_argument("effort", repr(effort), f"one of {list(EFFORTS)}", closest(str(effort), EFFORTS))
    return EFFORTS[effort]
