"""Which weights stay under two budgets, against every choice there is and against an integer programme."""

import itertools

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

from snows_core.solvers.two_budgets import Layers, highest_within


def layers(sizes, costs, least=0, seed=0):
    draw = np.random.default_rng(seed)
    return Layers([np.sort(draw.random(size) ** 2) for size in sizes], costs, [least] * len(sizes))


def value(of, counts):
    return sum(float(values[len(values) - count :].sum()) for values, count in zip(of.values, counts, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_is_better_by_more_than_the_last_weights(seed):
    of = layers([5, 4, 3], [9.0, 4.0, 1.0], seed=seed)
    for count, budget in itertools.product((4, 8), (15.0, 30.0, 45.0)):
        found = highest_within(of, count, budget)
        assert sum(found) <= count and of.cost(found) <= budget
        choices = itertools.product(range(6), range(5), range(4))
        best = max(value(of, c) for c in choices if sum(c) <= count and of.cost(c) <= budget)
        # A relaxation with two constraints splits two weights at most, and each is worth no more than the best.
        assert value(of, found) >= best - 2 * max(values[-1] for values in of.values)
        assert value(of, found) >= 0.75 * best


@pytest.mark.parametrize(("count", "share"), [(400, 0.3), (400, 0.9), (100, 0.05), (900, 0.2)])
def test_of_many_weights_it_is_the_integer_programme_up_to_a_thousandth(count, share):
    sizes, costs = [100, 400, 600], [64.0, 16.0, 4.0]
    of = layers(sizes, costs)
    budget = share * of.cost(sizes)
    found = highest_within(of, count, budget)
    each = np.repeat(costs, sizes)
    bounds = LinearConstraint(np.stack([np.ones_like(each), each]), ub=[count, budget])
    exact = milp(-np.concatenate(of.values), constraints=bounds, integrality=np.ones_like(each), bounds=(0, 1))
    assert exact.success and sum(found) <= count and of.cost(found) <= budget
    assert value(of, found) >= -exact.fun * 0.999


def test_one_budget_that_binds_alone():
    of = layers([30, 20], [5.0, 1.0])
    free = highest_within(of, 12, of.cost([30, 20]))
    ordered = np.sort(np.concatenate(of.values))
    assert sum(free) == 12 and value(of, free) == pytest.approx(ordered[-12:].sum(), rel=1e-12)
    bound = highest_within(of, 50, 40.0)
    assert of.cost(bound) <= 40 and of.cost(bound) > 40 - 5  # filled up
    assert highest_within(of, 50, of.cost([30, 20])) == [30, 20]


def test_what_has_to_stay_stays_and_is_refused_where_it_is_too_much():
    of = layers([30, 20], [50.0, 1.0], least=2)
    assert highest_within(of, 10, 110.0)[0] == 2 and highest_within(of, 4, 102.0) == [2, 2]
    assert highest_within(of, 3, 200.0) is None and highest_within(of, 10, 101.9) is None


def test_equal_values_and_empty_layers_are_filled_up_as_far_as_they_fit():
    of = Layers([np.ones(6), np.ones(6), np.ones(0)], [2.0, 3.0, 1.0], [0, 0, 0])
    found = highest_within(of, 7, 15.0)
    assert found[2] == 0 and of.cost(found) <= 15 and sum(found) >= 6


def test_the_scale_of_the_values_does_not_matter():
    of = layers([100, 400, 600], [64.0, 16.0, 4.0])
    for scale in (1e-24, 1e12):  # squares of small and of large scores
        scaled = Layers([values * scale for values in of.values], of.costs, of.least)
        assert highest_within(scaled, 400, 5000.0) == highest_within(of, 400, 5000.0)
