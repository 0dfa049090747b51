"""Swaps inside groups: every gain against a fit of the swapped support by NumPy, and what a whole run leaves."""

import itertools

import pytest
import torch
from numpy_layers import lstsq_row_by_row, rows_problem

from snows_core.masks import NM
from snows_core.solvers import swap_inputs, swaps
from snows_core.solvers.swapped_rows import FixedRows, RefittedRows

DAMPING = 1e-3


def problem(groups=1, m=4, rows=6, inputs=12, samples=40, seed=0):
    """Correlated inputs, dense inputs, weight, an N:M mask by lot, and the groups of inputs, which lie apart."""
    x, x0, weight, _ = rows_problem(rows, inputs, samples, groups, seed)
    mix = torch.randn(inputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x, x0 = x @ mix, x0 @ mix
    places = torch.arange(inputs).view(m, -1).T.contiguous()  # (count, m)
    mask = torch.zeros(rows, inputs, dtype=torch.bool)
    mask[:, places.flatten()] = NM(1, m).mask(torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed)))
    return x, x0, weight, mask, places


def equations(x, x0, weight):
    """Gram matrices, the rows X y0', and the absolute damping."""
    gram = x.mT @ x
    outputs = x0 @ weight.view(len(x), -1, weight.shape[1]).mT  # (groups, samples, out / groups)
    response = (outputs.mT @ x).flatten(0, 1)
    return gram, response, DAMPING * float(gram.diagonal(dim1=1, dim2=2).mean())


