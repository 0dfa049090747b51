"""Options that several commands of `snows` share: types, help, parsing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = "An experiment (see `snows experiments`), timm/<name> or torchvision/<name>."
Model = Annotated[str | None, typer.Option(help=MODEL_HELP)]
Data = Annotated[
    str | None,
    typer.Option(
        help="digits, cifar10, cifar100, imagenette, imagenet or folder:<path>.", show_default="the experiment's own"
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of the data sets.", show_default="the variable SNOWS_DATA, else the user's cache"),
]
Weights = Annotated[
    Path | None, typer.Option(help="Local .safetensors or .pth file.", show_default="the experiment's own")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...", show_default="cpu")]


def _parse_k(text: str) -> str | int:
    if text != "auto" and not text.isdecimal():
        raise typer.BadParameter(f"got {text!r}; expected an integer >= 0, or auto")
    return text if text == "auto" else int(text)


KOption = Annotated[
    Any,
    typer.Option(
        parser=_parse_k,
        metavar="INTEGER|auto",
        help="Operations behind a layer that its loss sees; 0 is layer-wise least squares; auto chooses per layer.",
        show_default="the experiment's own",
    ),
]
