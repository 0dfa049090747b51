"""Seconds of two networks on the same images, in turns: what a smaller one is worth on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snows_core.errors import integer
from snows_core.network.example import run_on_example

ENOUGH = 2.0  # seconds of the clock, after which no further round is begun
FEWEST = 3


@dataclass(frozen=True)
class Speed:
    """Seconds of a network before and after, for the same images, on one thread of the CPU.

    Attributes:
        before: the least of all rounds.
        after: likewise.
        images: how many at a time.
    """

    before: float
    after: float
    images: int

    @property
    def ratio(self) -> float:
        """How many times as fast the network is after."""
        return self.before / self.after

    def __str__(self) -> str:
        unit, factor = ("ms", 1e3) if self.before < 1 else ("s", 1)
        return (
            f"{self.images} image{'s' * (self.images > 1)} on one thread of this CPU: {self.before * factor:.3g} "
            f"{unit} became {self.after * factor:.3g} {unit}, {self.ratio:.2f} times as fast"
        )


def compare_speed(before: nn.Module, after: nn.Module, images: Tensor, rounds: int = 10) -> Speed:
    """Time two networks in turns, on one thread.

    What disturbs a measurement only adds to it, so that the least seconds count; they are the processor's, which leaves
    out the time that other work on the machine takes.

    Args:
        before: a network on the CPU, in eval mode.
        after: another one of the same images.
        images: (N, C, H, W), all at once.
        rounds: how often, at most: after two seconds no further round is begun, but three are made.

    Returns:
        The seconds.

    Raises:
        SnowsError: on images that one of them refuses.
    """
    rounds = integer("rounds", rounds, 1)
    threads, seconds = torch.get_num_threads(), list[tuple[float, float]]()
    torch.set_num_threads(1)
    try:
        start = time.perf_counter()
        while len(seconds) < min(FEWEST, rounds) or (len(seconds) < rounds and time.perf_counter() - start < ENOUGH):
            seconds.append((_once(before, images), _once(after, images)))
    finally:
        torch.set_num_threads(threads)
    first, second = map(min, zip(*seconds, strict=True))
    return Speed(first, second, len(images))


def _once(model: nn.Module, images: Tensor) -> float:
    start = time.process_time()
    run_on_example(model, images)
    return time.process_time() - start
