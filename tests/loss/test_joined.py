"""Small parts of neighbouring batches, run together."""

from __future__ import annotations

import pytest
import torch

from snows_core.distributed import Processes, Share
from snows_core.loss.joined import joined, pieces

SHARE = Share([5, 4, 4, 3], Processes(1, 3))  # this process has 2, 1, 1 and 1 of them


def test_pieces_hold_every_batch_once_up_to_the_size_of_the_largest():
    assert SHARE.own == [2, 1, 1, 1]
    assert pieces(SHARE, SHARE.held()) == [[0, 1, 2, 3]]
    assert pieces(Share([4] * 5, Processes(0, 2)), range(5)) == [[0, 1], [2, 3], [4]]


def test_no_piece_reaches_across_an_end():
    share = Share([4] * 6, Processes(0, 3))
    for end in range(7):
        for piece in pieces(share, share.held(), (end,)):
            assert piece[-1] < end or piece[0] >= end


def test_one_process_runs_batch_by_batch():
    assert pieces(Share([2, 8, 2]), [0, 1, 2]) == [[0], [1], [2]]


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
