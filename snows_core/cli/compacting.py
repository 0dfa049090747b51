"""The command `snows compact`: a saved result without the channels, neurons and heads that do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snows_core.cli.messages import guarded
from snows_core.cli.options import Data, DataRoot, Model, NumClasses, Weights, home_expanded

EXAMPLE_IMAGES = 2
TIMED_IMAGES = 8


@guarded
def compact_command(
    folder: Annotated[
        Path, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for model.pt2, model.safetensors and compact.json.", callback=home_expanded)
    ],
    model: Model = None,
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a network that is there.")] = False,
) -> None:
    """Take channels, neurons and heads that do nothing out of a pruned network: a smaller one of the same outputs.

    model.pt2 is the whole network and needs nothing but PyTorch: torch.export.load("model.pt2").module().
    """
    from snows_core.cli.source import source_of

    source = source_of(folder, model, data, weights, data_root=data_root, num_classes=num_classes)
    compact_to_folder(folder, source, out, overwrite)


def compact_to_folder(folder: Path, source: Any, out: Path, overwrite: bool) -> None:
    """Compact a saved result, print what went and what stayed, and save the smaller network.

    Args:
        folder: what `snows prune` wrote.
        source: its network and images, a :class:`~snows_core.cli.source.Source`.
        out: where to write.
        overwrite: replace a network that is there.
    """
    from snows_core.errors import invalid_argument
    from snows_core.export import check_compact_target, compact, compare_speed
    from snows_core.result import load
    from snows_core.tables import table

    if not folder.is_dir():
        raise invalid_argument("folder", f"'{folder}', which is no folder", "a folder that `snows prune` wrote")
    check_compact_target(out, overwrite, "out")
    _, network, bundle = source.load()
    images, _, _ = bundle.train.sample(min(EXAMPLE_IMAGES, len(bundle.train)), 0)
    result = load(folder, network)
    compacted = compact(result, images)
    if len(compacted.table):
        typer.echo(table(compacted.table))
    typer.echo(str(compacted))
    compacted.save(out, overwrite)
    if compacted.parameters[1] < compacted.parameters[0]:
        several = images.repeat(TIMED_IMAGES // len(images), 1, 1, 1)
        typer.echo(str(compare_speed(result.module, compacted.model, several)))
    typer.echo(f'saved to {out}\nin Python: torch.export.load("{out / "model.pt2"}").module()')
