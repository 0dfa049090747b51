"""ExactOBS against its definition: every candidate's inverse from scratch, every step's weights by a linear solve."""

import pytest
import torch

from snows_core.solvers.damped_gram import damped_gram
from snows_core.solvers.exact_obs import LAZY, cheapest_removals, removal_in_groups, removal_order


def rows_problem(rows=4, inputs=8, groups=1, seed=0, dead=0):
    """Gram matrices, dense rows and another response than theirs; the first ``dead`` inputs are always zero."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 30, inputs, generator=generator, dtype=torch.float64)
    x += 0.7 * x[:, :, :1]  # correlated inputs
    x[:, :, :dead] = 0.0
    weight = torch.randn(rows, inputs, generator=generator, dtype=torch.float64)
    gram = x.mT @ x
    response = (weight.view(groups, -1, inputs) @ gram).view_as(weight)
    response = response + 3.0 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    response[:, :dead] = 0.0
    return gram, weight, response


def fitted(h, b, kept):
    """The minimum of w H w' / 2 - b w' on kept inputs, and the loss there times two."""
    w = torch.zeros_like(b)
    w[kept] = torch.linalg.solve(h[kept][:, kept], b[kept])
    return w, float(w @ h @ w - 2 * b @ w)


def greedy(h, b, stop, allowed):
    """Remove the input whose absence, all others re-fitted, costs least; ``stop(kept)`` tells which may go next."""
    kept, order, costs = torch.ones(len(b), dtype=torch.bool), [], []
    while True:
        may = stop(kept)
        barred = (kept & ~allowed).nonzero().flatten().tolist()
        candidates = barred[:1] or may
        if not candidates:
            return order, costs, kept
        before = fitted(h, b, kept)[1]
        tried = []
        for p in candidates:
            without = kept.clone()
            without[p] = False
            tried.append((fitted(h, b, without)[1] - before, p))
        cost, p = min(tried)
        kept[p] = False
        order.append(p)
        costs.append(-1.0 if barred else cost)


def everything(kept):
    return kept.nonzero().flatten().tolist()


def some_allowed(shape, seed=5):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.8


@pytest.mark.parametrize("dead", [0, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_order_and_the_costs_are_those_of_re_fits_from_scratch(groups, dead):
    gram, dense, response = rows_problem(groups=groups, dead=dead)
    damped = damped_gram(gram, 1e-2)
    weight, allowed = damped.minimiser(dense, response), some_allowed(dense.shape)
    order, costs = removal_order(damped, weight, allowed)
    right = damped.right_side(dense, response)
    for row in range(4):
        h = damped.matrix[row * groups // 4]
        expected = greedy(h, right[row], everything, allowed[row])
        told = expected[0]
        barred = int((~allowed[row]).sum())
        assert set(order[row, :barred].tolist()) == set(told[:barred]) and order[row, barred:].tolist() == told[barred:]
        assert torch.allclose(costs[row], torch.tensor(expected[1], dtype=torch.float64), rtol=1e-8, atol=1e-12)


def test_the_minimum_is_the_dense_weight_where_inputs_are_the_dense_ones():
    gram, dense, response = rows_problem(groups=2)
    damped = damped_gram(gram, 1e-2)
    assert torch.equal(damped.minimiser(dense), dense)
    own = (dense.view(2, -1, 8) @ gram).view_as(dense)
    assert torch.allclose(damped.minimiser(dense, own), dense, rtol=1e-10)
    best = damped.minimiser(dense, response)
    assert torch.allclose((best.view(2, -1, 8) @ damped.matrix).view_as(dense), damped.right_side(dense, response))
    eye = torch.eye(8, dtype=torch.float64).expand(2, 8, 8)
    assert torch.allclose(damped.inverse() @ damped.matrix, eye, atol=1e-10)
    assert damped.damping == pytest.approx(1e-2 * float(gram.diagonal(dim1=1, dim2=2).mean()))


@pytest.mark.parametrize("count", range(32))
def test_removals_of_all_rows_are_taken_one_by_one_where_the_next_costs_least(count):
    generator = torch.Generator().manual_seed(0)
    order, costs = torch.rand(4, 8, generator=generator).argsort(1), torch.rand(4, 8, generator=generator)
    expected, heads = torch.ones(4, 8, dtype=torch.bool), [0] * 4
    for _ in range(count):
        row = min((float(costs[i, head]), i) for i, head in enumerate(heads) if head < 8)[1]
        expected[row, order[row, heads[row]]] = False
        heads[row] += 1
    assert torch.equal(cheapest_removals(order, costs, count), expected)


def test_inputs_that_are_not_allowed_go_even_beyond_the_count():
    order, costs = torch.tensor([[1, 0, 2], [0, 1, 2]]), torch.tensor([[-1.0, -1.0, 2.0], [-1.0, 0.1, 0.2]])
    assert cheapest_removals(order, costs, 1).tolist() == [[False, False, True], [False, True, True]]


@pytest.mark.parametrize("keep", [1, 2])
def test_groups_lose_the_cheapest_of_all_that_may_go(keep):
    gram, dense, response = rows_problem(groups=2, seed=4)
    damped, allowed = damped_gram(gram, 1e-2), some_allowed(dense.shape)
    places = torch.tensor([[0, 3, 5, 6], [1, 2, 4, 7]])
    mask = removal_in_groups(damped, damped.minimiser(dense, response), allowed, places, keep)
    right = damped.right_side(dense, response)

    def crowded(kept):
        return [p for group in places.tolist() for p in group if kept[p] and int(kept[group].sum()) > keep]

    for row in range(4):
        assert torch.equal(mask[row], greedy(damped.matrix[row // 2], right[row], crowded, allowed[row])[2])


@pytest.mark.parametrize("max_bytes", [1.0, 4e5])
def test_rows_in_small_batches_and_inverses_brought_up_to_date_change_nothing(max_bytes):
    inputs = 2 * LAZY + 10
    gram, dense, response = rows_problem(inputs=inputs, seed=1)
    damped = damped_gram(gram, 1e-2)
    weight, allowed = damped.minimiser(dense, response), torch.ones_like(dense, dtype=torch.bool)
    order, costs = removal_order(damped, weight, allowed)
    again = removal_order(damped, weight, allowed, max_bytes)
    assert torch.equal(order, again[0]) and torch.allclose(costs, again[1], rtol=1e-9)
    right = damped.right_side(dense, response)
    kept = torch.ones(inputs, dtype=torch.bool)
    for step in (LAZY - 1, LAZY, 2 * LAZY + 3):  # before and after inverses are brought up to date
        kept[:] = True
        kept[order[0, :step]] = False
        before = fitted(damped.matrix[0], right[0], kept)[1]
        kept[order[0, step]] = False
        assert float(costs[0, step]) == pytest.approx(fitted(damped.matrix[0], right[0], kept)[1] - before, rel=1e-6)
    places = torch.arange(inputs).view(-1, 2)
    small = removal_in_groups(damped, weight, allowed, places, 1, max_bytes)
    assert torch.equal(small, removal_in_groups(damped, weight, allowed, places, 1))
    assert bool((small[:, places].sum(2) == 1).all())
