"""How benchmarks time and fit: the shortest of several calls, and slopes in logarithms."""

import time

import numpy as np


def best(function, repeats=5):
    """Return the least seconds of several calls: what disturbs a measurement only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def slope(sizes, seconds):
    """Return the exponent p of ``seconds ~ size ** p``."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
