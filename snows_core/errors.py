"""One kind of error for every mistake a user can make, and one form for its sentence."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SnowsError(ValueError):
    """A mistake in what the caller passed: the message names the argument, what came, what was expected and the fix."""


def bad(argument: str, got: object, expected: str, fix: str = "") -> SnowsError:
    """Build (not raise) the error for one bad argument.

    Args:
        argument: name of the argument as the caller typed it.
        got: what came; formatted with ``str``.
        expected: what would have been accepted.
        fix: one sentence that says what to do; may be empty.

    Returns:
        The error, to be raised by the caller so that the traceback starts there.

    >>> print(bad("k", -1, "an integer >= 0", "Use k=0 for layer-wise least squares."))
    k: got -1; expected an integer >= 0. Use k=0 for layer-wise least squares.
    """
    return SnowsError(f"{argument}: got {got}; expected {expected}.{' ' + fix if fix else ''}")


def closest(name: str, choices: Iterable[str], n: int = 3) -> str:
    """Return a hint that lists the choices nearest to a misspelt name, or an empty string.

    >>> closest("layer1.conv", ["layer1.conv1", "fc"])
    'Nearest: layer1.conv1.'
    """
    near = difflib.get_close_matches(name, list(choices), n=n, cutoff=0.4)
    return f"Nearest: {', '.join(near)}." if near else ""
