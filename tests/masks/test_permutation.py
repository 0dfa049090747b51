"""The order of input channels under which N:M keeps more: every figure against loops, and what a search leaves."""

import itertools

import pytest
import torch

from snows_core.masks import NM, permutation
from snows_core.masks.permutation import order_channels

PATTERNS = [NM(1, 2), NM(1, 4), NM(2, 4), NM(3, 4)]


def scores_of(channels=12, seed=0):
    """Scores of a linear layer and a convolution that read the same channels, some channels high in both."""
    generator = torch.Generator().manual_seed(seed)
    high = torch.rand(channels, generator=generator) ** 4
    linear = torch.rand(5, channels, generator=generator) * high
    return [linear.double(), (torch.rand(3, channels, 2, 2, generator=generator) * high[:, None, None]).double()]


def kept(scores, order, pattern):
    """What masks of the pattern itself keep of channels in an order."""
    total = 0.0
    for score in scores:
        put = score[:, order]
        total += float(put[pattern.mask(put)].sum())
    return total


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_order_keeps_what_it_says_and_more_than_before(pattern):
    scores = scores_of()
    found = order_channels(scores, pattern)
    assert sorted(found.order.tolist()) == list(range(12))
    assert found.before == pytest.approx(kept(scores, torch.arange(12), pattern), rel=1e-12)
    assert found.after == pytest.approx(kept(scores, found.order, pattern), rel=1e-12)
    assert found.after > found.before * 1.01 and found.total == pytest.approx(sum(float(s.sum()) for s in scores))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_no_exchange_of_two_channels_is_left_that_gains(pattern):
    scores = scores_of(seed=1)
    found = order_channels(scores, pattern)
    for one, other in itertools.combinations(range(12), 2):
        order = found.order.clone()
        order[[one, other]] = order[[other, one]]
        assert kept(scores, order, pattern) <= found.after + 1e-5 * found.total


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_worth_of_a_group_with_another_channel_by_loops(pattern):
    columns = torch.cat([score.movedim(1, -1).flatten(0, -2) for score in scores_of()])
    columns[3] = 1.0  # a row of equal scores
    groups = torch.randperm(12, generator=torch.Generator().manual_seed(2)).view(-1, pattern.m)
    got = permutation._replaced(columns, groups, pattern.n)
    for place, (group, channel) in enumerate(itertools.product(range(len(groups)), range(pattern.m))):
        for other in range(12):
            members = groups[group].tolist()
            members[channel] = other
            expected = sum(sum(sorted(row[members].tolist(), reverse=True)[: pattern.n]) for row in columns)
            assert float(got[place, other]) == pytest.approx(expected, rel=1e-12)


def test_the_best_order_is_found_where_it_is_plain():
    """Every second channel is high: 1:2 keeps all of them once each group holds one high and one low channel."""
    scores = torch.tensor([[9.0, 8.0, 7.0, 6.0, 0.1, 0.2, 0.3, 0.4]])
    found = order_channels([scores], NM(1, 2))
    assert found.before == pytest.approx(9 + 7 + 0.2 + 0.4) and found.after == pytest.approx(30.0)


def test_an_order_that_cannot_be_improved_stays():
    even = order_channels([torch.ones(4, 8)], NM(2, 4))
    assert even.order.tolist() == list(range(8)) and even.after == even.before == 16.0
    good = torch.tensor([[9.0, 0.1, 8.0, 0.2, 7.0, 0.3]])
    assert order_channels([good], NM(1, 2)).order.tolist() == list(range(6))


def test_rows_may_be_left_out_of_the_search_and_pieces_are_small(monkeypatch):
    scores, pattern = scores_of(), NM(2, 4)
    whole = order_channels(scores, pattern)
    monkeypatch.setattr(permutation, "ROOM", 1.0)
    assert torch.equal(order_channels(scores, pattern).order, whole.order)
    monkeypatch.setattr(permutation, "MOST", 12 * 12 * 8)
    monkeypatch.setattr(permutation, "FEWEST", 8)
    seen, exchanged = [], permutation._exchanged
    monkeypatch.setattr(permutation, "_exchanged", lambda c, *rest: seen.append(len(c)) or exchanged(c, *rest))
    part = order_channels(scores, pattern)
    assert seen == [9] and part.before == pytest.approx(whole.before)  # every second of 17 rows
    assert part.after == pytest.approx(kept(scores, part.order, pattern)) and part.after >= part.before


def test_the_search_begins_with_channels_dealt_out_where_that_keeps_more(monkeypatch):
    monkeypatch.setattr(permutation, "ROUNDS", 0)
    dealt = order_channels([torch.tensor([[9.0, 8.0, 7.0, 1.0, 0.0, 2.0]])], NM(1, 2))
    assert dealt.order.tolist() == [0, 5, 1, 3, 2, 4] and dealt.after == 24.0
    assert order_channels([torch.tensor([[9.0, 0.0, 7.0, 1.0, 8.0, 2.0]])], NM(1, 2)).order.tolist() == list(range(6))


def test_an_order_that_is_better_for_the_rows_seen_alone_is_not_taken(monkeypatch):
    monkeypatch.setattr(permutation, "MOST", 32)
    monkeypatch.setattr(permutation, "FEWEST", 2)  # rows 0 and 2
    scores = torch.tensor([[1.0, 1.0, 0.0, 0.0], [9.0, 0.0, 9.0, 0.0], [1.0, 1.0, 0.0, 0.0], [9.0, 0.0, 0.0, 9.0]])
    found = order_channels([scores], NM(1, 2))
    assert found.order.tolist() == [0, 1, 2, 3] and found.after == found.before == 38.0
