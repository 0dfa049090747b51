"""Masks and updates compared: a grid of cells on one network, judged on the same images, paired image by image."""

from snows_core.comparison.cells import Cell, check_grid
from snows_core.comparison.folder import Output
from snows_core.comparison.grid import compare
from snows_core.comparison.judge import Judge
from snows_core.comparison.pairs import Pair, compare_pair, mcnemar
from snows_core.comparison.results import Comparison, Row

__all__ = [
    "Cell",
    "Comparison",
    "Judge",
    "Output",
    "Pair",
    "Row",
    "check_grid",
    "compare",
    "compare_pair",
    "mcnemar",
]
