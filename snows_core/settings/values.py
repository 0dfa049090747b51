"""Values of settings in one form: memory bounds, stages, choices that can be read twice, and what a manifest holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from snows_core.errors import integer, invalid_argument, plain

K = int | Literal["auto"]
"""How many operations behind a layer its loss sees; "auto" chooses for each layer."""

DEFAULT_K = 5
LEAST_BYTES = 1e6
"""Fewer bytes are no memory bound that anybody means."""


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
    """Return a number of stages, or a tuple of patterns as they were written."""
    if isinstance(stages, str) and "," in stages:
        return tuple(part.strip() for part in stages.split(","))
    if isinstance(stages, Iterable) and not isinstance(stages, str):
        return tuple(plain(stage) for stage in stages)
    text = isinstance(stages, str) and stages.strip().isascii() and stages.strip().isdecimal()
    return integer("stages", int(stages) if text else stages, 1, "a number of stages", ", or a list of patterns")


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
    listed = labels.tolist() if hasattr(labels, "tolist") else labels
    expected, fix = "one class index >= 0 for each calibration image", "One-hot labels become indices by argmax(1)."
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise invalid_argument("labels", type(labels).__name__, expected)
    for label in map(plain, listed):
        if isinstance(label, bool) or not isinstance(label, int) or label < 0:
            raise invalid_argument("labels", f"{label!r:.40} among them", expected, fix)
    return tuple(plain(label) for label in listed)


def recorded_stage(stage: Any) -> Any:
    """Return a stage as JSON holds it."""
    return dict(stage) if isinstance(stage, Mapping) else str(stage)


def repeatable(choice: Any) -> Any:
    """Return a choice that can be read twice: what an iterator yields is kept; texts, classes and functions stay."""
    if isinstance(choice, str) or callable(choice) or not isinstance(choice, Iterable):
        return choice
    return tuple(choice)


def recorded(value: Any) -> Any:
    """Return a value that JSON can hold: functions and classes by name, modules by class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [recorded(one) for one in value]
    named: Callable[..., Any] | type = value if hasattr(value, "__qualname__") else type(value)
    return str(value) if type(value).__module__ == "torch" else named.__qualname__  # a device says which
