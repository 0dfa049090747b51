"""The command `snows push`: a hub folder uploaded to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snows_core.cli.messages import guarded
from snows_core.cli.options import home_expanded


@guarded
def push_command(
    folder: Annotated[
        Path,
        typer.Argument(
            help="What `snows export --to hf-hub-folder` wrote.", show_default=False, callback=home_expanded
        ),
    ],
    repo_id: Annotated[str, typer.Argument(help="Name on the hub, as USER/NAME.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository for your eyes alone.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            help="That may write there. A shell remembers what is typed: better log in once.",
            show_default="HF_TOKEN, or what `hf auth login` stored",
        ),
    ] = None,
) -> None:
    """Upload a hub folder to the Hugging Face hub, where others load it in one call."""
    from snows_core.export.hub.push import push_to_hub

    typer.echo(f"uploaded to {push_to_hub(folder, repo_id, private=private, token=token)}")
