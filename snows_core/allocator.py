"""Large tensors on a CPU without a page fault for every four kilobytes of every result.

The C library of Linux asks the kernel for each block above 32 MB and gives it back when it is freed, so that each
result of such a size is cleared and mapped anew. Measured on a 43 MB activation: a subtraction takes 23 ms so, and
4 ms where freed blocks are used again. Nothing is changed elsewhere (macOS, Windows, musl), nor where the environment
has settled it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

# Names and numbers of malloc.h, and what glibc's own rule ends at in a process that has freed a large block.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
USUAL = {MMAP_THRESHOLD: 32 * 2**20, TRIM_THRESHOLD: 64 * 2**20}
# A batch's values are below this size (see BATCH_BYTES in memory.py); the free end of the heap is kept up to twice it.
REUSING = {MMAP_THRESHOLD: 2**27, TRIM_THRESHOLD: 2**28}


SETTLED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
LEAST_BUDGET = 2e9  # in less, the holes between blocks would weigh too much


@contextmanager
def reused_memory(budget: float) -> Iterator[None]:
    """Let the C library keep and reuse freed memory inside, and give it back to the system at the end.

    Args:
        budget: bytes that the work inside may take; nothing is changed where they are few.
    """
    settled = any(name in os.environ for name in SETTLED)
    if budget < LEAST_BUDGET or settled or platform.libc_ver()[0] != "glibc":
        yield
        return
    library = ctypes.CDLL(None)
    _set(library, REUSING)
    try:
        yield
    finally:
        _set(library, USUAL)
        library.malloc_trim(0)


def _set(library: ctypes.CDLL, values: dict[int, int]) -> None:
    for name, value in values.items():
        library.mallopt(name, value)
