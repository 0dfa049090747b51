"""Functions that take the settings of a run as keywords: their signature, their docstring, and what they were given."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter
from typing import Any, TypeVar

from snows_core.settings.prune_settings import PruneSettings
from snows_core.settings.recipe import get_recipe

_WIDTH = 120
_Function = TypeVar("_Function", bound=Callable[..., Any])


def settings_of(function: Callable[..., Any], /, **options: Any) -> PruneSettings:
    """Read what a function was given: settings by name, and single fields of the recipe.

    Args:
        function: who asks; its other arguments are suggested for a misspelt option.
        **options: fields of :class:`PruneSettings`, of :class:`~snows_core.settings.Recipe` and of
            :class:`~snows_core.settings.NewtonOptions`.

    Returns:
        The settings.

    Raises:
        SnowsError: on an unknown option, or a value that cannot be meant.

    >>> settings_of(settings_of, k=2, steps=1).recipe.newton.steps
    1
    """
    own = {f.name: options.pop(f.name) for f in fields(PruneSettings) if f.name in options}
    known = (*arguments_of(function), *(f.name for f in fields(PruneSettings)))
    recipe = get_recipe(own.pop("recipe", PruneSettings.recipe), known, **options)
    return PruneSettings(recipe=recipe, **own)


def arguments_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Return the names of a function's own arguments, for hints at a misspelt option."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)


def takes_settings(function: _Function) -> _Function:
    """Show every setting, with type, default and meaning, where a function takes them as ``**options``.

    Args:
        function: takes ``**options``, and says so in the arguments of its docstring.

    Returns:
        The function itself, with another signature and docstring.

    >>> @takes_settings
    ... def run(model, **options): ...
    >>> inspect.signature(run).parameters["k"].default
    5
    """
    own = list(inspect.signature(function).parameters.values())
    written = {parameter.name for parameter in own}
    settings = [
        Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type)
        for f in fields(PruneSettings)
        if f.name not in written
    ]
    first = [p for p in own if p.kind is p.POSITIONAL_OR_KEYWORD]
    rest = [p for p in own if p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD)]
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # inspect reads it, no type has it
        [*first, *settings, *rest], return_annotation=inspect.signature(function).return_annotation
    )
    if function.__doc__:  # there is none under python -OO
        after = str(rest[0]).split(":")[0]  # with its stars
        function.__doc__ = _with_settings(function.__doc__, [p.name for p in first], after)
    return function


def _with_settings(doc: str, first: list[str], rest: str) -> str:
    """Return a docstring with an entry for every setting: in the place of a line for it, the others before ``rest``."""
    lines, entries = inspect.cleandoc(doc).split("\n"), _entries()
    for number, line in enumerate(lines):
        name = line.strip().split(":")[0]
        if name in first and name in entries:
            lines[number] = entries.pop(name)
        elif name == rest:
            return "\n".join([*lines[:number], *entries.values(), *lines[number:]])
    return doc


def _entries() -> dict[str, str]:
    """Return the lines of a docstring that describe each setting."""
    first, rest = " " * 4, " " * 8
    return {
        f.name: textwrap.fill(
            f"{f.name}: {f.metadata['help']} {f.metadata['python']}".rstrip(),
            _WIDTH,
            initial_indent=first,
            subsequent_indent=rest,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for f in fields(PruneSettings)
    }


if PruneSettings.__doc__:
    _attributes = "\n".join(["Attributes:", *_entries().values()])
    PruneSettings.__doc__ = inspect.cleandoc(PruneSettings.__doc__).replace("Raises:\n", f"{_attributes}\n\nRaises:\n")
