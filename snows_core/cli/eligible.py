"""The commands `snows eligibility` and `snows sizes`: what zeros are worth, where, and in how many bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from snows_core.cli.messages import guarded
from snows_core.cli.options import Model, Weights, home_expanded

Folder = Annotated[
    Path | None, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
]


@guarded
def eligibility_command(
    folder: Folder = None,
    model: Model = None,
    weights: Weights = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="t4, a100, l4, h100, b200, orin, ..., or a compute capability such as 8.0.",
            show_default="the one at hand, else an A100",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="float16, bfloat16, float32 or int8: what the weights will be.")
    ] = "float16",
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 1,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="Judge as if every layer were pruned to this N:M.",
            show_default="what the weights of a folder hold; 2:4 for --model alone",
        ),
    ] = None,
    checklist: Annotated[
        bool, typer.Option("--checklist", help='Print "2:4 and not faster: why"; needs no network.')
    ] = False,
) -> None:
    """Say which layers PyTorch (cuSPARSELt, CUTLASS) and TensorRT can compute with 2:4 zeros, and which rule decides.

    Eligible is not faster: --checklist says what hides sparse kernels.
    """
    if folder is not None or model is not None or not checklist:
        options = {"gpu": gpu, "dtype": dtype, "batch": batch, "pattern": pattern}
        typer.echo(str(judged(folder, model, weights, options)))
    if checklist:
        from snows_core.export import checklist as text

        typer.echo(text())


def judged(folder: Path | None, model: str | None, weights: Path | None, options: dict[str, Any]) -> Any:
    """Return the eligibility of a saved result's network, or of one that is only named.

    Args:
        folder: what `snows prune` wrote, or None.
        model: the network, or None for the one that the folder names.
        weights: file of its weights, or None for the usual ones.
        options: of :func:`snows_core.eligibility`.

    Returns:
        The :class:`~snows_core.export.kernels.eligibility.Eligibility`.
    """
    import torch

    from snows_core.cli.source import source_of
    from snows_core.export import eligibility
    from snows_core.result import load
    from snows_core.zoo.registry import experiment

    source = source_of(folder, model, weights=weights)
    chosen = experiment(source.model)
    network: Any = chosen.load_model(source.weights, pretrained=folder is None, num_classes=source.num_classes)
    if folder is not None:  # no weights are downloaded for it: they are in the folder
        network = load(folder, network)
    elif options["pattern"] is None:
        options["pattern"] = "2:4"  # a network that is not pruned holds none
    return eligibility(network, torch.zeros(1, *chosen.image_shape), **options)


@guarded
def sizes_command(
    folder: Annotated[
        Path, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
    ],
) -> None:
    """Print how many bytes a pruned network takes: dense, compressed, packed as 2:4, as CSR, with the formulas."""
    from snows_core.export import size_words, sizes
    from snows_core.result import load
    from snows_core.tables import table

    frame = sizes(load(folder))
    numbers = {name: frame[name].map("{:,}".format) for name in ("pruned_weights", "whole_model")}
    typer.echo(table(frame.assign(share=frame["share"].map("{:.1%}".format), **numbers)))
    typer.echo(size_words(frame))
