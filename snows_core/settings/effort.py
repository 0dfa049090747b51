"""How much work a run may be: one word for stages, their K, and joint refinement.

"quick" is one sweep. "standard" and "best" were chosen by measurement (figures/steps); every single option overrides
what the word says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from snows_core.errors import closest, invalid_argument

REFINE_BATCH = 64
"""Images of one step of joint refinement."""


@dataclass(frozen=True)
class Effort:
    """What a word stands for.

    Attributes:
        stages: how many, or as many as N:M has steps where that is fewer; one where masks are improved by swaps.
        stage_k: K of the re-fit between two stages.
        passes: of joint refinement over the images, and
        most_steps: how many steps they are at most.
        sweep_images: images of the sweeps at most; refinement takes all there are.
        permute: whether channels are permuted before N:M masks of magnitude are made.
        swaps: whether these masks are improved by swaps.
    """

    stages: int = 1
    stage_k: int = 0
    passes: int = 0
    most_steps: int = 0
    sweep_images: int | None = None
    permute: bool = False
    swaps: bool = False

    def refine(self, images: int) -> int:
        """Return the steps of joint refinement for so many calibration images.

        >>> [EFFORTS["standard"].refine(images) for images in (64, 256, 3000)]
        [15, 60, 120]
        """
        return min(self.most_steps, math.ceil(self.passes * images / REFINE_BATCH))


EFFORTS = {
    "quick": Effort(),
    "standard": Effort(stages=5, passes=15, most_steps=120, permute=True, swaps=True),
    "best": Effort(stages=5, passes=100, most_steps=2000, sweep_images=1024, permute=True, swaps=True),
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
