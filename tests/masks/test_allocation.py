"""masks/allocation.py: ERK and LAMP as their papers have them, exact budgets, the dynamic programme."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snows_core.masks import allocation as module
from snows_core.masks.allocation import (
    ALLOCATIONS,
    allocate,
    allocate_by_losses,
    counts,
    halfway,
    lamp_scores,
    least_loss,
)
from snows_core.masks.patterns import PerLayer, Unstructured, masks_for

SHAPES = {"stem": (8, 3, 3, 3), "wide": (16, 8, 3, 3), "point": (4, 16, 1, 1), "last": (10, 16), "one": (1, 6)}


def layers(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (1 + i) * torch.randn(shape, generator=generator, dtype=torch.float64)
        for i, (name, shape) in enumerate(SHAPES.items())
    }


def kept_by(shares, weights):
    """Count what stays of each layer in masks of the shares."""
    return {name: int(mask.sum()) for name, mask in masks_for(weights, shares).items()}


def erk_by_the_paper(weights, sparsity):
    """Evci et al. 2020: density in proportion to (n_in + n_out + w + h) / (n_in n_out w h); what exceeds 1 is dense."""
    raw = {name: sum(weight.shape) / math.prod(weight.shape) for name, weight in weights.items()}
    dense = set()
    while True:
        ones = sum(weights[name].numel() for name in dense)
        budget = (1 - sparsity) * sum(weight.numel() for weight in weights.values()) - ones
        scale = budget / sum(raw[name] * weights[name].numel() for name in raw if name not in dense)
        highest = max((name for name in raw if name not in dense), key=raw.get)
        if scale * raw[highest] <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense.add(highest)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8, 0.9])
def test_erk_is_that_of_its_paper(sparsity):
    weights = layers()
    found = kept_by(allocate(weights, Unstructured(sparsity), "erk"), weights)
    for name, density in erk_by_the_paper(weights, sparsity).items():
        assert abs(found[name] - density * weights[name].numel()) < 1, name
    assert found["one"] == 6, "the smallest layer is dense"


def test_lamp_scores_are_those_of_their_paper():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    squares = sorted(float(w) ** 2 for w in weight.flatten())
    scores = lamp_scores(weight)
    for w, score in zip(weight.flatten().tolist(), scores.flatten().tolist(), strict=True):
        place = squares.index(w**2)
        assert score == pytest.approx(w**2 / sum(squares[place:]), rel=1e-12)
    assert scores.max() == 1 and (lamp_scores(torch.zeros(3)) == 0).all()


def test_global_is_one_threshold_of_sizes_whatever_the_signs():
    generator = torch.Generator().manual_seed(0)
    weights = {"a": -torch.rand(30, 4, generator=generator), "b": 0.5 * torch.rand(40, 4, generator=generator)}
    sizes = torch.cat([weight.abs().flatten() for weight in weights.values()]).sort().values
    threshold = sizes[int(0.6 * len(sizes))]
    expected = {name: int((weight.abs() >= threshold).sum()) for name, weight in weights.items()}
    assert kept_by(allocate(weights, Unstructured(0.6), "global"), weights) == expected


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_lamp_is_one_threshold_for_all_layers(sparsity):
    weights = layers(1)
    ranked = sorted(
        ((float(score), name) for name, weight in weights.items() for score in lamp_scores(weight).flatten()),
        reverse=True,
    )
    total = sum(weight.numel() for weight in weights.values())
    first = [name for _, name in ranked[: total - round(sparsity * total)]]
    assert kept_by(allocate(weights, Unstructured(sparsity), "lamp"), weights) == {n: first.count(n) for n in weights}


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(sparsity=st.floats(0.05, 0.95), cap=st.floats(0, 1), seed=st.integers(0, 3))
def test_budgets_are_met_to_the_weight_within_the_cap(allocation, sparsity, cap, seed):
    weights = layers(seed)
    pattern = Unstructured(sparsity, "layer", sparsity + (0.99 - sparsity) * cap)
    shares = allocate(weights, pattern, allocation)
    found, total = kept_by(shares, weights), sum(weight.numel() for weight in weights.values())
    short = sum(found.values()) - (total - round(sparsity * total))
    assert 0 <= short <= len(weights) and (cap < 0.2 or short == 0), "only where caps of all layers are nearly met"
    for name, kept in found.items():
        size = weights[name].numel()
        assert 1 <= kept <= size and size - kept <= pattern.cap * size
    assert shares == allocate(weights, pattern, allocation)


def test_what_is_left_over_goes_to_the_largest_remainders_and_then_to_the_first():
    sizes = {"a": 10, "b": 10, "c": 10}
    assert counts({"a": 1.0, "b": 1.0, "c": 1.0}, sizes, Unstructured(16 / 30)) == {"a": 5, "b": 5, "c": 4}
    assert counts({"a": 1.0, "b": 2.0, "c": 3.3}, sizes, Unstructured(0.5)) == {"a": 2, "b": 5, "c": 8}
    assert counts({"a": 1.0, "b": 1.0, "c": 9.0}, sizes, Unstructured(0.5)) == {"a": 3, "b": 2, "c": 10}


@given(st.data())
def test_the_dynamic_programme_finds_what_trying_all_finds(data):
    layer = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), min_size=1, max_size=4)
    options = data.draw(st.lists(layer, min_size=1, max_size=4))
    budget = data.draw(st.integers(sum(min(w for w, _ in one) for one in options), 30))
    weights = [[weight for weight, _ in one] for one in options]
    costs = [[float(cost) for _, cost in one] for one in options]
    found = least_loss(costs, weights, budget)
    assert sum(own[choice] for own, choice in zip(weights, found, strict=True)) <= budget
    cheapest = min(
        sum(cost for _, cost in one) for one in itertools.product(*options) if sum(w for w, _ in one) <= budget
    )
    assert sum(own[choice] for own, choice in zip(costs, found, strict=True)) == cheapest


def test_a_budget_below_the_lightest_takes_the_lightest():
    assert least_loss([[1.0, 0.0], [1.0, 0.0]], [[2, 3], [2, 5]], 1) == [0, 0]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_losses_share_weights_out_as_lagrange_does(power):
    """Of sum (a_l / n_l) ^ p with sum n_l given, the minimum has n_l in proportion to a_l ^ (p / (p + 1))."""
    sizes, scale = {"a": 40_000, "b": 40_000, "c": 40_000}, {"a": 1.0, "b": 2.0, "c": 9.0}
    points = [1000, 2000, 5000, 10_000, 20_000, 35_000]
    losses = {name: {kept: scale[name] / kept for kept in points} for name in sizes}
    shares = allocate_by_losses(losses, sizes, Unstructured(0.8), power)
    kept = {name: (1 - s) * sizes[name] for name, s in shares.sparsities.items()}
    assert sum(round(k) for k in kept.values()) == 24_000
    whole = sum(a ** (power / (power + 1)) for a in scale.values())
    best = {name: 24_000 * a ** (power / (power + 1)) / whole for name, a in scale.items()}
    assert kept == pytest.approx(best, rel=0.12), "steps of 8 % are tried"
    cost, least = (sum((scale[name] / n[name]) ** power for name in sizes) for n in (kept, best))
    assert cost <= 1.004 * least


def test_halfway_keeps_the_geometric_mean():
    sizes = {"a": 10_000, "b": 10_000}
    found = halfway(PerLayer({"a": 0.6, "b": 0.9}), PerLayer({"a": 0.9, "b": 0.6}), sizes, Unstructured(0.75))
    assert found.sparsities == {"a": 0.75, "b": 0.75}
    uneven = halfway(PerLayer({"a": 0.5, "b": 0.99}), PerLayer({"a": 0.75, "b": 0.75}), sizes, Unstructured(0.75))
    kept = {name: 1 - s for name, s in uneven.sparsities.items()}
    assert kept["a"] / kept["b"] == pytest.approx((0.5 * 0.25) ** 0.5 / (0.01 * 0.25) ** 0.5, rel=1e-3)
    assert sum(kept.values()) == pytest.approx(0.5)


def test_a_layer_without_loss_is_pruned_to_the_cap_and_one_of_great_loss_not_at_all():
    sizes = {"idle": 1000, "vital": 1000}
    losses = {"idle": {50: 0.0, 500: 0.0}, "vital": {50: 1e6, 500: 1e5}}
    shares = allocate_by_losses(losses, sizes, Unstructured(0.47, "layer", 0.95)).sparsities
    assert shares["vital"] == 0 and shares["idle"] == 0.94


def test_losses_between_two_that_were_measured_follow_a_power_of_the_weights_kept():
    measured = {10: 4.0, 40: 1.0, 60: 0.5}
    found = [module._interpolated(measured, kept, 100) for kept in (5, 10, 20, 40, 80, 100)]
    assert found == pytest.approx([4.0, 4.0, 2.0, 1.0, 0.25, 0.0])
