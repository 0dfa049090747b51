"""The command `snows verify`: whether a folder or a file has its zeros where they are promised."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snows_core.cli import completion
from snows_core.cli.folders import home_expanded
from snows_core.cli.messages import FAILED, as_typed, guarded, typed_options

Globs = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only these layers, by name or glob. May be repeated.", show_default="all"),
]


@guarded
def verify_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="What `snows prune` or an export wrote: a folder, or a file .safetensors, .pth or .onnx.",
            show_default=False,
            callback=home_expanded,
        ),
    ],
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Hold the layers to this pattern: 2:4, 0.8, global:0.9.",
            show_default="what is promised in the source",
            autocompletion=completion.patterns,
        ),
    ] = None,
    layers: Globs = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave these layers aside. May be repeated.", show_default="none"),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the result that the file was made of: its masks are promised.",
            show_default="what is promised in the source",
            callback=home_expanded,
        ),
    ] = None,
) -> None:
    """Look whether a pruned network has its zeros where they are promised, along the inputs of each layer.

    The promise is in the folder that `snows prune` wrote, in the metadata of exported files, or in --pattern or
    --against. Where nothing is promised, the table says which pattern each layer has, and the exit code is 0. It is 1
    where a promise does not hold.
    """
    from snows_core.export.verification.verify import verify
    from snows_core.tables import table

    done = verify(source, pattern, layers=layers or None, exclude=exclude or None, against=against)
    shown = done.table
    usual = shown["layer"] + ".weight"
    idle = {"weight": shown["weight"] == usual, "note": shown["note"] == ""}  # columns that may say nothing
    typer.echo(table(shown.drop(columns=[name for name, same in idle.items() if same.all()])))
    typer.echo(as_typed(str(done), typed_options(verify_command)))
    if not done.ok:
        raise typer.Exit(FAILED)
