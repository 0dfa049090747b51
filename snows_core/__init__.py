"""SNOWS: one-shot pruning of vision networks that preserves deep representations.

``prune`` is the main entry; see the README for a first example.
"""

from snows_core import _threads  # noqa: F401  (before PyTorch)
from snows_core.errors import SnowsError
from snows_core.estimate import estimate
from snows_core.evaluate import Metrics, evaluate
from snows_core.masks import NM, Unstructured
from snows_core.provenance import provenance, versions
from snows_core.prune import make_masks, prune
from snows_core.recipe import Recipe
from snows_core.refine import flip_and_shift
from snows_core.result import PruneResult, apply_masks, load

__version__ = "0.1.0"

__all__ = [
    "NM",
    "Metrics",
    "PruneResult",
    "Recipe",
    "SnowsError",
    "Unstructured",
    "apply_masks",
    "estimate",
    "evaluate",
    "flip_and_shift",
    "load",
    "make_masks",
    "provenance",
    "prune",
    "versions",
]
