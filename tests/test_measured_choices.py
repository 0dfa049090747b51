"""Numbers that were chosen by measurement: the tables in figures/ and the README hold for these, and for no others.

Whoever changes one of them measures again, and changes it here, too.
"""

import importlib

import pytest

from snows_core.settings import EFFORTS, Effort
from snows_core.sweep.joint_problem import JointOptions

CHOICES = {
    "solvers.newton_cg": {"MISLEADS": 0.1, "GROWTH": 4},
    "solvers.swaps": {"COPIES": 6, "NEGLIGIBLE": 1e-6},
    "masks.allocation": {"UNITS": 4000, "FINE": 48},
    "masks.permutation": {"ROUNDS": 100, "MOST": 1e8, "FEWEST": 64, "NEGLIGIBLE": 1e-6},
    "loss.fisher": {"TOGETHER": 8},
    "loss.joint_preconditioner": {"GROUP": 8, "LEAST": 1e-2},
    "methods.adaprune": {"STEPS": 300, "RATE": 0.02},
    "methods.choose_k": {"LADDER": (2, 5, 10, 20), "SHARE_PER_DOUBLING": 0.08},
    "methods.enough": {
        "LOSS_POSITIONS": 2000,
        "LOSS_IMAGES": 64,
        "GRAM_POSITIONS": 400,
        "CURVATURE_POSITIONS": 200,
        "IMAGES": 32,
        "SHARE": 0.3,
    },
    "methods.snows": {"STAGNANT": 6, "SHARE": 0.005},
    "methods.snows_adam": {"STEPS": 60, "RATE": 0.05},
    "methods.snows_fisher": {"SHARE": 0.6},
    "methods.swaps": {"PART": 16},
    "sweep.measured_allocation": {
        "POINTS": 8,
        "LEAST_SHARE": 0.25,
        "POWERS": (1.0, 2.0),
        "MIXED": ("uniform", "erk"),
        "FINALISTS": 3,
        "FITTED": 256,
        "TRIED": 128,
        "JUDGED": 128,
    },
    "sweep.moving_masks": {"EVERY": 20, "FROZEN": 0.5, "WORTH": 0.2},
    "sweep.layer_steps": {"PRODUCTS_BETWEEN": 4},
    "sweep.refine": {"FEW": 64, "LOOK": 10, "SETTLED": 0.5},
    "sweep.refine_adam": {"RATE": 5e-3, "SMALLEST": 1e-2},
    "sweep.refine_natural": {
        "RATE": 1.3,
        "POWER": 6,
        "PROBED": 32,
        "MOMENTUM": 0.9,
        "RIDGE": 1e-2,
        "REFRESH": 20,
        "DIVERGED": 2.0,
        "RISE": 0.1,
    },
    "sweep.refine_newton": {"BATCHES": 2},
}


@pytest.mark.parametrize("place", CHOICES)
def test_the_tables_were_measured_with_these(place):
    module = importlib.import_module(f"snows_core.{place}")
    assert {name: getattr(module, name) for name in CHOICES[place]} == CHOICES[place]


def test_efforts_and_the_joint_stage_are_those_that_were_measured():
    assert EFFORTS == {
        "quick": Effort(stages=1, stage_k=0, passes=0, most_steps=0, sweep_images=None, permute=False, swaps=False),
        "standard": Effort(stages=5, stage_k=0, passes=15, most_steps=120, sweep_images=None, permute=True, swaps=True),
        "best": Effort(stages=5, stage_k=0, passes=100, most_steps=2000, sweep_images=1024, permute=True, swaps=True),
    }
    joint = JointOptions(1)
    assert (joint.batch_size, joint.held_back, joint.patience, joint.rate) == (64, 0.125, 10, None)
