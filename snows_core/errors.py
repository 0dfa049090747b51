"""One kind of error for every mistake a user can make, one form for its sentence, and readers of numbers and switches.

Numbers and switches as callers pass them are checked once, and turned into Python's own.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from typing import Any

LIMIT = 2**63  # the first integer that PyTorch cannot hold
_LONGEST = 400  # characters of what came that a message repeats


class SnowsError(ValueError):
    """A mistake in what the caller passed: the message names the argument, what came, what was expected and the fix.

    Attributes:
        argument: name of the argument that has to be another one; empty where another one would not help, as with a
            damaged file or a full disk. The command line ends with the code 2 for the first and 1 for the second.
    """

    argument: str = ""


class OverflowedError(SnowsError):
    """Numbers that are too large, or undefined, where a layer is solved: others can still be, so a run goes on."""


def invalid_argument(argument: str, got: object, expected: str, fix: str = "") -> SnowsError:
    """Build (not raise) the error for one bad argument.

    Args:
        argument: name of the argument as the caller typed it.
        got: what came; formatted with ``str``, the middle left out where that is long.
        expected: what would have been accepted.
        fix: one sentence that says what to do; may be empty.

    Returns:
        The error, to be raised by the caller so that the traceback starts there.

    >>> print(invalid_argument("k", -1, "an integer >= 0", "Use k=0 for layer-wise least squares."))
    k: got -1; expected an integer >= 0. Use k=0 for layer-wise least squares.
    """
    error = cannot_go_on(argument, got, expected, fix)
    error.argument = argument
    return error


def cannot_go_on(argument: str, got: object, expected: str, fix: str = "") -> SnowsError:
    """Build (not raise) the error for a run that cannot go on although nothing else had to be typed.

    Args:
        argument: name of the argument that led there.
        got: what was found, for instance a damaged file; formatted with ``str``.
        expected: what would have been accepted.
        fix: one sentence that says what to do; may be empty.

    Returns:
        The error, with a sentence of the same form as that of :func:`invalid_argument`.

    >>> cannot_go_on("weights", "'w.pth', which is damaged", "a file of tensors").argument
    ''
    """
    words = _one_line(str(got))
    if len(words) > _LONGEST:
        words = f"{words[: _LONGEST // 2]} ... {words[-_LONGEST // 2 :]}"
    return SnowsError(f"{argument}: got {words}; expected {_one_line(expected)}.{' ' + fix if fix else ''}")


def _one_line(text: str) -> str:
    return " ".join(part.strip() for part in text.splitlines()) if len(text.splitlines()) > 1 else text


def reason_of(error: BaseException) -> str:
    """Return what an error of another library says, with its kind, on one line that is not long.

    >>> reason_of(KeyError("conv1"))
    "KeyError: 'conv1'"
    """
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200].removesuffix(": ")


@contextlib.contextmanager
def users_code(argument: str, what: str, expected: str) -> Iterator[None]:
    """Turn what goes wrong inside of code that a caller handed over into one error that names the argument.

    Args:
        argument: its name.
        what: it, for the message, for instance "a function that fails for 'conv1'".
        expected: what it would have to do.

    Raises:
        SnowsError: instead of any exception but those that say that memory is at its end.
    """
    try:
        yield
    except (SnowsError, MemoryError):
        raise
    except Exception as error:  # anybody's code can fail in any way
        if type(error).__name__ == "OutOfMemoryError":  # of PyTorch, which is not loaded for this
            raise
        raise invalid_argument(argument, f"{what} ({reason_of(error)})", expected) from error


@contextlib.contextmanager
def blamed(argument: str, on: str) -> Iterator[None]:
    """Let errors about an argument of an inner function name the one that its caller typed.

    >>> with blamed("images", on="test"):
    ...     raise invalid_argument("images", "None", "images")
    Traceback (most recent call last):
    snows_core.errors.SnowsError: test: got None; expected images.
    """
    try:
        yield
    except SnowsError as error:
        if argument == on or not str(error).startswith(f"{argument}: "):
            raise
        other = SnowsError(on + str(error).removeprefix(argument))
        other.argument = on if error.argument else ""
        raise other from error


def closest(name: str, choices: Iterable[str], n: int = 3) -> str:
    """Return a hint that lists the choices nearest to a misspelt name, or an empty string.

    >>> closest("layer1.conv", ["layer1.conv1", "fc"])
    'Nearest: layer1.conv1.'
    """
    near = difflib.get_close_matches(name, list(choices), n=n, cutoff=0.4)
    return f"Nearest: {', '.join(near)}." if near else ""


def plain(value: Any) -> Any:
    """Return a scalar of NumPy or PyTorch as Python's own number or bool, and anything else as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        try:
            return value.item()
        except (RuntimeError, NotImplementedError):  # a tensor without data, on the meta device
            return value
    return value


