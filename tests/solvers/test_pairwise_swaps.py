"""pairwise_swaps.py: swaps against the quadratic of every set of removed weights."""

from itertools import combinations

import pytest
import torch
from fishers import empirical_fisher, gaussian, largest

from snows_core.solvers import pairwise_swaps
from snows_core.solvers.pairwise_swaps import removal_quadratic, swap_removed


def all_sets(gradients, weight, count, damping):
    found = {}
    for places in combinations(range(len(weight)), count):
        removed = torch.zeros(len(weight), dtype=torch.bool)
        removed[list(places)] = True
        found[places] = removal_quadratic(gradients, weight, removed, damping)
    return found


def test_the_quadratic_is_that_of_the_removed_weights():
    gradients, weight = gaussian(4, 9), gaussian(9, seed=1)
    removed = gaussian(9, seed=2) > 0
    gone = torch.where(removed, weight, 0.0)
    assert removal_quadratic(gradients, weight, removed, 0.2) == pytest.approx(
        float(gone @ empirical_fisher(gradients, 0.2) @ gone) / 2
    )


@pytest.mark.parametrize("count", [1, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_no_swap_is_left_that_lowers_the_quadratic(seed, count):
    gradients, weight = gaussian(4, 8, seed=seed), gaussian(8, seed=seed + 30)
    start = largest(count)(-weight.abs())
    movable = torch.ones(8, dtype=torch.bool)
    found = swap_removed(gradients, weight, start, movable, 0.05)
    values = all_sets(gradients, weight, count, 0.05)
    end = values[tuple(found.nonzero().flatten().tolist())]
    assert int(found.sum()) == count and end <= removal_quadratic(gradients, weight, start, 0.05)
    if count in (1, 7):  # one swap reaches every set
        assert end == min(values.values())
    for back in found.nonzero().flatten():
        for gone in (~found).nonzero().flatten():
            other = found.clone()
            other[back], other[gone] = False, True
            assert removal_quadratic(gradients, weight, other, 0.05) >= end - 1e-12


def test_swaps_find_the_best_of_all_sets_mostly():
    hits, starts = 0, 0
    for seed in range(20):
        gradients, weight = gaussian(4, 8, seed=seed), gaussian(8, seed=seed + 30)
        values = all_sets(gradients, weight, 3, 0.05)
        start = largest(3)(-weight.abs())
        found = swap_removed(gradients, weight, start, torch.ones(8, dtype=torch.bool), 0.05)
        least = min(values.values())
        hits += values[tuple(found.nonzero().flatten().tolist())] == least
        starts += values[tuple(start.nonzero().flatten().tolist())] == least
    assert hits >= 15 > starts


def test_each_round_of_few_candidates_lowers_the_quadratic(monkeypatch):
    gradients, weight = gaussian(6, 60), gaussian(60, seed=1)
    start, movable = largest(40)(-weight.abs()), gaussian(60, seed=3) > -1.0
    monkeypatch.setattr(pairwise_swaps, "CANDIDATES", 3)
    values = [removal_quadratic(gradients, weight, start, 0.05)]
    monkeypatch.setattr(pairwise_swaps, "ROUNDS", 1)
    removed = start
    for _ in range(10):
        removed = swap_removed(gradients, weight, removed, movable, 0.05)
        values.append(removal_quadratic(gradients, weight, removed, 0.05))
        assert int(removed.sum()) == 40 and torch.equal(removed[~movable], start[~movable])
    assert (torch.tensor(values).diff() <= 0).all() and values[3] < values[1] < values[0]
