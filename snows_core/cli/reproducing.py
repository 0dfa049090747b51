"""The command `snows reproduce`: the notebooks run anew, their numbers compared with those on record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from snows_core.cli.messages import INTERRUPTED, guarded
from snows_core.cli.options import DataRoot, Quiet, home_expanded


@guarded
def reproduce_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NN", help="Numbers or names of notebooks.", show_default="all")
    ] = None,
    profile: Annotated[str, typer.Option(help="digits (offline), or one of notebooks/profiles.")] = "digits",
    notebooks: Annotated[
        Path | None,
        typer.Option(help="Folder of the notebooks.", show_default="notebooks/ of this clone", callback=home_expanded),
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the figures.",
            show_default="SNOWS_FIGURES, else figures/ of this clone",
            callback=home_expanded,
        ),
    ] = None,
    data_root: DataRoot = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds a cell may take.", show_default="three times the profile's time"),
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show notebooks and profiles; run none.")] = False,
    quiet: Quiet = False,
) -> None:
    """Run the notebooks, refresh figures/ and compare every metric with figures/expected.yaml.

    Executed notebooks and a record of each run go to runs/. A notebook that fails leaves the others' results.
    """
    from snows_core.book.reproduce import profiles_table, reproduce
    from snows_core.tables import table

    if listing:
        typer.echo(table(profiles_table(notebooks)))
        return
    if data_root is not None:
        os.environ["SNOWS_DATA"] = str(data_root.resolve())
    summary = reproduce(
        names or (),
        profile,
        notebooks=notebooks,
        figures=figures,
        timeout=timeout,
        progress=not quiet,
        report=typer.echo,
    )
    typer.echo("\n" + table(summary.metrics_table()))
    typer.echo("\n" + table(summary.runs_table()))
    for reason in summary.failures:
        typer.echo(f"error: {reason}", err=True)
    if summary.interrupted:
        raise typer.Exit(INTERRUPTED)
    if summary.failures:
        raise typer.Exit(1)
