"""The command `snows finetune`: a few epochs of training behind pruning, with every mask held."""

from __future__ import annotations

import copy
from collections.abc import Callable
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any

import typer

from snows_core.cli.messages import INTERRUPTED, guarded
from snows_core.cli.options import (
    Data,
    DataRoot,
    Device,
    Model,
    NumClasses,
    Quiet,
    Weights,
    checked_seed,
    extended,
    home_expanded,
    with_measuring,
)

MOST_BYTES = 2e9  # of images that are held, where their number is not typed


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "model": (None, Model),
    "num_classes": (None, NumClasses),
    "epochs": (3, Annotated[int, typer.Option(min=1, help="Passes over the images.")]),
    "lr": (0.01, Annotated[float, typer.Option(help="Learning rate of SGD; it falls to nothing along half a cosine.")]),
    "batch_size": (64, Annotated[int, typer.Option(min=1, help="Images a step.")]),
    "images": (
        None,
        Annotated[
            int | None,
            typer.Option(min=1, help="Training images, drawn by the seed.", show_default="all, of large ones 2 GB"),
        ],
    ),
    "teacher": (
        None,
        Annotated[
            str | None,
            typer.Option(help="What to learn from: labels, or dense (no labels).", show_default="labels if there are"),
        ],
    ),
    "batch_norm": (
        "auto",
        Annotated[
            str,
            typer.Option(
                help="train: by each batch, statistics taken anew at the end; frozen: they stay; auto: frozen behind a"
                " re-fit, train behind zeros alone."
            ),
        ],
    ),
    "augment": (
        False,
        Annotated[bool, typer.Option("--augment", help="Mirror and shift images (natural ones only).")],
    ),
    "seed": (0, Annotated[int, typer.Option(callback=checked_seed, help="Of the images and their order.")]),
}


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command further options, which it takes as ``**typed``."""
    kind = Parameter.KEYWORD_ONLY
    return extended(command, [Parameter(n, kind, default=d, annotation=a) for n, (d, a) in _OPTIONS.items()])


@guarded
@with_measuring
@_with_options
def finetune_command(
    folder: Annotated[
        Path, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the fine-tuned result.", callback=home_expanded)],
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    quiet: Quiet = False,
    **typed: Any,
) -> None:
    """Train a pruned network for a few epochs; pruned weights stay zero. Tells whether retraining helps afterwards.

    Images come from the training split, the measurements before and after from the test split. Ctrl-C keeps the epochs
    that are done.
    """
    from snows_core.cli.source import source_of
    from snows_core.sweep.augment import flip_and_shift

    model = typed.pop("model")
    others = {name: typed.pop(name) for name in ("num_classes", "test_images", "workers")}
    source = source_of(folder, model, data, weights, data_root=data_root, device=device, **others)
    typed |= {"augment": flip_and_shift if typed["augment"] else None, "device": device, "progress": not quiet}
    finetune_to_folder(folder, source, out, typed, overwrite)


def finetune_to_folder(folder: Path, source: Any, out: Path, options: dict[str, Any], overwrite: bool) -> None:
    """Fine-tune a saved result, measure it before and after on the test images, and save it.

    Args:
        folder: what `snows prune` wrote.
        source: its network and images, a :class:`~snows_core.cli.source.Source`.
        out: where to write.
        options: keywords of ``finetune``; "images" (how many, or None) and "teacher" ("labels", "dense" or None).
        overwrite: replace a result that is there.

    Raises:
        SnowsError: on anything that cannot work; nothing is written then.
    """
    from snows_core.cli.source import check_dense
    from snows_core.errors import blamed
    from snows_core.evaluate import evaluate, evaluate_both
    from snows_core.export import finetune
    from snows_core.export.tuning.retraining import FinetuneOptions
    from snows_core.interruption import shielded
    from snows_core.result import check_target, load
    from snows_core.tables import table

    count, by = options.pop("images"), options.pop("teacher")
    FinetuneOptions(**options)  # what cannot be meant is refused before anything is read
    with blamed("folder", on="out"):
        check_target(out, overwrite)
    chosen, dense, bundle = source.load(options["progress"])
    pruned = load(folder, copy.deepcopy(dense))
    by = _objective(by, dense, bundle)
    count = _count(count, bundle)
    judging = source.judging(chosen, bundle, options["progress"])
    check_dense(chosen, dense, bundle, judging, source.device, typer.echo)
    before = evaluate(pruned.module, judging, reference=dense, device=source.device)
    images, labels, positions = bundle.train.sample(count, options["seed"])
    typer.echo(f"fine-tuning on {len(images):,} training images of {bundle.source}, by {by}")
    given = {"teacher": dense} if by == "dense" else {"labels": labels}
    tuned = finetune(pruned, images, **given, **options)
    record = tuned.manifest["finetune"]
    record["images"] |= {"data": bundle.name, "split": "train", "indices": positions.tolist()}
    if not tuned.manifest.get("source"):
        tuned.manifest["source"] = source.record()
    try:  # whatever happens from here on, what was learnt is kept
        own, after = evaluate_both(tuned.module, dense, judging, device=source.device)
        found = {"dense": own.as_dict(), "pruned": after.as_dict(), "sample": judging.record()}
        record |= {"before": before.as_dict(), "after": after.as_dict()}
        tuned.manifest["evaluation"] = found
        typer.echo(table(_rows(own, before, after), index=True))
    finally:
        with shielded():
            tuned.save(out, overwrite)
    typer.echo(f"saved to {out}")
    if record["interrupted"]:
        done = f"{record['epochs']} of {record['epochs_asked']} epochs"
        typer.echo(f"interrupted: {out} holds the network after {done}", err=True)
        raise typer.Exit(INTERRUPTED)


def _objective(by: str | None, dense: Any, bundle: Any) -> str:
    """Return what is learnt from: as typed, else labels where there are any, else the dense network."""
    from snows_core.errors import invalid_argument, one_of
    from snows_core.loss.features import gives_features

    classes = bundle.train.labelled and not gives_features(dense)
    if by is None:
        return "labels" if classes else "dense"
    if one_of("teacher", by, ["labels", "dense"]) == "labels" and not classes:
        got = f"'labels', but {bundle.source if not bundle.train.labelled else 'the network'} has no classes"
        raise invalid_argument("teacher", got, "'dense', which needs none", "For instance --teacher dense.")
    return by


def _count(asked: int | None, bundle: Any) -> int:
    """Return how many training images there will be."""
    from snows_core.errors import invalid_argument

    there, image = len(bundle.train), 4 * bundle.image_shape[0] * bundle.image_shape[1] * bundle.image_shape[2]
    if asked is not None and asked > there:
        raise invalid_argument("images", asked, f"at most {there}, the training images of {bundle.source}")
    return asked or min(there, int(MOST_BYTES / image))


def _rows(dense: Any, before: Any, after: Any) -> Any:
    """Return one row a network: dense, pruned, fine-tuned."""
    import pandas as pd

    from snows_core.evaluate import metrics_frame

    tuned = metrics_frame(dense, after).loc[["pruned"]].rename(index={"pruned": "fine-tuned"})
    return pd.concat([metrics_frame(dense, before), tuned])
