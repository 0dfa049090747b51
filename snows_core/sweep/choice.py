"""Which layers a caller means: by names, globs, classes, modules, or a function."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from snows_core.errors import closest, invalid_argument, plain, shown, users_code
from snows_core.network.copies import unwrap
from snows_core.settings import PREDICATE, LayerChoice, function_of

_EXPECTED = "names, globs, classes, modules of this model, or a function of (name, module)"


def matching(choice: LayerChoice, argument: str, layers: Iterable[str], model: nn.Module) -> set[str]:
    """Resolve a choice to layer names.

    Args:
        choice: names or globs of layers; modules of the model, or classes of such, which mean every layer that is one
            of them or lies inside; a list of all these; a function of (name, module), the module being None for
            weights used without one; or None for no layer.
        argument: of the caller, for messages.
        layers: names of the layers there are.
        model: the caller's network.

    Returns:
        Names of the layers meant.

    Raises:
        SnowsError: on anything else, and on a name, class or module that means no layer.
    """
    names = list(layers)
    modules = dict(unwrap(model).named_modules())
    if choice is None:
        return set()
    if callable(choice) and not isinstance(choice, type | nn.Module):
        function_of(argument, choice, PREDICATE)
        return {name for name in names if _answer(choice, argument, name, modules.get(name))}
    if isinstance(choice, str | type | nn.Module):
        choice = [choice]
    if not isinstance(choice, Iterable):
        raise invalid_argument(argument, type(choice).__name__, _EXPECTED)
    found: set[str] = set()
    for one in choice:
        found |= _matching_one(one, argument, names, modules)
    return found


def matching_some(choice: LayerChoice, layers: Iterable[str], model: nn.Module) -> set[str]:
    """Resolve ``layers=`` as :func:`matching` does, and refuse a choice that means no layer.

    Args:
        choice: see there.
        layers: names of the layers there are.
        model: the caller's network.

    Returns:
        Names of the layers meant, at least one.

    Raises:
        SnowsError: on no layer, and as there.
    """
    found = matching(choice, "layers", layers, model)
    if not found:
        raise invalid_argument("layers", "a choice that selects no layer", "at least one layer of this model")
    return found


def _answer(choice: Callable[..., Any], argument: str, name: str, module: nn.Module | None) -> bool:
    """Return what a function of a caller's says of one layer.

    Raises:
        SnowsError: when it fails, or says neither True nor False.
    """
    expected = "a function of (name, module) that returns True or False"
    if module is None:
        expected += ", where module is None, as the weight is used without one"
    with users_code(argument, f"a function that fails for '{name}'", expected):
        answer = plain(choice(name, module))
    if not isinstance(answer, bool | int):
        raise invalid_argument(argument, f"a function that returns {shown(answer)} for '{name}'", expected)
    return bool(answer)


def _matching_one(one: Any, argument: str, names: list[str], modules: Mapping[str, nn.Module]) -> set[str]:
    if isinstance(one, str):
        hits = {name for name in names if fnmatch.fnmatchcase(name, one) or name == one}
        if not hits:
            raise invalid_argument(
                argument, repr(one), f"names or globs of this model's {len(names)} layers", closest(one, names)
            )
        return hits
    if isinstance(one, type):
        paths = [path for path, module in modules.items() if isinstance(module, one)]
        what = f"the class {one.__name__}"
    elif isinstance(one, nn.Module):
        inner = unwrap(one)
        paths = [path for path, module in modules.items() if module is one or module is inner]
        what = f"a {type(one).__name__} that is no part of the model" if not paths else f"the module '{paths[0]}'"
    else:
        raise invalid_argument(argument, f"a {type(one).__name__} in a list", _EXPECTED)
    hits = {name for name in names for path in paths if not path or name == path or name.startswith(f"{path}.")}
    if not hits:
        some = ", ".join(names[:3])
        raise invalid_argument(
            argument, what, f"what holds at least one of this model's {len(names)} layers", f"Layers are {some}."
        )
    return hits
