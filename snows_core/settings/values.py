"""Values of settings in one form: memory bounds, stages, choices that can be read twice, and what a manifest holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from snows_core.errors import integer, invalid_argument, plain

LEAST_BYTES = 1e6
"""Fewer bytes are no memory bound that anybody means."""


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
