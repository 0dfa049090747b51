"""patterns.py and lowest.py: exactly n of every m, sparsity and caps met, ties by lot, scores of any kind."""

import itertools
import time
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snows_core.errors import SnowsError
from snows_core.masks.lowest import lots, lowest, seed_of, shares_of_lowest
from snows_core.masks.patterns import NM, Unstructured, make_scores, masks_for, parse_pattern


def groups_of(mask, m):
    """Rearrange a mask into (..., m): consecutive input channels at one kernel position of one output."""
    return mask.movedim(1, -1).reshape(-1, m)


@given(
    n=st.integers(1, 7),
    extra=st.integers(1, 4),
    groups=st.integers(1, 4),
    out=st.integers(1, 5),
    kernel=st.sampled_from([(), (1, 1), (3, 3), (1, 2)]),
    seed=st.integers(0, 9),
)
def test_exactly_n_of_every_m_along_the_inputs_at_each_kernel_position(n, extra, groups, out, kernel, seed):
    m = n + extra
    scores = torch.randn(out, m * groups, *kernel, generator=torch.Generator().manual_seed(seed))
    mask = NM(n, m).mask(scores)
    assert mask.shape == scores.shape and mask.dtype == torch.bool and mask.is_contiguous()
    kept, sizes = groups_of(mask, m), groups_of(scores, m)
    assert (kept.sum(1) == n).all()
    smallest_kept = sizes.masked_fill(~kept, float("inf")).amin(1)
    largest_removed = sizes.masked_fill(kept, -float("inf")).amax(1)
    assert (smallest_kept >= largest_removed).all()


def test_fault_3_every_row_is_pruned_to_the_last():
    # Fault 3 of the published code: rows split in thirds, so the last row of some matrices stays dense.
    for rows in (1, 2, 3, 4, 5, 7, 100, 101):
        mask = NM(2, 4).mask(torch.randn(rows, 8))
        assert (mask.sum(1) == 4).all()


def test_scores_are_taken_with_their_sign():
    scores = torch.tensor([[-5.0, 1.0, -1.0, 2.0]])
    assert NM(2, 4).mask(scores).int().tolist() == [[0, 1, 0, 1]]
    assert Unstructured(0.5).mask(scores).int().tolist() == [[0, 1, 0, 1]]
    by_layer = Unstructured(0.5, "global").masks({"a": scores, "b": scores + 0.5})
    assert [by_layer[name].int().tolist() for name in "ab"] == [[[0, 1, 0, 1]], [[0, 1, 0, 1]]]
    for pattern in (NM(2, 4), Unstructured(0.5), Unstructured(0.5, "global")):  # the built-in saliency is the magnitude
        assert masks_for({"a": scores}, pattern)["a"].int().tolist() == [[1, 0, 0, 1]]


def test_groups_that_do_not_fit_are_refused():
    with pytest.raises(SnowsError, match=r"scores: got shape \(2, 6\); expected inputs that fit 2:4 \(6 inputs do not"):
        NM(2, 4).mask(torch.rand(2, 6))


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.5), Unstructured(0.5, "global", 0.9)])
def test_equal_weights_are_split_by_a_lot_that_depends_on_the_seed_alone(pattern):
    weights = {"a": torch.ones(64, 64), "b": -torch.ones(64, 64), "c": torch.ones(64, 64, 2, 2)}
    masks = masks_for(weights, pattern)
    for name, mask in masks.items():
        by_row, by_column = mask.flatten(1).float().mean(1), mask.float().transpose(0, 1).flatten(1).mean(1)
        assert 0.1 < by_row.min() and by_row.max() < 0.9, f"whole rows of {name} are kept or lost"
        assert 0.1 < by_column.min() and by_column.max() < 0.9
        assert torch.equal(mask, masks_for(weights, pattern)[name])
        assert not torch.equal(mask, masks_for(weights, pattern, seed=1)[name])
        assert mask.float().mean() == pytest.approx(0.5, abs=0.05), "layers of equal weights share what is removed"
    assert sum(int(mask.sum()) for mask in masks.values()) == sum(w.numel() for w in weights.values()) // 2
    assert not torch.equal(masks["a"], masks["b"]), "layers draw lots of their own"
    alone = masks_for({"a": weights["a"]}, pattern)["a"]
    assert torch.equal(alone, masks["a"]) or pattern == Unstructured(0.5, "global", 0.9)


