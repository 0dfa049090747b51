"""Masks and updates compared: a grid of cells on one network, judged on the same images, paired image by image."""

from snows_core.comparison.cells import Cell, check_grid
from snows_core.comparison.folder import Output
from snows_core.comparison.grid import compare
from snows_core.comparison.results import Comparison, Row

__all__ = ["Cell", "Comparison", "Output", "Row", "check_grid", "compare"]
