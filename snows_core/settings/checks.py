"""What each setting of a run may be, as far as can be told without a network: types, numbers, names and functions.

Every setting has one reader; :class:`~snows_core.settings.PruneSettings` calls them all once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, get_args

from snows_core.errors import integer, invalid_argument, number, one_of, plain, shown, switch
from snows_core.files import is_file
from snows_core.settings.effort import get_effort
from snows_core.settings.recipe import get_recipe
from snows_core.settings.types import ALLOCATIONS, JointSolver
from snows_core.settings.values import read_k, read_labels, read_max_memory, read_stages, repeatable

SALIENCY = ("name", "weight")
"""What a function that scores weights is called with."""
AUGMENT = ("images", "generator")
"""What a function that augments images is called with."""
PREDICATE = ("name", "module")
"""What a function that chooses layers is called with."""
PATTERNS = '"n:m", a sparsity such as 0.8, "global:0.8", "structured:0.5", NM(n, m) or Unstructured(s)'
"""What a pattern may be, for messages."""

_MASKS = "a dict of masks, a pruned model, its state dict, a file of one of these dicts, or a result"
_LEAVES = "classes, names, or globs of names"


def function_of(argument: str, value: Any, parameters: Iterable[str], otherwise: str = "") -> Callable[..., Any]:
    """Return a function that can be called with so many positional arguments.

    Args:
        argument: its name, for the message.
        value: what came.
        parameters: what it will be called with, in this order.
        otherwise: what else the caller accepts, for the message, for instance "a name, or ".

    Raises:
        SnowsError: on what cannot be called, and on a function of more or fewer arguments.

    >>> function_of("saliency", lambda name, weight: weight.abs(), SALIENCY) is not None
    True
    """
    names = tuple(parameters)
    expected = f"{otherwise}a function of ({', '.join(names)})"
    if not callable(value):
        raise invalid_argument(argument, type(value).__name__, expected)
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # a built-in function does not say what it takes
        return value
    try:
        signature.bind(*names)
    except TypeError as error:
        raise invalid_argument(argument, f"a function of {signature} ({error})", expected) from None
    return value


def read_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check every setting by itself, and those that exclude each other.

    Args:
        given: name of the setting to what came.

    Returns:
        Name to value, in one form: Python's own numbers, tuples for iterators, the recipe for its name.

    Raises:
        SnowsError: on a value that cannot be meant, naming the setting.
    """
    get_effort(given["effort"])
    read = {name: reader(given[name]) for name, reader in _READERS.items()}
    for name in _METHODS:
        read[name] = _method_name(name, given[name])
    for name in ("layers", "exclude", "leaf_modules"):
        read[name] = _choice(name, given[name])
    for name, (least, what, otherwise) in _INTEGERS.items():
        if given[name] is not None:
            read[name] = integer(name, given[name], least, what, otherwise)
    if read["moving_masks"] and read["refine_solver"] == "newton":
        expected = "refine_solver 'natural' or 'adam'"
        raise invalid_argument("moving_masks", "True beside refine_solver='newton'", expected)
    if read["moving_masks"] and given["masks"] is not None:
        fix = "Masks that were given stay as they are."
        raise invalid_argument("moving_masks", "True beside masks", "masks made by a pattern", fix)
    return read


def _pattern(value: Any) -> Any:
    """Refuse what is no pattern by its type; :func:`snows_core.masks.parse_pattern` reads the others."""
    of_its_own = hasattr(value, "misfit") and hasattr(value, "mask") and not isinstance(value, type)
    number_ = plain(value)
    if of_its_own or isinstance(value, str | Mapping) or (isinstance(number_, Real) and not isinstance(number_, bool)):
        return value
    raise invalid_argument("pattern", shown(value), PATTERNS)


def _masks(value: Any) -> Any:
    """Refuse what can hold no masks; :func:`snows_core.masks.given.foreign_masks` reads the others."""
    if isinstance(value, str | Path):
        if not is_file(value):
            fix = "A method that chooses masks is mask=."
            raise invalid_argument("masks", f"'{value}', which is no file", "a file of masks or weights", fix)
        return value
    holds = isinstance(value, Mapping) or hasattr(value, "state_dict") or hasattr(value, "masks")
    if value is not None and (not holds or isinstance(value, type)):
        what = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise invalid_argument("masks", what, _MASKS)
    return value


def _saliency(value: Any) -> Any:
    return value if isinstance(value, str) else function_of("saliency", value, SALIENCY, "the name of a saliency, or ")


def _augment(value: Any) -> Any:
    return None if value is None else function_of("augment", value, AUGMENT)


def _allocation(value: Any) -> Any:
    return None if value is None else one_of("allocation", value, ALLOCATIONS, ", or None")


def _method_name(name: str, value: Any) -> Any:
    unnamed = value is None and name == "mask"
    if not unnamed and not (isinstance(value, str) and value.strip()):
        raise invalid_argument(name, shown(value), "the name of a method", "snows.methods() lists them.")
    return value


def _choice(name: str, value: Any) -> Any:
    """Return a choice of layers or modules in a form that can be read twice; what is in it, a network has to say."""
    leaves = name == "leaf_modules"
    if isinstance(value, str | type) or (value is None and not leaves):
        return value
    # A module of the network's is one layer; it can be called, too, and has the names of all its parts.
    if not leaves and hasattr(value, "named_modules"):
        return value
    if callable(value) and not leaves:
        return function_of(name, value, PREDICATE, "names, globs, classes, modules of this model, or ")
    return repeatable(name, value, _LEAVES if leaves else "names, globs, classes, modules of this model, or a function")


def _device(value: Any) -> Any:
    """Refuse what names no device by its type; :func:`snows_core.devices.resolve_device` looks for the others."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or isinstance(value, str) or whole or type(value).__module__ == "torch":
        return value
    raise invalid_argument("device", shown(value), 'the name of a device, for instance "cpu" or "cuda:1"')


_METHODS = ("mask", "update")
_READERS: dict[str, Callable[[Any], Any]] = {
    "pattern": _pattern,
    "allocation": _allocation,
    "flops": lambda value: None if value is None else number("flops", value, above=0, below=1),
    "k": read_k,
    "recipe": get_recipe,
    "masks": _masks,
    "saliency": _saliency,
    "stages": lambda value: None if value is None else read_stages(value),
    "labels": read_labels,
    "permute": lambda value: None if value is None else switch("permute", value),
    "device": _device,
    "max_memory": read_max_memory,
    "refine_solver": lambda value: one_of("refine_solver", value, get_args(JointSolver)),
    "moving_masks": lambda value: switch("moving_masks", value),
    "augment": _augment,
    "seed": lambda value: integer("seed", value),
    "deterministic": lambda value: switch("deterministic", value),
    "progress": lambda value: switch("progress", value),
}
"""Setting to its reader."""

_INTEGERS = {
    "sweep_images": (1, "a number of images", ""),
    "stage_k": (0, "an integer", ""),
    "max_images": (1, "an integer", " or None"),
    "refine": (0, "a number of steps", ""),
}
"""Setting that may be None to the least integer that it may be, and what it counts."""