def test_a_higher_sparsity_removes_what_a_lower_one_removes_also_among_ties():
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randint(0, 4, (30, 20), generator=generator) for name in "ab"}
    for scope in ("layer", "global"):
        before = None
        for sparsity in (0.1, 0.3, 0.31, 0.6, 0.62, 0.9):
            masks = masks_for(weights, Unstructured(sparsity, scope))
            now = torch.cat([masks["a"], masks["b"]])
            assert before is None or not (now & ~before).any()
            before = now
    kept = [masks_for(weights, NM(n, 5))["a"] for n in (1, 2, 3, 4)]
    assert all(not (less & ~more).any() for less, more in itertools.pairwise(kept))


@given(
    levels=st.integers(1, 6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_the_lowest_are_those_that_come_first_by_score_and_lot(levels, share, seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, levels, (n,), generator=generator) for n in sizes]
    scores = {f"layer{i}": values + 3 * (i % 2) for i, values in enumerate(drawn)}
    count = round(share * sum(sizes))
    keys = [
        (score, lot, name)
        for name, values in scores.items()
        for score, lot in zip(values.tolist(), lots(len(values), seed_of(seed, name)).tolist(), strict=True)
    ]
    first = sorted(keys)[:count]
    shares, threshold = shares_of_lowest(scores, count, seed)
    assert shares == {name: sum(owner == name for _, _, owner in first) for name in scores}
    assert (threshold is None and count == 0) or int(threshold) == first[-1][0]
    for name, values in scores.items():
        expected = sorted(lot for _, lot, owner in first if owner == name)
        for known in (None, threshold):
            marked = lowest(values, shares[name], seed_of(seed, name), known)
            assert sorted(lots(len(values), seed_of(seed, name))[marked].tolist()) == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.uint8])
def test_scores_of_every_real_type_give_the_mask_of_the_same_numbers(dtype):
    scores = {
        name: torch.randint(0, 100, (16, 32), generator=torch.Generator().manual_seed(i)).to(dtype)
        for i, name in enumerate("ab")
    }
    same = {name: score.float() for name, score in scores.items()}
    for pattern in (NM(1, 4), Unstructured(0.37), Unstructured(0.37, "global", 0.5)):
        found = masks_for(scores, pattern, lambda name, weight: weight)
        expected = masks_for(same, pattern, lambda name, weight: weight)
        assert all(torch.equal(found[name], expected[name]) for name in scores)


def test_large_integers_and_mixed_types_are_not_rounded_before_they_are_compared():
    big = 2**40 + torch.arange(8).view(1, 8)
    assert Unstructured(0.5).mask(big).int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]]
    assert NM(1, 4).mask(big).int().tolist() == [[0, 0, 0, 1, 0, 0, 0, 1]]
    mixed = {"a": big, "b": (big + 8).double(), "c": torch.rand(2, 8)}
    masks = Unstructured(0.75, "global", 0.99).masks(mixed)
    assert {name: int((~mask).sum()) for name, mask in masks.items()} == {"a": 8 - 1, "b": 2, "c": 15}


def test_why_a_weight_does_not_take_a_pattern():
    assert NM(2, 4).misfit(torch.empty(8, 4, 3, 3)) == ""
    assert NM(2, 4).misfit(torch.empty(8, 6)) == "6 inputs do not divide into groups of 4"
    assert "grouped convolution (8 groups)" in NM(2, 4).misfit(torch.empty(8, 1, 3, 3), groups=8)
    assert Unstructured(0.5).misfit(torch.empty(8, 1, 3, 3), groups=8) == ""


@given(sparsity=st.floats(0.01, 0.98), count=st.integers(50, 400), seed=st.integers(0, 9))
def test_unstructured_per_layer_removes_its_share_of_smallest_weights(sparsity, count, seed):
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed)).round(decimals=seed % 3)  # with ties
    mask = Unstructured(sparsity).mask(scores)
    assert int((~mask).sum()) == round(Fraction(str(sparsity)) * count)
    if (~mask).any():
        assert scores[mask].min() >= scores[~mask].max()


@given(
    sparsity=st.floats(0.1, 0.95),
    room=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(40, 300), min_size=1, max_size=5),
)
def test_global_sparsity_meets_the_overall_fraction_and_every_cap(sparsity, room, seed, sizes):
    cap = sparsity + room * (0.99 - sparsity)
    generator = torch.Generator().manual_seed(seed)
    scores = {f"layer{i}": torch.randn(n, generator=generator) * 10 ** (i - 2) for i, n in enumerate(sizes)}
    if seed % 2:  # with many ties, within layers and across them
        scores = {name: score.round() for name, score in scores.items()}
    masks = Unstructured(sparsity, "global", cap).masks(scores)
    removed = {name: int((~mask).sum()) for name, mask in masks.items()}
    total = sum(sizes)
    limits = {name: int(Fraction(str(cap)) * len(score)) for name, score in scores.items()}
    assert sum(removed.values()) == min(round(Fraction(str(sparsity)) * total), sum(limits.values()))
    assert all(removed[name] <= limits[name] for name in scores)
    for name, mask in masks.items():
        if 0 < removed[name] < len(mask):
            assert scores[name][mask].min() >= scores[name][~mask].max()
    open_layers = [name for name in scores if removed[name] < limits[name]]
    if len(open_layers) > 1:  # one threshold for all layers below their cap
        kept = min(float(scores[name][masks[name]].min()) for name in open_layers)
        gone = max(max(scores[name][~masks[name]].tolist(), default=-float("inf")) for name in open_layers)
        assert kept >= gone


