"""What a user of the command line reads when something went wrong: one sentence, in the words that were typed."""

from __future__ import annotations

import errno
import functools
import inspect
import os
import re
import shlex
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.models import OptionInfo

from snows_core.errors import SnowsError
from snows_core.interruption import interruptible
from snows_core.settings import changeable

FAILED, WRONG_OPTION, INTERRUPTED = 1, 2, 130
FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE)  # no other option would help
TRACE = "SNOWS_TRACE"
_DEVICE = re.compile(r"(?:CUDA|HIP|NCCL|cuDNN|MPS|XPU|ACL) error[^.;]{0,150}", re.IGNORECASE)  # of a driver
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
    "cap": "pattern",
    "notebook": "names",
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
        counted = re.match(r"\w+: got -?\d+(?: images to read)?;", message)
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
    """Turn whatever ends a command into one sentence and an exit code: nobody has to read a trace.

    The code is 2 for an option that has to be another one; 1 where the run cannot go on (a damaged file, a full disk,
    no memory) or the package itself is at fault; 130 after Ctrl-C, SIGTERM or SIGHUP. A trace is shown where
    ``SNOWS_TRACE`` is set.

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
            with interruptible(), warnings.catch_warnings():
                warnings.showwarning = show_warning
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # the last: in `snows ... | head` the reader has enough
        except KeyboardInterrupt as error:
            typer.echo("interrupted: what was finished before is kept, nothing is half-written", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            if os.environ.get(TRACE):
                raise
            sentence, code = _ending(error, command)
            typer.echo(f"error: {sentence}", err=True)
            raise typer.Exit(code) from error

    return run


def _ending(error: Exception, command: Callable[..., Any]) -> tuple[str, int]:
    """Return what a user reads when an error ended a command, on one line, and the exit code."""
    options = typed_options(command)
    sentence = " ".join(as_typed(str(error), options).split())
    if isinstance(error, SnowsError):
        names = {error.argument, _OTHER_NAMES.get(error.argument)}
        own = bool(names & inspect.signature(command).parameters.keys()) or sentence.startswith("--")
        wrong = bool(error.argument) and own and getattr(error.__cause__, "errno", None) not in FAULTS
        return sentence, WRONG_OPTION if wrong else FAILED
    from snows_core.devices import out_of_memory  # who gets here has loaded PyTorch

    if out_of_memory(error):
        advice = " Use fewer --images, or less --max-memory." if "max_memory" in options else ""
        return f"memory ran out.{advice}", FAILED
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):  # raised wherever this process was
        from snows_core.zoo.reading import dead_worker

        return as_typed(str(dead_worker(error)), options), FAILED
    if isinstance(error, OSError):
        return sentence, FAILED
    if isinstance(error, RuntimeError) and (lost := _DEVICE.search(sentence)):
        return f"the device stopped working ({lost[0]}). A restart, or --device cpu, may help.", FAILED
    kind = f"{type(error).__name__}{': ' + sentence[:300] if sentence else ''}"
    return f"unexpected {kind}. This is a mistake of snows; {TRACE}=1 shows where, for a report of it.", FAILED
