"""block_removal.py: removal one by one, against trials of every removal on dense matrices."""

import pytest
import torch
from fishers import empirical_fisher, gaussian

from snows_core.solvers.block_fisher import inverse_blocks
from snows_core.solvers.block_removal import removal_costs, without


def greedy(weight, matrix):
    """Remove weights one by one, re-solving the quadratic from its definition each time; costs in order of removal."""
    alive, order, total = list(range(len(weight))), [], 0.0
    gone = []
    while alive:
        trials = {}
        for j in alive:
            out = torch.tensor([*gone, j])
            trials[j] = (
                float(weight[out] @ torch.linalg.inv(torch.linalg.inv(matrix)[out[:, None], out]) @ weight[out]) / 2
            )
        best = min(trials, key=trials.get)
        order.append((best, trials[best] - total))
        total = trials[best]
        gone.append(best)
        alive.remove(best)
    return order


@pytest.mark.parametrize("seed", range(4))
def test_removal_in_blocks_is_the_exhaustive_greedy_one(seed):
    gradients, weight = gaussian(5, 3, 6, seed=seed), gaussian(3, 6, seed=seed + 10)
    present = torch.ones(3, 6, dtype=torch.bool)
    present[2, 4:] = False
    gradients[:, 2, 4:] = 0.0
    costs = removal_costs(weight, inverse_blocks(gradients, 0.1), present)
    assert torch.isinf(costs[2, 4:]).all() and torch.isfinite(costs[present]).all()
    for block in range(3):
        own = present[block]
        wanted = greedy(weight[block, own], empirical_fisher(gradients[:, block][:, own], 0.1))
        order = costs[block, own].argsort().tolist()
        assert order == [place for place, _ in wanted]
        highest = torch.tensor([cost for _, cost in wanted]).cummax(0).values
        torch.testing.assert_close(costs[block, own][order], highest.double(), rtol=1e-6, atol=1e-12)
        assert (costs[block, own][order].diff() > 0).all()


def test_what_remains_minimises_the_quadratic():
    gradients, weight = gaussian(5, 2, 6), gaussian(2, 6, seed=1)
    kept = gaussian(2, 6, seed=2) > -0.3
    found = without(weight, inverse_blocks(gradients, 0.1), kept)
    assert not found[~kept].any()
    for block in range(2):
        matrix, own = empirical_fisher(gradients[:, block], 0.1), kept[block]
        slope = matrix @ (found[block] - weight[block])
        assert slope[own].abs().max() < 1e-10 < slope[~own].abs().min()
