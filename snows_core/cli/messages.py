"""What a user of the command line reads when something went wrong: one sentence, in the words that were typed."""

from __future__ import annotations

import functools
import re
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from snows_core.errors import SnowsError
from snows_core.settings import changeable

INTERRUPTED = 130
# Names that the package gives to what the command line calls otherwise; used where the command has that option.
_OTHER_NAMES = {
    "folder": "out",
    "patterns": "pattern",
    "experiment": "model",
    "root": "data_root",
    "n": "images",
    "count": "images",
    "max_images": "images",
    "option": "settings",
}
# A text, a list of texts, or one word; what only Python understands (a class, a call, a function) stays as it is.
_VALUE = r"""(?:'[^']*'|"[^"]*"|\[(?:\s*(?:'[^']*'|"[^"]*")\s*,?)+\]|(?!lambda)[\w.:%+<>/~-]*[\w%>~](?![\w.]*[(\[]))"""


@dataclass(frozen=True)
class Typed:
    """How an option is typed.

    Attributes:
        flag: its name with dashes, and for options of a recipe "--set name".
        switch: whether it takes no value.
        setting: whether it is an option of a recipe, typed as ``--set name=value``.
    """

    flag: str
    switch: bool = False
    setting: bool = False


def typed_options(command: Callable[..., Any]) -> dict[str, Typed]:
    """Return how the options of a command are typed, by the names that messages of the package use."""
    found: dict[str, Typed] = {}
    hints = get_type_hints(command, include_extras=True)
    for name, hint in hints.items():
        if get_origin(hint) is not Annotated:
            continue
        kind, *extras = get_args(hint)
        if info := next((extra for extra in extras if isinstance(extra, OptionInfo)), None):
            texts = (info.default, *(info.param_decls or ()))  # in Annotated the first name is taken for a default
            given = [text for text in texts if isinstance(text, str) and text.startswith("--")]
            found[name] = Typed(given[0] if given else f"--{name.replace('_', '-')}", kind is bool)
    if "settings" in found:
        found = {name: Typed(f"--set {name}", setting=True) for name in changeable()} | found
    others = {other: found[own] for other, own in _OTHER_NAMES.items() if own in found and other not in hints}
    return others | found


def as_typed(message: str, options: Mapping[str, Typed]) -> str:
    """Say a message of the package in the words of the command line.

    The argument at its beginning becomes the option, and so does ``name=value`` within it. ``images`` is left alone
    unless a number came: in Python it means the images themselves, on the command line how many.

    Args:
        message: of a SnowsError or a warning.
        options: from :func:`typed_options`.

    Returns:
        The message.

    >>> as_typed("max_memory: got 'much'; expected bytes.", {"max_memory": Typed("--max-memory")})
    "--max-memory: got 'much'; expected bytes."
    >>> as_typed("Pass weights='<path>' to a file.", {"weights": Typed("--weights")})
    'Pass --weights <path> to a file.'
    """
    known = {name: typed for name, typed in options.items() if name not in ("images", "n")}

    def keyword(found: re.Match[str]) -> str:
        return _as_option(options[found["name"]], found["name"], found["value"] or "")

    names = "|".join(sorted(map(re.escape, known), key=len, reverse=True))
    before, value = r"(?<![\w./'\"-])(?<!--set )", rf"(?:(?P<value>{_VALUE})|(?![\w\[('\"]))"
    if names:
        message = re.sub(rf"{before}(?P<name>{names})={value}", keyword, message)
    first = re.match(r"(\w+)(?=: )", message)
    if first and first[1] in options:
        counted = re.match(r"\w+: got -?\d+;", message)
        if options[first[1]].flag != "--images" or counted:
            message = options[first[1]].flag + message[first.end() :]
    return message


def _as_option(typed: Typed, name: str, value: str) -> str:
    if typed.switch:
        return typed.flag
    texts = [a or b for a, b in re.findall(r"'([^']*)'|\"([^\"]*)\"", value)] or ([value] if value else [])
    words = [text if re.fullmatch(r"[\w.:%+<>/~-]*", text) else shlex.quote(text) for text in texts]
    if typed.setting:
        return f"--set {name}={words[0] if words else ''}"
    return " ".join(f"{typed.flag} {word}" for word in words) or typed.flag


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn a user's mistake into one sentence and exit code 1, and Ctrl-C into exit code 130; bugs keep their trace.

    Args:
        command: a command's function.

    Returns:
        The function with the same signature.
    """

    def show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
        typer.echo(f"warning: {as_typed(str(message), typed_options(command))}", err=True)

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = show_warning
                command(*args, **kwargs)
        except BrokenPipeError:  # `snows ... | head`: the reader has enough
            raise
        except KeyboardInterrupt as error:
            typer.echo("interrupted: what was finished before is kept, nothing is half-written", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except (SnowsError, OSError) as error:
            typer.echo(f"error: {as_typed(str(error), typed_options(command))}", err=True)
            raise typer.Exit(1) from error
        except (MemoryError, RuntimeError) as error:
            from snows_core.devices import out_of_memory  # who gets here has loaded PyTorch

            if not out_of_memory(error):
                raise
            advice = " Use fewer --images, or less --max-memory." if "max_memory" in typed_options(command) else ""
            typer.echo(f"error: memory ran out.{advice}", err=True)
            raise typer.Exit(1) from error

    return run
