"""Calibration images, and the values that they give rise to inside a network."""

from snows_core.activations.cache import ActivationCache, LazyBatches
from snows_core.activations.calibration import calibration_parts
from snows_core.activations.gram_matrices import gram, normal_equations
from snows_core.activations.offload import DiskTensor

__all__ = [
    "ActivationCache",
    "DiskTensor",
    "LazyBatches",
    "calibration_parts",
    "gram",
    "normal_equations",
]
