"""Options that several commands of `snows` share: types, help, parsing."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, fields
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from snows_core.cli import completion
from snows_core.cli.folders import existing_folder
from snows_core.cli.folders import home_expanded as home_expanded
from snows_core.cli.idle import refuse_idle
from snows_core.cli.memory_size import parse_memory
from snows_core.errors import LIMIT, closest, invalid_argument
from snows_core.settings import CHOICES, OWN, NewtonOptions, PruneSettings, Recipe, changeable, get_effort, settings_of

_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def checked_seed(seed: int) -> int:
    """Refuse a seed that PyTorch's generators do not take."""
    if not 0 <= seed < LIMIT:
        raise typer.BadParameter(f"got {seed}; expected an integer from 0 to {LIMIT - 1}")
    return seed


def _parse_k(text: str) -> str | int:
    digits = text.isascii() and text.isdecimal() and len(text) <= len(str(LIMIT))
    if text != "auto" and not (digits and int(text) < LIMIT):
        raise typer.BadParameter(f"got {text[:40]!r}; expected an integer >= 0, or auto")
    return text if text == "auto" else int(text)


def read_settings(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``name=value`` texts of --set as options of a recipe.

    Args:
        texts: one for each --set.

    Returns:
        Name to value, of the type of the recipe's own; their ranges are checked where the recipe is made.

    Raises:
        SnowsError: on a text without =, an unknown name, a value of another type, or a name given twice.

    >>> read_settings(["steps=2", "curvature_images=none"])
    {'steps': 2, 'curvature_images': None}
    """
    found: dict[str, Any] = {}
    known = changeable()
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        name = name.replace("-", "_")
        if not equals:
            raise invalid_argument("--set", f"'{text}'", "name=value", "For instance --set steps=2.")
        if name not in known:
            raise invalid_argument(
                "--set", f"'{text}'", f"one of {', '.join(known)} before the =", closest(name, known)
            )
        if name in found:
            raise invalid_argument("--set", f"{name} twice", "each option once")
        found[name] = _read_value(name, value)
    return found


def _read_value(name: str, text: str) -> Any:
    """Return a value of the type that the recipe's own value has."""
    own = changeable()[name]
    optional = any(f.name == name and "None" in str(f.type) for f in (*fields(Recipe), *fields(NewtonOptions)))
    if optional and text.lower() in ("none", "all"):
        return None
    if name in CHOICES or (name, text.lower()) == ("warm_start", OWN):
        return text.lower() if name == "warm_start" else text
    kinds = {bool: "true or false", int: "an integer", float: "a number"}
    try:
        if isinstance(own, bool):
            return _SWITCHES[text.lower()]
        return type(own)(text)
    except (ValueError, KeyError):
        kind = kinds[type(own)] + (", or none" if optional else "")
        raise invalid_argument("--set", f"'{name}={text}'", f"{kind} behind the =") from None


MODEL_HELP = "An experiment (see `snows experiments`), timm/<name> or torchvision/<name>."
DATA_HELP = "digits, cifar10, cifar10-full, cifar100, imagenette, imagenet, imagenet-samples or folder:<path>."
_MEANING = {setting.name: setting.metadata["help"] for setting in fields(PruneSettings)}
_EXPERIMENTS_OWN = "the experiment's own"
_EFFORTS = "by --effort"

ModelName = Annotated[str, typer.Option(help=MODEL_HELP, autocompletion=completion.models)]
Model = Annotated[str | None, typer.Option(help=MODEL_HELP, autocompletion=completion.models)]
Data = Annotated[
    str | None, typer.Option(help=DATA_HELP, show_default=_EXPERIMENTS_OWN, autocompletion=completion.data)
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets.",
        show_default="the variable SNOWS_DATA, else the user's cache",
        callback=existing_folder,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Local .safetensors or .pth file.", show_default=_EXPERIMENTS_OWN, callback=home_expanded),
]
NumClasses = Annotated[
    int | None,
    typer.Option(min=1, help="Outputs of a fine-tuned network.", show_default="read from the file of --weights"),
]
Device = Annotated[
    str | None, typer.Option(help=_MEANING["device"], show_default="cpu", autocompletion=completion.devices)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
MaxMemory = Annotated[
    Any,
    typer.Option(
        parser=parse_memory,
        metavar="BYTES|FRACTION",
        help=f"{_MEANING['max_memory']} Also 500MB, 3GB.",
        show_default="chosen from what is free",
    ),
]


def _globs(setting: str, default: str) -> Any:
    """Return the type of an option that takes one name or glob each time it is typed."""
    text = f"{_MEANING[setting]} May be repeated."
    return Annotated[list[str] | None, typer.Option(metavar="GLOB", help=text, show_default=default)]


# How a shell writes the settings whose type and default do not say so, in the order of the settings.
_TYPED: dict[str, Any] = {
    "pattern": Annotated[
        str | None,
        typer.Option(help=_MEANING["pattern"], show_default=_EXPERIMENTS_OWN, autocompletion=completion.patterns),
    ],
    "allocation": Annotated[
        str | None,
        typer.Option(
            help=_MEANING["allocation"], show_default="the pattern's scope", autocompletion=completion.allocations
        ),
    ],
    "flops": Annotated[float | None, typer.Option(help=_MEANING["flops"], show_default="none")],
    "k": Annotated[
        Any,
        typer.Option(parser=_parse_k, metavar="INTEGER|auto", help=_MEANING["k"], show_default=_EXPERIMENTS_OWN),
    ],
    "recipe": Annotated[str, typer.Option(help=_MEANING["recipe"], autocompletion=completion.recipes)],
    "masks": Annotated[
        Path | None, typer.Option(help=_MEANING["masks"], show_default="by --pattern", callback=home_expanded)
    ],
    "saliency": Annotated[str, typer.Option(help=_MEANING["saliency"], autocompletion=completion.saliencies)],
    "mask": Annotated[str | None, typer.Option(help=_MEANING["mask"], show_default=_EFFORTS)],
    "permute": Annotated[
        bool | None, typer.Option("--permute/--no-permute", help=_MEANING["permute"], show_default=_EFFORTS)
    ],
    "layers": _globs("layers", "all but the first and the last"),
    "exclude": _globs("exclude", _EXPERIMENTS_OWN),
    "leaf_modules": _globs("leaf_modules", "none"),
    "device": Device,
    "max_images": Annotated[
        int | None,
        typer.Option(min=1, help=_MEANING["max_images"], show_default=f"{_EXPERIMENTS_OWN}, 256 mostly"),
    ],
    "max_memory": MaxMemory,
    "effort": Annotated[str, typer.Option(help=_MEANING["effort"], autocompletion=completion.efforts)],
    "stages": Annotated[str | None, typer.Option(help=_MEANING["stages"], show_default=_EFFORTS)],
    "sweep_images": Annotated[int | None, typer.Option(min=1, help=_MEANING["sweep_images"], show_default=_EFFORTS)],
    "stage_k": Annotated[int | None, typer.Option(min=0, help=_MEANING["stage_k"], show_default=_EFFORTS)],
    "refine": Annotated[int | None, typer.Option(min=0, help=_MEANING["refine"], show_default=_EFFORTS)],
    "augment": Annotated[
        bool,
        typer.Option("--augment", help=f"{_MEANING['augment']} Mirrors and shifts them (natural images only)."),
    ],
    "seed": Annotated[int, typer.Option(callback=checked_seed, help=f"{_MEANING['seed']} Also of which images.")],
    "progress": Quiet,
}
_SHELL_NAMES = {"max_images": "images", "progress": "quiet"}
_IN_A_SHELL = tuple(s.name for s in fields(PruneSettings) if s.name != "labels")  # which are tensors
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="One option of the recipe, as steps=2 or curvature_images=none; may be repeated.",
        show_default="the recipe's own",
        autocompletion=completion.settings,
    ),
]


