"""Newton, conjugate gradients, line search and least squares: tensors and functions only, no network in sight."""

from snows_core.solvers.conjugate_gradients import CGSolution, StopReason, conjugate_gradients
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.line_search import LineSearch, armijo
from snows_core.solvers.newton_cg import Linearisation, NewtonSolution, Objective, newton
from snows_core.solvers.row_factors import RowFactors
from snows_core.solvers.swaps import Swapped, swap_inputs

__all__ = [
    "CGSolution",
    "LineSearch",
    "Linearisation",
    "NewtonSolution",
    "Objective",
    "RowFactors",
    "StopReason",
    "Swapped",
    "armijo",
    "conjugate_gradients",
    "masked_least_squares",
    "newton",
    "swap_inputs",
]
