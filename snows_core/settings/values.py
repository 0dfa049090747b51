"""Values of settings in one form: memory bounds, stages, choices that can be read twice, and what a manifest holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

from snows_core.errors import LIMIT, integer, invalid_argument, plain, reason_of, users_code

K = int | Literal["auto"]
"""How many operations behind a layer its loss sees; "auto" chooses for each layer."""

DEFAULT_K = 5
LEAST_BYTES = 1e6
"""Fewer bytes are no memory bound that anybody means."""
MOST_STAGES = 1_000
"""More stages are none that anybody means: each is a sweep over the network."""
MOST_CHOSEN = 100_000
"""More names of layers are none that anybody means: an iterator without an end."""


def read_k(k: K | None) -> K:
    """Check K.

    Args:
        k: an integer >= 0, "auto", or None for the default.

    Returns:
        K.

    Raises:
        SnowsError: when it is neither an integer >= 0 nor "auto".

    >>> read_k(None), read_k("auto")
    (5, 'auto')
    """
    if k is None:
        return DEFAULT_K
    return "auto" if k == "auto" else integer("k", k, otherwise=', or "auto". k=0 is layer-wise least squares')


def read_max_memory(max_memory: float | None) -> float | None:
    """Check a bound of memory.

    Args:
        max_memory: bytes, a fraction below 1 of what is free, or None, which leaves it to the device.

    Returns:
        Bytes, or a fraction below 1, or None.

    Raises:
        SnowsError: when it is neither a fraction below 1 nor a number of bytes that can be meant.

    >>> read_max_memory(2e9)
    2000000000.0
    """
    if max_memory is None:
        return None
    bound = plain(max_memory)
    meant = isinstance(bound, int | float) and not isinstance(bound, bool)
    if not meant or not (0 < bound < 1 or LEAST_BYTES <= bound < float("inf")):
        raise invalid_argument(
            "max_memory",
            repr(max_memory),
            "bytes (for instance 2e9), or a fraction of the free memory below 1",
            "Bytes below 1e6 cannot be meant.",
        )
    return float(bound)


def read_stages(stages: Any) -> Any:
    """Return a number of stages, or a tuple of patterns as they were written.

    Raises:
        SnowsError: on anything else, no pattern at all, or more stages than anybody means.

    >>> read_stages("3:4, 2:4"), read_stages(5)
    (('3:4', '2:4'), 5)
    """
    if isinstance(stages, str) and "," in stages:
        return tuple(part.strip() for part in stages.split(","))
    listed = isinstance(stages, Iterable) and getattr(stages, "ndim", 1) > 0
    if listed and not isinstance(stages, str | bytes | Mapping):
        several = repeatable("stages", stages, "a number of stages, or a list of patterns", MOST_STAGES)
        if not several:
            raise invalid_argument("stages", repr(stages), "a number of stages, or a list of at least one pattern")
        return tuple(map(plain, several))
    text = isinstance(stages, str) and stages.strip().isascii() and stages.strip().isdecimal() and len(stages) < 20
    number = integer("stages", int(stages) if text else stages, 1, "a number of stages", ", or a list of patterns")
    if number > MOST_STAGES:
        raise invalid_argument("stages", number, f"at most {MOST_STAGES:,} stages", "Each is a sweep; five are usual.")
    return number


def read_labels(labels: Any) -> tuple[int, ...] | None:
    """Check classes of images.

    Args:
        labels: whole numbers, in a tensor or array (N,), or any sequence of them; None for none.

    Returns:
        Python's own integers, or None.

    Raises:
        SnowsError: on anything else, and on numbers below 0.

    >>> read_labels([3, 0])
    (3, 0)
    """
    if labels is None:
        return None
    expected, fix = "one class index >= 0 for each calibration image", "One-hot labels become indices by argmax(1)."
    try:
        listed = labels.tolist() if hasattr(labels, "tolist") else labels
    except (RuntimeError, NotImplementedError) as error:
        got = f"a tensor whose values cannot be read ({reason_of(error)})"
        raise invalid_argument("labels", got, expected, "Sparse ones become dense by labels.to_dense().") from error
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
        raise invalid_argument("labels", type(labels).__name__, expected)
    for label in map(plain, listed):
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < LIMIT:
            raise invalid_argument("labels", f"{label!r:.40} among them", expected, fix)
    return tuple(plain(label) for label in listed)


def recorded_stage(stage: Any) -> Any:
    """Return a stage as JSON holds it."""
    return dict(stage) if isinstance(stage, Mapping) else str(stage)


def repeatable(argument: str, choice: Any, expected: str, most: int = MOST_CHOSEN) -> tuple[Any, ...]:
    """Return what an iterable yields, so that it can be read twice.

    Args:
        argument: its name, for the message.
        choice: the iterable; no text.
        expected: what the caller accepts, for the message.
        most: more are an iterator without an end.

    Raises:
        SnowsError: on what is no iterable, or fails while it is read, or has no end.

    >>> repeatable("layers", iter(["conv1"]), "names")
    ('conv1',)
    """
    if not isinstance(choice, Iterable) or isinstance(choice, bytes) or getattr(choice, "ndim", 1) == 0:
        raise invalid_argument(argument, f"a {type(choice).__name__}", expected)
    with users_code(argument, "an iterable that fails while it is read", expected):
        found = tuple(islice(choice, most + 1))
    if len(found) > most:
        raise invalid_argument(argument, f"more than {most:,} entries without an end in sight", expected)
    return found


def recorded(value: Any) -> Any:
    """Return a value that JSON can hold: functions and classes by name, modules by class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [recorded(one) for one in value]
    named: Callable[..., Any] | type = value if hasattr(value, "__qualname__") else type(value)
    return str(value) if type(value).__module__ == "torch" else named.__qualname__  # a device says which
