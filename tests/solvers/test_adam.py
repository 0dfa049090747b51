"""Adam against a quadratic whose minimum is known, and what it gives back where steps overshoot."""

from itertools import pairwise

import pytest
import torch
from fishers import gaussian

from snows_core.solvers.adam import adam


class Quadratic:
    """``sum_j h_j (w_j - c_j)^2 / 2`` on a mask."""

    def __init__(self):
        self.scales, self.centre = torch.logspace(-1, 1, 10, dtype=torch.float64), gaussian(10)
        self.mask = torch.arange(10) != 4

    def value(self, weight):
        return float((self.scales * (weight - self.centre).square() * self.mask).sum() / 2)

    def gradient(self, weight):
        return self.value(weight), self.scales * (weight - self.centre) * self.mask


def test_it_ends_at_the_minimum_and_leaves_what_has_no_slope():
    of, start = Quadratic(), torch.zeros(10, dtype=torch.float64)
    done = adam(of, start, 2000, 0.05)
    assert torch.allclose(done.weight[of.mask], of.centre[of.mask], atol=1e-4)  # the last steps are of about this size
    assert done.weight[4] == 0 and done.losses == (of.value(start), of.value(done.weight))


def test_the_first_step_is_as_long_as_the_rate_and_the_last_ones_are_short():
    of, start, seen = Quadratic(), torch.zeros(10, dtype=torch.float64), []
    told = of.gradient
    of.gradient = lambda weight: seen.append(weight.clone()) or told(weight)
    adam(of, start, 40, 1e-4)
    moves = [float((b - a).abs().max()) for a, b in pairwise(seen)]
    assert moves[0] == pytest.approx(1e-4, rel=1e-6) and moves[-1] < 0.02e-4  # half a cosine: (1 - cos(pi / 20)) / 2


@pytest.mark.parametrize(("steps", "rate"), [(1, 1e3), (7, 1e3), (0, 0.1)])
def test_steps_too_long_give_the_start_back(steps, rate):
    of, start = Quadratic(), torch.zeros(10, dtype=torch.float64)
    done = adam(of, start, steps, rate)
    assert torch.equal(done.weight, start) and done.losses == (of.value(start),) * 2
