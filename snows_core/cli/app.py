"""The command `snows`: options, help, exit codes. What the commands do is in the files beside this one.

Exit codes: 0 all is well; 2 an option has to be another one; 1 the run cannot go on; each in one sentence on stderr;
130 after Ctrl-C, SIGTERM or SIGHUP.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snows_core.cli import completion
from snows_core.cli.compacting import compact_command
from snows_core.cli.comparing import compare_command
from snows_core.cli.eligible import eligibility_command, sizes_command
from snows_core.cli.exporting import export_command
from snows_core.cli.finetuning import finetune_command
from snows_core.cli.messages import INTERRUPTED, guarded
from snows_core.cli.options import (
    Data,
    DataRoot,
    Device,
    Model,
    ModelName,
    NumClasses,
    Quiet,
    Weights,
    checked_seed,
    home_expanded,
    read_options,
    with_measuring,
    with_settings,
)
from snows_core.cli.pushing import push_command
from snows_core.cli.reproducing import reproduce_command
from snows_core.cli.verifying import verify_command


def example(*lines: str) -> str:
    """Return examples for the end of a help text; the backspace keeps their lines as they are."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    name="snows",
    help="Prune a trained vision network once, without retraining, and keep what it knows.",
    epilog=example("snows prune --model digits-resnet20 --pattern 1:4 --out pruned"),
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from snows_core import __version__

        typer.echo(f"snows-core {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(
    "prune",
    epilog=example(
        "snows prune --model digits-resnet20 --pattern 1:4 --k 5 --images 256 --out pruned",
        "snows prune --model timm/resnet50 --data imagenette --pattern 2:4 --k 30 --out resnet50-2to4",
        "snows prune --model resnet20 --pattern global:0.9:0.95 --refine 150 --max-memory 2GB --out resnet20-90",
    ),
)
@guarded
@with_measuring
@with_settings
def prune_command(
    model: ModelName,
    out: Annotated[Path, typer.Option(help="Folder for weights, masks, manifest and report.", callback=home_expanded)],
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there.")] = False,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps what is done, layer by layer; removed at the end.",
            show_default="checkpoint in --out",
            callback=home_expanded,
        ),
    ] = None,
    **typed: Any,
) -> None:
    """Prune a network on images, measure the result and save it.

    The dense network's accuracy is checked first; calibration images come from the training split, the measurements
    from the test split. Ctrl-C and SIGTERM save the layers solved so far. After them, or after a kill, the same command
    goes on where it was.
    """
    measuring = typed.pop("test_images"), typed.pop("workers")
    options = read_options(typed)
    from snows_core.cli.commands import prune_to_folder
    from snows_core.cli.source import Source

    source = Source(model, data, data_root, weights, options.pop("device", None), num_classes, *measuring)
    result = prune_to_folder(source, out, options, typer.echo, overwrite, checkpoint_dir)
    if result.interrupted:
        others = "dense" if result.stage == 1 else f"as stage {result.stage - 1} left them"
        words = f"the layers solved so far, the others are {others}"
        if result.complete:
            words = "all layers, refined as far as it went"
        typer.echo(f"interrupted: {out} holds {words}", err=True)
        raise typer.Exit(INTERRUPTED)


app.command(
    "compare",
    epilog=example(
        "snows compare --model resnet20 --pattern 1:4 --masks magnitude,wanda,obc --updates none,layerwise,snows",
        "snows compare --model resnet20 --pattern 2:4 --pattern 0.8 --masks sparsegpt,obc --updates own,snows",
    ),
)(compare_command)


app.command("compact", epilog=example("snows compact pruned --out compact"))(compact_command)
app.command("eligibility", epilog=example("snows eligibility pruned --gpu a100"))(eligibility_command)
app.command("sizes", epilog=example("snows sizes pruned"))(sizes_command)
app.command("export", epilog=example("snows export pruned --to hf-hub-folder --out pruned-hub"))(export_command)
app.command("push", epilog=example("snows push pruned-hub user/resnet50-2to4"))(push_command)
app.command("finetune", epilog=example("snows finetune pruned --out finetuned --epochs 3"))(finetune_command)
app.command("verify", epilog=example("snows verify pruned", "snows verify net.onnx --pattern 2:4"))(verify_command)


@app.command(
    "evaluate",
    epilog=example("snows evaluate pruned", "snows evaluate --model resnet20 --data cifar10"),
)
@guarded
@with_measuring
def evaluate_command(
    folder: Annotated[
        Path | None, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
    ] = None,
    model: Model = None,
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    device: Device = None,
    quiet: Quiet = False,
    **typed: Any,
) -> None:
    """Print accuracy, agreement with the dense network, and KL divergence on the test images."""
    from snows_core.cli.commands import evaluate_folder
    from snows_core.cli.source import source_of
    from snows_core.tables import table

    source = source_of(
        folder, model, data, weights, data_root=data_root, device=device, num_classes=num_classes, **typed
    )
    typer.echo(table(evaluate_folder(folder, source, typer.echo, not quiet), index=True))


@app.command("estimate", epilog=example("snows estimate --model digits-resnet20 --pattern 1:4 --images 256"))
@guarded
@with_settings
def estimate_command(
    model: ModelName,
    data: Data = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    num_classes: NumClasses = None,
    **typed: Any,
) -> None:
    """Say what pruning would cost: products, seconds and memory per layer, measured on a few images; prunes nothing."""
    options = read_options(typed)
    from snows_core.cli.commands import estimate_table
    from snows_core.cli.source import Source

    source = Source(model, data, data_root, weights, options.pop("device", None), num_classes)
    typer.echo(estimate_table(source, options, typer.echo))


app.command("reproduce", epilog=example("snows reproduce", "snows reproduce --profile cifar 03"))(reproduce_command)


@app.command("train", epilog=example("snows train digits-resnet20 --out retrained"))
@guarded
def train_command(
    name: Annotated[
        str,
        typer.Argument(
            help="A network that the package ships, such as digits-resnet20.", autocompletion=completion.shipped
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for weights and record.", callback=home_expanded)] = Path("."),
    seed: Annotated[
        int,
        typer.Option(callback=checked_seed, help="Of weights, batches and shifts; the shipped files have 0."),
    ] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train one of the shipped digits networks again, from scratch."""
    from snows_core.zoo.train import train

    metrics = train(name, out, seed, not quiet)
    typer.echo(f"{name}: {metrics.accuracy:.2f} % on {metrics.images} test digits, saved to {out}")


@app.command("experiments", epilog=example("snows experiments"))
@guarded
def experiments_command() -> None:
    """List the networks that --model knows by name, with their data and defaults."""
    from snows_core.cli.commands import experiments_frame
    from snows_core.tables import table

    typer.echo(table(experiments_frame()))


@app.command("methods", epilog=example("snows methods"))
@guarded
def methods_command() -> None:
    """List the methods that choose masks and re-fit weights, with paper, cost and limits."""
    from snows_core.cli.commands import methods_text

    typer.echo(methods_text())


def main() -> None:
    """Run the command line; the console script `snows`."""
    app()


if __name__ == "__main__":
    main()
