"""Options that several commands of `snows` share: types, help, parsing."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from snows_core.cli import completion
from snows_core.errors import LIMIT, closest, invalid_argument
from snows_core.settings import CHOICES, NewtonOptions, Recipe, changeable

_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def home_expanded(path: Path | None) -> Path | None:
    """Read a leading ~ as the home folder: no shell does so in ``--out=~/pruned``."""
    try:
        return None if path is None else path.expanduser()
    except RuntimeError as error:
        raise typer.BadParameter(f"got {path}; expected a folder of a user that this machine has") from error


def checked_seed(seed: int) -> int:
    """Refuse a seed that PyTorch's generators do not take."""
    if not 0 <= seed < LIMIT:
        raise typer.BadParameter(f"got {seed}; expected an integer from 0 to {LIMIT - 1}")
    return seed


def _parse_k(text: str) -> str | int:
    if text != "auto" and not (text.isascii() and text.isdecimal() and int(text) < LIMIT):
        raise typer.BadParameter(f"got {text!r}; expected an integer >= 0, or auto")
    return text if text == "auto" else int(text)


_UNITS = ("", "k", "m", "g", "t", "p", "e")  # each 1000 times the one before, or 1024 times as in GiB
_BYTES = re.compile(
    r"\s*(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>[kmgtpe]?)(?P<binary>(?<=[kmgtpe])i(?=b))?b?\s*", re.IGNORECASE
)


def _parse_memory(text: str) -> float:
    """Read bytes (2e9), bytes with a unit (500MB, 3GB, 1.5GiB), or a fraction of what is free (0.5)."""
    try:
        size = float(text)
    except ValueError:
        found = _BYTES.fullmatch(text)
        base = 1024 if found and found["binary"] else 1000
        size = int(float(found["number"]) * base ** _UNITS.index(found["unit"].lower())) if found else math.nan
    if not (math.isfinite(size) and size > 0):
        expected = "bytes as 2e9, 500MB or 3GB, or a fraction of the free memory as 0.5"
        raise typer.BadParameter(f"got {text!r}; expected {expected}")
    return size


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
    if name in CHOICES:
        return text
    kinds = {bool: "true or false", int: "an integer", float: "a number"}
    try:
        if isinstance(own, bool):
            return _SWITCHES[text.lower()]
        return type(own)(text)
    except (ValueError, KeyError):
        kind = kinds[type(own)] + (", or none" if optional else "")
        raise invalid_argument("--set", f"'{name}={text}'", f"{kind} behind the =") from None


MODEL_HELP = "An experiment (see `snows experiments`), timm/<name> or torchvision/<name>."
DATA_HELP = "digits, cifar10, cifar100, imagenette, imagenet or folder:<path>."
PATTERN_HELP = (
    "N:M as 2:4, a share of zeros in each layer as 0.8, or with one threshold for all layers as global:0.8;"
    " global:0.8:0.95 leaves at least 5 % in every layer."
)

ModelName = Annotated[str, typer.Option(help=MODEL_HELP, autocompletion=completion.models)]
Model = Annotated[str | None, typer.Option(help=MODEL_HELP, autocompletion=completion.models)]
Data = Annotated[
    str | None, typer.Option(help=DATA_HELP, show_default="the experiment's own", autocompletion=completion.data)
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the data sets.",
        show_default="the variable SNOWS_DATA, else the user's cache",
        callback=home_expanded,
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="Local .safetensors or .pth file.", show_default="the experiment's own", callback=home_expanded),
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda, cuda:1, ...", show_default="cpu", autocompletion=completion.devices),
]
Pattern = Annotated[
    str | None,
    typer.Option(help=PATTERN_HELP, show_default="the experiment's own", autocompletion=completion.patterns),
]
KOption = Annotated[
    Any,
    typer.Option(
        parser=_parse_k,
        metavar="INTEGER|auto",
        help="Operations behind a layer that its loss sees; 0 is layer-wise least squares; auto chooses per layer.",
        show_default="the experiment's own",
    ),
]
Images = Annotated[
    int | None,
    typer.Option(min=1, help="Calibration images of the run.", show_default="the experiment's own, 256 mostly"),
]
RecipeName = Annotated[
    str, typer.Option(help="fast, or paper for the published procedure.", autocompletion=completion.recipes)
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="One option of the recipe, as steps=2 or curvature_images=none; may be repeated.",
        show_default="the recipe's own",
        autocompletion=completion.settings,
    ),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Name or glob of layers to prune; may be repeated.",
        show_default="all but the first and the last",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Name or glob of layers to leave dense; may be repeated.",
        show_default="the experiment's own",
    ),
]
LeafModules = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB",
        help="Name or glob of modules that torch.fx must not look into; they stay dense; may be repeated.",
        show_default="none",
    ),
]
MaxMemory = Annotated[
    Any,
    typer.Option(
        parser=_parse_memory,
        metavar="BYTES|FRACTION",
        help="Memory for graphs and resting values: 2e9, 500MB, 3GB, or a fraction of what is free as 0.5.",
        show_default="chosen from what is free",
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        callback=checked_seed,
        help="Seed of everything random: which images, their order, curvature probes, refinement.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
