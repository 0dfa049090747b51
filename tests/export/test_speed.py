"""compare_speed: the least seconds of two networks in turns, on one thread, which is given back."""

import time

import pytest
import torch
from torch import nn

from snows_core.errors import SnowsError
from snows_core.export import Speed, compare_speed


class Busy(nn.Module):
    """A forward pass that keeps the processor busy for some seconds, more at its first call."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls, self.threads = seconds, 0, set()

    def forward(self, x):
        self.calls += 1
        self.threads.add(torch.get_num_threads())
        end = time.process_time() + self.seconds + (0.05 if self.calls == 1 else 0)
        while time.process_time() < end:
            pass
        return x


def test_the_ratio_is_that_of_the_seconds():
    slow, fast, images = Busy(0.03), Busy(0.01), torch.zeros(5, 1, 1, 1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        speed = compare_speed(slow, fast, images, 4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert slow.calls == fast.calls == 4 and slow.threads == fast.threads == {1}
    assert 0.03 <= speed.before < 0.045 and 0.01 <= speed.after < 0.02  # the first, slower call does not count
    assert speed.ratio == speed.before / speed.after and speed.images == 5


def test_no_round_is_begun_when_time_is_over(monkeypatch):
    monkeypatch.setattr("snows_core.export.compaction.speed.ENOUGH", 0.0)
    slow = Busy(0.0)
    compare_speed(slow, Busy(0.0), torch.zeros(1, 1, 1, 1), 100)
    assert slow.calls == 3


def test_what_it_says():
    assert str(Speed(0.024, 0.012, 8)) == "8 images on one thread of this CPU: 24 ms became 12 ms, 2.00 times as fast"
    assert str(Speed(2.5, 2.0, 1)) == "1 image on one thread of this CPU: 2.5 s became 2 s, 1.25 times as fast"


def test_what_a_network_refuses_is_said_in_one_sentence():
    with pytest.raises(SnowsError, match="images: got shape"):
        compare_speed(nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), torch.zeros(1, 1, 2, 2))
    with pytest.raises(SnowsError, match="rounds: got 0"):
        compare_speed(nn.Identity(), nn.Identity(), torch.zeros(1, 1, 2, 2), 0)
