"""Which weights stay: patterns, saliency, and masks made elsewhere."""

from snows_core.masks.given import foreign_masks, read_mask
from snows_core.masks.patterns import (
    NM,
    SALIENCIES,
    Masks,
    Pattern,
    Saliency,
    Unstructured,
    make_scores,
    masks_for,
    parse_pattern,
)

__all__ = [
    "NM",
    "SALIENCIES",
    "Masks",
    "Pattern",
    "Saliency",
    "Unstructured",
    "foreign_masks",
    "make_scores",
    "masks_for",
    "parse_pattern",
    "read_mask",
]
