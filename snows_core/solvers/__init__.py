"""Newton, least squares, and what chooses masks of one layer: tensors and functions only, no network in sight."""

from snows_core.solvers.column_sweep import column_sweep
from snows_core.solvers.conjugate_gradients import CGSolution, StopReason, conjugate_gradients
from snows_core.solvers.damped_gram import DampedGram, damped_gram
from snows_core.solvers.exact_obs import cheapest_removals, removal_in_groups, removal_order
from snows_core.solvers.l0_admm import pattern_admm
from snows_core.solvers.l1_admm import L1LeastSquares, sparsest
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.line_search import LineSearch, armijo
from snows_core.solvers.newton_cg import Linearisation, NewtonSolution, Objective, newton
from snows_core.solvers.row_factors import RowFactors
from snows_core.solvers.swaps import Swapped, swap_inputs

__all__ = [
    "CGSolution",
    "DampedGram",
    "L1LeastSquares",
    "LineSearch",
    "Linearisation",
    "NewtonSolution",
    "Objective",
    "RowFactors",
    "StopReason",
    "Swapped",
    "armijo",
    "cheapest_removals",
    "column_sweep",
    "conjugate_gradients",
    "damped_gram",
    "masked_least_squares",
    "newton",
    "pattern_admm",
    "removal_in_groups",
    "removal_order",
    "sparsest",
    "swap_inputs",
]