_MEASURING = {
    "test_images": Annotated[
        int | None, typer.Option(min=1, help="Judge on so many test images, drawn by a seed.", show_default="all")
    ],
    "workers": Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read test images.",
            show_default="by their number and that of the cores, up to 4",
        ),
    ],
}


def with_measuring(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --test-images and --workers.

    Args:
        command: takes them as ``**typed``.

    Returns:
        The command itself, with another signature.
    """
    made = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in _MEASURING.items()]
    return extended(command, made)


def with_settings(command: Callable[..., None], names: Collection[str] | None = None) -> Callable[..., None]:
    """Give a command an option for each setting of a run that a shell can write, and --set for fields of the recipe.

    Args:
        command: takes them as ``**typed``, to be read by :func:`read_options`.
        names: only these settings, without --set, to be read by :func:`typed_settings`.

    Returns:
        The command itself, with another signature.
    """
    made = [_parameter(setting) for setting in fields(PruneSettings) if setting.name in (names or _IN_A_SHELL)]
    if names is None:
        made.append(Parameter("settings", Parameter.KEYWORD_ONLY, default=None, annotation=_Set))
    return extended(command, made)


def extended(command: Callable[..., None], made: list[Parameter]) -> Callable[..., None]:
    """Write parameters in place of ``**typed`` into the signature of a command, which typer reads.

    Args:
        command: takes them as ``**typed``.
        made: the parameters, keyword-only.

    Returns:
        The command itself.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    command.__signature__ = inspect.Signature([*own, *made])  # type: ignore[attr-defined] # typer reads it
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *made)}
    return command


def _parameter(setting: Field[Any]) -> Parameter:
    """Return the parameter of a command for a setting: None and False stand for what was not typed."""
    kind: Any = type(setting.default)
    annotation = _TYPED.get(setting.name, Annotated[kind, typer.Option(help=_MEANING[setting.name])])
    kind = get_args(annotation)[0]
    default = setting.default if kind in (str, int) else False if kind is bool else None
    name = _SHELL_NAMES.get(setting.name, setting.name)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def read_options(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Read what was typed for :func:`with_settings` as keywords of ``prune``, and refuse what cannot be meant.

    Args:
        typed: name to value.

    Returns:
        The keywords that were typed or have a default of their own; ``augment`` is True where it was typed.

    Raises:
        SnowsError: on a value that cannot be meant, and on --augment without steps to augment.
    """
    options = typed_settings({name: value for name, value in typed.items() if name != "settings"})
    options |= read_settings(typed.get("settings") or ())
    refined = options.get("refine", get_effort(options["effort"]).passes)
    if options.pop("augment"):
        if not refined:
            expected = "steps of refinement, during which images are changed"
            raise invalid_argument("--augment", "no --refine", expected, "For instance --refine 150.")
        options["augment"] = True
    refuse_idle(typed, bool(refined))
    settings_of(PruneSettings, **{name: value for name, value in options.items() if name != "augment"})
    return options


def typed_settings(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was typed by the names of settings, without what was not typed."""
    python = {shell: name for name, shell in _SHELL_NAMES.items()}
    options = {python.get(name, name): value for name, value in typed.items() if value not in (None, [])}
    return options | {"progress": not options["progress"]}