def test_a_global_threshold_that_empties_a_layer_is_refused_and_a_cap_helps():
    scores = {"small": torch.full((10,), 1e-3), "large": torch.ones(30)}
    with pytest.raises(SnowsError, match=r"weights left in every layer, but 'small' would lose all\. Set a cap"):
        Unstructured(0.5, "global").masks(scores)
    masks = Unstructured(0.5, "global", cap=0.9).masks(scores)
    assert int(masks["small"].sum()) == 1 and int(masks["large"].sum()) == 19


@pytest.mark.parametrize("cap", [0.57, 0.58, 0.29, 0.07, 0.95])
def test_a_cap_is_met_as_it_is_written(cap):
    low, high = torch.rand(100), 2 + torch.rand(100_000)
    masks = Unstructured(min(cap, 0.05), "global", cap).masks({"low": low, "high": high})
    assert int((~masks["low"]).sum()) == round(100 * cap)  # int(0.57 * 100) is 56


def test_shares_are_exact_where_binary_floating_point_is_not():
    assert 0.575 * 100 < 57.5  # rounds to 57 in floating point; half of a weight goes to the even number
    assert int((~Unstructured(0.575).mask(torch.rand(100))).sum()) == 58
    both = Unstructured(0.575, "global").masks({"a": torch.rand(60), "b": torch.rand(40)})
    assert sum(int((~mask).sum()) for mask in both.values()) == 58
    assert parse_pattern("33.3%").sparsity == 0.333 and parse_pattern("57%").sparsity == 0.57


def test_selection_takes_no_full_sort_and_no_order_of_weights_is_slow():
    torch.set_num_threads(1)
    count = 300_000
    rising = torch.arange(count, dtype=torch.float32)
    for scores in (rising, rising.flip(0), torch.ones(count), torch.rand(count)):
        start = time.process_time()
        mask = Unstructured(0.8).mask(scores)
        assert time.process_time() - start < 1.0  # a quadratic selection takes 2 s and more for the second
        assert int(mask.sum()) == count // 5


def test_a_small_layer_never_loses_all_its_weights():
    assert Unstructured(0.9).mask(torch.rand(2, 2)).any()


def test_saliencies_by_name_and_function():
    weights = {"a": torch.tensor([[1.0, -4.0, 3.0, 2.0]])}
    assert masks_for(weights, NM(2, 4))["a"].int().tolist() == [[0, 1, 1, 0]]
    seen: list[str] = []
    reverse = masks_for(weights, NM(2, 4), lambda name, weight: seen.append(name) or -weight.abs())
    assert reverse["a"].int().tolist() == [[1, 0, 0, 1]] and seen == ["a"]
    with pytest.raises(SnowsError, match=r"saliency: got 'magnitud'; expected one of .*Nearest: magnitude\."):
        masks_for(weights, NM(2, 4), "magnitud")


@pytest.mark.parametrize(
    "saliency",
    [
        lambda n, w: w.sum(),
        lambda n, w: w[:, :2],
        lambda n, w: w * float("nan"),
        lambda n, w: w - float("inf"),
        lambda n, w: w.half() * 1e5,
        lambda n, w: torch.complex(w, w),
        lambda n, w: w.tolist(),
        lambda n, w: None,
    ],
)
def test_scores_of_another_shape_or_not_finite_are_refused(saliency):
    with pytest.raises(SnowsError, match=r"saliency: got .*; expected "):
        make_scores({"a": torch.randn(4, 4)}, saliency)


@pytest.mark.parametrize("pattern", ["2:4", "0.5"])
def test_equal_scores_are_drawn_by_seed_zero_unless_told_otherwise(pattern):
    scores, parsed = torch.ones(16, 16), parse_pattern(pattern)
    assert torch.equal(parsed.mask(scores), parsed.mask(scores, seed=0))
    assert not torch.equal(parsed.mask(scores), parsed.mask(scores, seed=1))
