"""line_search.py: Armijo backtracking takes what descends enough and never keeps what it rejected."""

import math

import pytest
import torch

from snows_core.solvers.line_search import armijo


def quadratic_value(x):
    return float((x**2).sum())


def test_armijo_takes_the_full_step_when_it_is_good_and_shrinks_by_its_factor_when_not():
    w, d = torch.tensor([1.0]), torch.tensor([-1.0])
    full = armijo(quadratic_value, w, d, 1.0, -2.0)
    assert (full.step, full.loss, full.evaluations) == (1.0, 0.0, 1)
    far = armijo(quadratic_value, w, 8 * d, 1.0, -16.0, shrink=0.5)
    assert (far.step, far.evaluations) == (0.125, 4)
    assert far.loss == quadratic_value(w + far.step * 8 * d)


def test_armijo_asks_for_a_fraction_of_the_predicted_decrease():
    w, d = torch.tensor([1.0], dtype=torch.float64), torch.tensor([-1.99], dtype=torch.float64)  # lands at -0.99
    assert armijo(quadratic_value, w, d, 1.0, -3.98, c=0.001).step == 1.0
    assert armijo(quadratic_value, w, d, 1.0, -3.98, c=0.4).step < 1.0


@pytest.mark.parametrize("value", [lambda x: 2.0, lambda x: math.nan, lambda x: math.inf])
def test_armijo_never_keeps_a_rejected_step(value):
    # Fault 4 of the published code and a trap: a failed line search still applied the step. A NaN trial is a rejection.
    search = armijo(value, torch.ones(2), -torch.ones(2), 1.0, -1.0, max_backtracks=7)
    assert (search.step, search.loss, search.evaluations) == (0.0, 1.0, 8)


def test_armijo_goes_on_past_a_nan_trial():
    search = armijo(lambda x: math.nan if float(x) < -2 else 0.0, torch.tensor([1.0]), torch.tensor([-5.0]), 1.0, -1.0)
    assert 0 < search.step < 1 and search.loss == 0.0


@pytest.mark.parametrize("slope", [0.0, 1.0, math.nan])
def test_armijo_refuses_a_direction_that_does_not_descend(slope):
    calls = []
    search = armijo(lambda x: calls.append(1) or 0.0, torch.ones(1), torch.ones(1), 1.0, slope)
    assert (search.step, search.loss, calls) == (0.0, 1.0, [])
