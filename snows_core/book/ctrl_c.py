"""Ctrl-C at a chosen moment, so that a notebook can show an interruption that is the same everywhere."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any
from unittest import mock

from snows_core.methods import METHODS


@contextlib.contextmanager
def ctrl_c_after(layers: int, method: str = "snows") -> Iterator[None]:
    """Let Ctrl-C come within the block when so many layers are solved.

    Args:
        layers: how many are solved before it comes.
        method: that solves them.
    """
    begun, solve = itertools.count(), METHODS[method].solve

    def interrupted(self: Any, problem: Any) -> Any:
        if next(begun) == layers:
            raise KeyboardInterrupt
        return solve(self, problem)

    with mock.patch.object(METHODS[method], "solve", interrupted):
        yield
