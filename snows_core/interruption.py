"""Ctrl-C, and what batch systems send before they kill: one signal ends the work in good order, more do no harm."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

BOUNCE = 1.0  # seconds after a signal in which others are taken for the same one
LAST = 3  # signals, apart from such, after which the user does not want to wait any more
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class _Handler:
    """Raises KeyboardInterrupt at the first signal, and lets the work that follows it end.

    Attributes:
        shields: blocks that must not be left in the middle, one inside the other.
        pending: whether a signal came in such a block.
    """

    def __init__(self) -> None:
        self.count, self.last = 0, -float("inf")
        self.shields, self.pending = 0, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now, before = time.monotonic(), self.last
        self.last = now
        if now - before < BOUNCE:
            return
        self.count += 1
        if self.count >= LAST:
            raise KeyboardInterrupt
        if self.count > 1:
            print("what is finished is being kept; once more to stop at once", file=sys.stderr, flush=True)
        elif self.shields:
            self.pending = True
        else:
            raise KeyboardInterrupt


_active: _Handler | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the block as one KeyboardInterrupt.

    Only the first one is raised: whoever catches it has the rest of the block to keep what is finished. A third one,
    when some time has gone, is raised again. Signals for which the caller has a handler of its own are left to it, and
    so are all of them outside the main thread, where Python allows no handler. Blocks may stand inside each other; the
    outermost one counts.

    >>> with interruptible():
    ...     print("kept")
    kept
    """
    global _active
    if _active is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    handler, before = _Handler(), dict[int, Any]()
    usual = (signal.SIG_DFL, signal.default_int_handler)
    for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
        if (present := signal.getsignal(number)) in usual:
            before[number] = present
    _active = handler
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, present in before.items():
            signal.signal(number, present)
        _active = None


@contextmanager
def shielded() -> Iterator[None]:
    """Put the first signal of an :func:`interruptible` block off to the end of this one, which is short.

    >>> with interruptible(), shielded():
    ...     print("whole")
    whole
    """
    handler = _active
    if handler is None:
        yield
        return
    handler.shields += 1
    try:
        yield
    finally:
        handler.shields -= 1
    if handler.pending and not handler.shields:
        handler.pending = False
        raise KeyboardInterrupt