def losses(x, x0, weight, mask, damping, fitted=None):
    """What each row loses at its best weights on a mask (or at ``fitted`` ones): from the definition, by NumPy."""
    rows = lstsq_row_by_row(x, x0, weight, mask, damping) if fitted is None else fitted
    share, found = len(weight) // len(x), []
    for i, row in enumerate(rows):
        error = x[i // share] @ row - x0[i // share] @ weight[i]
        found.append(error.square().sum() + damping * (row - weight[i]).square().sum())
    return torch.stack(found)


def every_swap(mask, places):
    """Yield (row, group, place of j, place of p, mask with that swap) for each kept j and pruned p of one group."""
    for i, (g, group) in itertools.product(range(len(mask)), enumerate(places.tolist())):
        for (a, j), (b, p) in itertools.product(enumerate(group), repeat=2):
            if mask[i, j] and not mask[i, p]:
                other = mask.clone()
                other[i, j], other[i, p] = False, True
                yield i, g, a, b, other


def rows_of(kind, x, x0, weight, mask, places):
    gram, response, damping = equations(x, x0, weight)
    order = places.flatten()
    h = gram[:, order[:, None], order] + damping * torch.eye(len(order), dtype=gram.dtype)
    b = (response + damping * weight)[:, order]
    if kind is RefittedRows:
        return RefittedRows(h, b, mask[:, order], len(places))
    fitted = lstsq_row_by_row(x, x0, weight, mask, damping)
    return FixedRows(h, b, mask[:, order], len(places), fitted[:, order])


def swapped(*args, widest, **options):
    """Run with exact gains up to a width of choice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swaps, "WIDEST", widest)
        return swap_inputs(*args, **options)


def ragged(mask):
    """One row keeps nothing of a group, one keeps all, one keeps nothing at all."""
    mask = mask.clone()
    mask[0, :6], mask[1], mask[2] = False, True, False
    return mask


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("support", [lambda m: m, ragged], ids=["N:M", "ragged"])
def test_every_gain_is_the_fall_of_the_loss_after_a_fit_of_the_swapped_support(support, groups):
    x, x0, weight, mask, places = problem(groups)
    mask = support(mask)
    state, damping = rows_of(RefittedRows, x, x0, weight, mask, places), equations(x, x0, weight)[2]
    order, seen = places.flatten(), 0
    for _ in range(3):  # at the start, and after swaps of all rows but one
        before, gains = losses(x, x0, weight, mask, damping), state.gains()
        chosen = {}
        for i, g, a, b, other in every_swap(mask, places):
            expected = before[i] - losses(x, x0, weight, other, damping)[i]
            assert float(gains[i, g, a, b]) == pytest.approx(float(expected), rel=1e-6, abs=1e-7 * float(before[i]))
            chosen[i], seen = (g * places.shape[1] + a, g * places.shape[1] + b), seen + 1
        j, p = (torch.tensor([chosen.get(i, (0, 1))[side] for i in range(len(mask))]) for side in (0, 1))
        active = torch.tensor([i in chosen and i != 3 for i in range(len(mask))])
        state.swap(j, p, active)
        mask = mask.clone()
        mask[:, order] = state.kept
        for i in active.nonzero().flatten().tolist():
            assert not mask[i, order[j[i]]] and mask[i, order[p[i]]]
        fresh = RefittedRows(state.h, state.b, state.kept, state.count)
        torch.testing.assert_close((state.z, state.blocks), (fresh.z, fresh.blocks))
    assert seen >= 90


def test_the_gain_with_other_weights_fixed_is_exact_and_no_more_than_after_a_fit():
    x, x0, weight, mask, places = problem()
    damping, order = equations(x, x0, weight)[2], places.flatten()
    state, exact = (rows_of(kind, x, x0, weight, mask, places) for kind in (FixedRows, RefittedRows))
    for _ in range(2):
        fitted = torch.zeros_like(weight)
        fitted[:, order] = state.weight
        before, gains = losses(x, x0, weight, mask, damping, fitted), state.gains()
        last = {}
        for i, g, a, b, other in every_swap(mask, places):
            j, p = places[g, a], places[g, b]
            moved = fitted.clone()
            moved[i, j] = 0.0
            gram, response, _ = equations(x, x0, weight)
            left = response[i, p] + damping * weight[i, p] - gram[0, p] @ moved[i]
            moved[i, p] = left / (gram[0, p, p] + damping)
            after = losses(x, x0, weight, other, damping, moved)
            assert float(gains[i, g, a, b]) == pytest.approx(float(before[i] - after[i]), rel=1e-6, abs=1e-6)
            if exact is not None:
                assert gains[i, g, a, b] <= exact.gains()[i, g, a, b] + 1e-9 * before[i]
            last[i] = (g * places.shape[1] + a, g * places.shape[1] + b)
        exact = None  # only at weights that are fitted
        j, p = (torch.tensor([last[i][side] for i in range(len(mask))]) for side in (0, 1))
        state.swap(j, p, torch.ones(len(mask), dtype=torch.bool))
        mask = mask.clone()
        mask[:, order] = state.kept


@pytest.mark.parametrize("groups", [1, 2])
def test_a_run_takes_the_best_swap_each_time_until_none_gains(groups):
    x, x0, weight, mask, places = problem(groups)
    gram, response, damping = equations(x, x0, weight)
    done = swap_inputs(gram, mask, weight, places, response=response, damping=DAMPING)
    expected, made = mask.clone(), torch.zeros(len(mask), dtype=torch.int64)
    while True:  # the slow loop: fit every swap of every row
        before, best = losses(x, x0, weight, expected, damping), {}
        for i, *_, other in every_swap(expected, places):
            gain = float(before[i] - losses(x, x0, weight, other, damping)[i])
            if gain > 1e-6 * float(before[i]) and gain > best.get(i, (0.0,))[0]:
                best[i] = gain, other[i]
        if not best:
            break
        for i, (_, row) in best.items():
            expected[i] = row
            made[i] += 1
    assert torch.equal(done.mask, expected) and torch.equal(done.swaps, made) and int(made.sum()) > 4
    gained = losses(x, x0, weight, mask, damping) - losses(x, x0, weight, expected, damping)
    assert torch.allclose(done.gain, gained, rtol=1e-8)


@pytest.mark.parametrize("wide", [False, True])
def test_the_pattern_holds_no_row_loses_and_only_what_is_allowed_is_kept(wide):
    x, x0, weight, mask, places = problem(inputs=16, rows=10, seed=1)
    gram, response, damping = equations(x, x0, weight)
    allowed = torch.rand(mask.shape, generator=torch.Generator().manual_seed(4)) < 0.7
    start = mask & allowed
    options = {"response": response, "damping": DAMPING, "widest": 0 if wide else 16}
    done = swapped(gram, start, weight, places, allowed=allowed, **options)
    assert not (done.mask & ~allowed).any()
    assert torch.equal(done.mask[:, places].sum(2), start[:, places].sum(2))
    gained = losses(x, x0, weight, start, damping) - losses(x, x0, weight, done.mask, damping)
    assert (gained >= done.gain * (1 - 1e-9) - 1e-9).all() and (done.gain >= 0).all()
    assert ((gained > 0) == (done.swaps > 0)).all() and int(done.swaps.sum()) > 5
    if not wide:
        assert torch.allclose(gained, done.gain, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("wide", [0, 12])
def test_batches_of_rows_change_nothing(monkeypatch, wide):
    x, x0, weight, mask, places = problem(2)
    gram, response, _ = equations(x, x0, weight)
    whole = swapped(gram, mask, weight, places, response=response, widest=wide)
    monkeypatch.setattr(swaps, "ROOM_HOST", 1.0)
    single = swapped(gram, mask, weight, places, response=response, widest=wide)
    assert torch.equal(whole.mask, single.mask) and torch.allclose(whole.gain, single.gain, rtol=1e-9)


def test_the_response_is_that_of_the_gram_matrix_where_none_is_given():
    x, _, weight, mask, places = problem(2)
    gram, response, _ = equations(x, x, weight)
    told, default = (swap_inputs(gram, mask, weight, places, response=r) for r in (response, None))
    assert torch.equal(told.mask, default.mask) and int(default.swaps.sum()) > 0


@pytest.mark.parametrize("matrix", [torch.zeros(1, 12, 12), torch.full((1, 12, 12), float("nan"))])
def test_what_tells_nothing_changes_nothing(matrix):
    _, _, weight, mask, places = problem()
    weight = weight.float() if bool(matrix.isnan().any()) else weight.float() * mask
    for wide in (0, 12):
        done = swapped(matrix, mask, weight, places, widest=wide)
        assert torch.equal(done.mask, mask) and not done.swaps.any() and not done.gain.any()


def test_a_row_whose_gain_no_fit_confirms_keeps_its_mask(monkeypatch):
    x, x0, weight, mask, places = problem()
    gram, response, damping = equations(x, x0, weight)
    gains = RefittedRows.gains
    monkeypatch.setattr(
        RefittedRows, "gains", lambda self: torch.where(self.rows[:, None, None, None] < 3, 1e9, gains(self))
    )
    done = swap_inputs(gram, mask, weight, places, response=response, damping=DAMPING)
    gained = losses(x, x0, weight, mask, damping) - losses(x, x0, weight, done.mask, damping)
    assert (gained >= -1e-9).all() and torch.allclose(gained, done.gain, rtol=1e-8, atol=1e-9)
    kept = (done.mask == mask).all(1)
    assert kept[:3].any() and torch.equal(kept, done.swaps == 0) and not kept[3:].all()
