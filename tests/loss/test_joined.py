"""Small parts of neighbouring batches, run together."""

from __future__ import annotations

import pytest
import torch

from snows_core.activations.cache import LazyBatches
from snows_core.distributed import Processes, Share
from snows_core.loss.joined import LazyPieces, joined, pieces

SHARE = Share([5, 4, 4, 3], Processes(1, 3))  # this process has 2, 1, 1 and 1 of them


def test_as_many_batches_as_processes_run_together_and_each_of_them_once():
    assert SHARE.own == [2, 1, 1, 1]
    assert pieces(SHARE, SHARE.held()) == [[0, 1, 2], [3]]
    assert pieces(Share([4] * 5, Processes(0, 2)), range(5)) == [[0, 1], [2, 3], [4]]


def test_no_piece_reaches_across_an_end_and_those_behind_it_stay_the_same():
    share = Share([4] * 7, Processes(0, 3))
    for end in range(8):
        found = pieces(share, share.held(), (end,))
        assert [number for piece in found for number in piece] == list(range(7))
        assert all(piece[-1] < end or piece[0] >= end for piece in found)
        assert [piece for piece in found if piece[0] // 3 > end // 3] == [
            piece for piece in ([3, 4, 5], [6]) if piece[0] // 3 > end // 3
        ]


def test_one_process_runs_batch_by_batch():
    assert pieces(Share([2, 8, 2]), [0, 1, 2]) == [[0], [1], [2]]


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_joined_is_kept_where_its_parts_are(keep):
    batches = [torch.randn(own, 5) for own in SHARE.own]
    context = LazyBatches(lambda number: {"x": batches[number]}, 4, keep)
    both = LazyPieces(context, LazyBatches(lambda number: [batches[number]], 4, keep))
    found = both.read(SHARE, [0, 1, 2])
    assert torch.equal(found[0]["x"], torch.cat(batches[:3])) and torch.equal(found[1][0], found[0]["x"])
    assert (both.read(SHARE, [0, 1, 2])[0]["x"] is found[0]["x"]) == keep


@pytest.mark.parametrize(("rows", "axis"), [(1, 0), (3, 0), (1, 1)])
def test_images_are_joined_where_they_lie(rows, axis):
    whole = torch.randn(5 + 4 + 4 + 3, rows, 5)
    parts = SHARE.cut(whole)  # (n, rows, 5) of each batch
    shaped = [part.flatten(0, 1) if axis == 0 else part.movedim(0, 1).expand(7, -1, -1) for part in parts]
    found = joined([{"x": part, "y": (part,)} for part in shaped], SHARE, range(4))
    expected = SHARE.processes.own(whole)
    expected = expected.flatten(0, 1) if axis == 0 else expected.movedim(0, 1).expand(7, -1, -1)
    assert torch.equal(found["x"], expected) and torch.equal(found["y"][0], expected)


@pytest.mark.parametrize(
    "items",
    [
        [(torch.ones(2, 3), 7), (torch.ones(1, 3), 7)],  # a number may have come from the size of the batch
        [(torch.ones(2, 3),), (torch.ones(1, 3), torch.ones(1, 3))],
        [(torch.ones(3),), (torch.ones(3),)],  # which axis is of images cannot be told
        [(torch.ones(4, 3),), (torch.ones(1, 3),)],  # two rows an image, then one
    ],
)
def test_what_cannot_be_joined_stays_apart(items):
    assert joined(items, SHARE, [0, 1]) is None
