"""Which weights stay: patterns, the stages that lead to them, saliency, and masks made elsewhere."""

from snows_core.masks.allocation import allocate, lamp_scores
from snows_core.masks.given import foreign_masks
from snows_core.masks.mask_values import read_mask
from snows_core.masks.patterns import (
    NM,
    Masks,
    Pattern,
    PerLayer,
    Structured,
    Unstructured,
    masks_for,
    parse_pattern,
)
from snows_core.masks.saliency import SALIENCIES, make_scores
from snows_core.masks.schedule import schedule
from snows_core.settings import Saliency

__all__ = [
    "NM",
    "SALIENCIES",
    "Masks",
    "Pattern",
    "PerLayer",
    "Saliency",
    "Structured",
    "Unstructured",
    "allocate",
    "foreign_masks",
    "lamp_scores",
    "make_scores",
    "masks_for",
    "parse_pattern",
    "read_mask",
    "schedule",
]
