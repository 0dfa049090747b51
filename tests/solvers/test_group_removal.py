"""OSSCAR's problem on small sizes: costs and gains by direct solution, local optima, and exhaustive search."""

import itertools

import pytest
import torch

from snows_core.solvers.group_removal import GroupedLoss, _State, remove_groups


def loss(seed, groups=6, size=2, outputs=5):
    generator = torch.Generator().manual_seed(seed)
    d = groups * size
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    x = torch.randn(40, d, generator=generator, dtype=torch.float64) @ mix
    places = torch.randperm(d, generator=generator).view(groups, size)
    target = torch.randn(outputs, d, generator=generator, dtype=torch.float64)
    return GroupedLoss(x.T @ x / 40 + 1e-3 * torch.eye(d, dtype=torch.float64), target, places)


def rise(losses, kept):
    return sum(one.rise(kept) for one in losses)


def among(kept, count):
    return torch.tensor([group in kept for group in range(count)])


def test_what_removals_cost_and_additions_gain_is_what_a_direct_solution_says():
    """Float64 and 12 inputs: 1e-8 is rounding of an inverse whose condition number is about 1e5."""
    one = loss(0)
    state, kept = _State(one), torch.ones(6, dtype=torch.bool)
    for group in (4, 1, 2):
        there = kept.nonzero().flatten()
        found = state.removal_costs(there)
        for place, other in enumerate(there.tolist()):
            without = kept & (torch.arange(6) != other)
            assert float(found[place]) == pytest.approx(one.rise(without) - one.rise(kept), abs=1e-8)
        state.remove(group)
        kept[group] = False
    for group in (4, 1, 2):
        with_it = kept | (torch.arange(6) == group)
        assert float(state.gains(torch.tensor([group]))[0]) == pytest.approx(
            one.rise(kept) - one.rise(with_it), abs=1e-8
        )
    state.inverse, state.weight = state.with_added(1)
    inside = one.places[among({0, 1, 3, 5}, 6)].flatten().sort().values
    inverse = torch.linalg.inv(one.matrix[inside][:, inside])
    assert torch.allclose(state.inverse[inside][:, inside], inverse, rtol=1e-6, atol=1e-8)
    solution = (one.target @ one.matrix)[:, inside] @ inverse
    assert torch.allclose(state.weight[:, inside], solution, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("layers", [1, 2])
def test_no_exchange_gains_and_nearly_always_the_best_groups_are_found(layers):
    best_found = 0
    for seed in range(20):
        losses = [loss(100 * layer + seed) for layer in range(layers)]
        kept = remove_groups(losses, 3)
        assert int(kept.sum()) == 3
        reached = rise(losses, kept)
        for leaving, entering in itertools.product(kept.nonzero().flatten(), (~kept).nonzero().flatten()):
            other = kept.clone()
            other[leaving], other[entering] = False, True
            assert rise(losses, other) >= reached - 1e-8
        best = min(rise(losses, among(chosen, 6)) for chosen in itertools.combinations(range(6), 3))
        best_found += reached <= best + 1e-8
    assert best_found >= 14  # a local search is not always at the best of all


def test_all_may_stay_and_one_may():
    assert remove_groups([loss(0)], 6).all()
    kept = remove_groups([loss(0)], 1)
    assert int(kept.sum()) == 1
