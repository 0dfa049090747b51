"""The command `snows compare`: its options, and what it does once they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snows_core.cli import completion
from snows_core.cli.messages import INTERRUPTED, guarded
from snows_core.cli.options import (
    Data,
    DataRoot,
    ModelName,
    NumClasses,
    Weights,
    extended,
    home_expanded,
    typed_settings,
    with_measuring,
    with_settings,
)
from snows_core.errors import SnowsError, invalid_argument

if TYPE_CHECKING:
    from snows_core.cli.source import Say, Source
    from snows_core.comparison import Comparison

SETTINGS = (
    *("k", "recipe", "layers", "exclude", "stages", "stage_k", "flops"),
    *("device", "max_images", "max_memory", "seed", "deterministic", "progress"),
)
_PATTERN = typer.Option(
    help="2:4, 0.8, global:0.8:0.95 and so on; may be repeated.",
    show_default="the experiment's own",
    autocompletion=completion.patterns,
)
_MASKS = typer.Option(help="What chooses masks, with commas between.", autocompletion=completion.masks)
_UPDATES = typer.Option(
    help="What re-fits the kept weights, with commas between; own is the mask's method, own+snows SNOWS from there.",
    autocompletion=completion.updates,
)
_FIXED = typer.Option("--fixed-masks", help="Choose each mask once, on the dense network's inputs, for all updates.")
GRID = {  # name: annotation and default
    "pattern": (Annotated[list[str] | None, _PATTERN], None),
    "masks": (Annotated[str, _MASKS], "magnitude,wanda,sparsegpt"),
    "updates": (Annotated[str, _UPDATES], "none,layerwise,snows"),
    "fixed_masks": (Annotated[bool, _FIXED], False),
}


def with_grid(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which cells there are.

    Args:
        command: takes them as ``**typed``.

    Returns:
        The command itself, with another signature.
    """
    kind = Parameter.KEYWORD_ONLY
    return extended(command, [Parameter(name, kind, annotation=a, default=d) for name, (a, d) in GRID.items()])


@guarded
@with_grid
@with_measuring
@partial(with_settings, names=SETTINGS)
def compare_command(
    model: ModelName,
    out: Annotated[
        Path, typer.Option(help="Folder for tables and figure; goes on where it stopped.", callback=home_expanded)
    ] = Path("comparison"),
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    **typed: Any,
) -> None:
    """Prune a network by every mask with every update, and judge all on the same test images.

    A cell is what `snows prune --effort quick` gives with its mask and update. results.csv, results.json and
    comparison.png are written after each cell; a cell that crashes is recorded and the next one goes on. Cells that the
    images do not tell apart from the best one are marked as ties.
    """
    measuring = typed.pop("test_images"), typed.pop("workers")
    grid = {"patterns": typed.pop("pattern") or [], "masks": typed.pop("masks"), "updates": typed.pop("updates")}
    options = typed_settings(typed)
    if options.get("stage_k") is not None and options.get("stages") in (None, "1"):
        got = f"{options['stage_k']} with one stage alone"
        raise invalid_argument("--stage-k", got, "stages that it lies between, for instance --stages 3")
    from snows_core.cli.source import Source

    source = Source(model, data, data_root, weights, options.pop("device", None), num_classes, *measuring)
    found = compare_to_folder(source, grid, out, options, typer.echo)
    if not found.complete:
        typer.echo(f"interrupted: {out} holds the cells done so far; the same command goes on there", err=True)
        raise typer.Exit(INTERRUPTED)
    if crashed := found.crashed:
        names = "; ".join(f"{cell} ({found.rows[cell].reason})" for cell in crashed)
        typer.echo(f"error: {len(crashed)} of {len(found.rows)} cells crashed: {names}", err=True)
        raise typer.Exit(1)


def compare_to_folder(
    source: Source, grid: Mapping[str, str | Sequence[str]], out: Path, options: Mapping[str, Any], say: Say
) -> Comparison:
    """Compare on a network and images of the zoo, and write tables and figure after each cell.

    Args:
        source: network and images.
        grid: patterns, masks and updates, as :func:`snows_core.compare` takes them; no patterns are the experiment's.
        out: the folder.
        options: further keywords of ``compare``.
        say: called with text for the user.

    Returns:
        The comparison.

    Raises:
        SnowsError: on anything that cannot work; nothing is pruned then.
    """
    from snows_core.cli.commands import calibration_record, image_count
    from snows_core.cli.source import check_dense
    from snows_core.comparison import Output, check_grid, compare
    from snows_core.comparison.results import MISFIT
    from snows_core.tables import table

    check_grid(**grid)
    Output(out).check()
    chosen, model, bundle = source.load(options["progress"])
    count = image_count(options.get("max_images"), chosen, bundle, say)
    judging = source.judging(chosen, bundle, options["progress"])
    check_dense(chosen, model, bundle, judging, source.device, say)
    images, positions = bundle.train.drawn(count, options["seed"])
    record = source.record() | {"test": judging.record()}

    def read() -> Iterator[Any]:
        for batch in images:  # which of them can be read is known when all are
            record["calibration"] = calibration_record(bundle, options["seed"], positions)
            yield batch

    usual = {"k": chosen.k, "exclude": list(chosen.exclude), "device": source.device}
    found = compare(
        model,
        read(),
        grid["patterns"] or chosen.pattern,
        masks=grid["masks"],
        updates=grid["updates"],
        test=judging,
        out=Output(out, record, _drawing(say)),
        **{**usual, **options, "max_images": count},
    )
    say(table(shown(found)))
    for cell, row in found.rows.items():
        if row.status == MISFIT:
            say(f"not applicable: {cell}: {row.reason}")
    say(f"saved to {out}")
    return found


def _drawing(say: Say) -> Any:
    """Return what draws a comparison, or None where the plotting libraries are not installed."""
    try:
        draw = import_plot()
    except SnowsError as error:
        say(f"no comparison.png: {error}")
        return None
    return lambda found, path: draw(found.table, found.record["dense"].get("accuracy"), path)


def import_plot() -> Any:
    """Return the function that draws; nothing else here needs the libraries that it needs."""
    from snows_core.book.comparison_plot import save_comparison

    return save_comparison


def shown(found: Comparison) -> Any:
    """Return the table of a comparison for a terminal: the figures, and which cells are the best or tie with it."""
    full = found.table
    names = {"accuracy": "accuracy %", "agreement": "agreement %", "cosine": "cosine", "kl": "KL (nats)"}
    frame = full[["pattern", "mask", "update"]].copy()
    first = True
    for name, words in names.items():
        if name not in full:
            continue
        frame[words] = full[name]
        prefix = "kl_" if name == "kl" else ""
        if first or prefix:
            frame["" if not prefix else " "] = [_mark(row, prefix) for row in full.to_dict("records")]
        first = False
    frame["seconds"] = (full["mask_seconds"] + full["seconds"]).round(1)
    if (full["status"] != "done").any():
        frame["status"] = full["status"].where(full["status"] != "done", "")
    return frame


def _mark(row: Mapping[Any, Any], prefix: str) -> str:
    if row["status"] != "done":
        return ""
    return "best" if row[f"{prefix}best"] else "tie" if row[f"{prefix}tie"] else ""