def shown(value: object) -> str:
    """Return ``repr`` of a value, or its type where that fails, as it does for integers of thousands of digits.

    >>> shown("2:4")
    "'2:4'"
    """
    try:
        return repr(value)
    except Exception:  # anybody's object can fail in any way
        return f"a {type(value).__name__}"


def as_float(value: Any) -> float:
    """Return a real number as a float, an integer beyond all floats as infinity.

    >>> as_float(10**400)
    inf
    """
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def integer(argument: str, value: Any, least: int = 0, what: str = "an integer", otherwise: str = "") -> int:
    """Return a whole number as Python's own.

    Args:
        argument: its name, for the message.
        value: what came; a bool, a text or 2.0 is no integer, a scalar of NumPy or PyTorch may be one.
        least: the smallest that is accepted.
        what: what it counts, for the message, for instance "a number of images".
        otherwise: what else the caller accepts, for the message, for instance ", or None for all".

    Returns:
        The integer.

    Raises:
        SnowsError: when it is no integer, too small, or beyond what PyTorch holds.

    >>> integer("steps", 3)
    3
    """
    number_ = plain(value)
    if isinstance(number_, bool) or not isinstance(number_, numbers.Integral) or int(number_) < least:
        raise invalid_argument(argument, shown(value), f"{what} >= {least}{otherwise}")
    if int(number_) >= LIMIT:
        raise invalid_argument(argument, shown(value), f"{what} below 2 ** 63{otherwise}")
    return int(number_)


def number(
    argument: str, value: Any, *, least: float = 0.0, above: float | None = None, below: float = math.inf
) -> float:
    """Return a finite number as a Python float.

    Args:
        argument: its name, for the message.
        value: what came; a bool or a text is no number, a scalar of NumPy or PyTorch may be one.
        least: the smallest that is accepted.
        above: given, the number must lie above it, and ``least`` does not count.
        below: the number must lie below it.

    Returns:
        The number.

    Raises:
        SnowsError: when it is no finite number, or outside its bounds.

    >>> number("ridge", 1)
    1.0
    """
    number_ = plain(value)
    number_ = math.nan if isinstance(number_, bool) or not isinstance(number_, numbers.Real) else as_float(number_)
    low = number_ >= least if above is None else number_ > above
    if not (math.isfinite(number_) and low and number_ < below):
        start = f">= {least:g}" if above is None else f"above {above:g}"
        end = "" if below == math.inf else f" and below {below:g}"
        raise invalid_argument(argument, shown(value), f"a finite number {start}{end}")
    return number_


def switch(argument: str, value: Any) -> bool:
    """Return True or False as Python's own.

    Raises:
        SnowsError: on anything else; 0, 1 and texts are refused, because they are more often a slip.

    >>> switch("normalise", True)
    True
    """
    if not isinstance(plain(value), bool):
        raise invalid_argument(argument, shown(value), "True or False")
    return plain(value)


def one_of(argument: str, value: Any, choices: Iterable[str], otherwise: str = "") -> str:
    """Return a text that is one of several.

    Args:
        argument: its name, for the message.
        value: what came; anything but a text is refused.
        choices: those there are.
        otherwise: what else the caller accepts, for the message, for instance ", or None".

    Raises:
        SnowsError: on another text, with those nearest to it, and on anything else.

    >>> one_of("effort", "quick", ["quick", "best"])
    'quick'
    """
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        fix = closest(value, known) if isinstance(value, str) else ""
        raise invalid_argument(argument, shown(value), f"one of {known}{otherwise}", fix)
    return value


def require_extra(extra: str, *modules: str) -> None:
    """Refuse to go on where modules of an optional part of the package are not installed; none is loaded.

    Args:
        extra: name of the extra in pyproject.toml that brings them, for instance "zoo".
        modules: names to import, without dots.

    Raises:
        SnowsError: names what is missing, and the command that installs it.

    >>> require_extra("zoo", "math")
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise SnowsError(
            f"This part of snows_core needs {' and '.join(missing)}, not installed here. "
            f'Install what it needs with: pip install "snows-core[{extra}]"'
        )
