"""The command `snows export`: a pruned folder in a form that others load without this package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snows_core.cli import completion
from snows_core.cli.messages import guarded
from snows_core.cli.options import Data, DataRoot, Model, NumClasses, Weights, extended, home_expanded
from snows_core.errors import blamed, invalid_argument, one_of

if TYPE_CHECKING:
    from snows_core.cli.source import Source
    from snows_core.result import PruneResult
    from snows_core.zoo.experiment import Experiment

PARITY_IMAGES = 500
EXAMPLE_IMAGES = 2
_SOURCE = {"model": Model, "data": Data, "data_root": DataRoot, "weights": Weights, "num_classes": NumClasses}


def with_source(command: Callable[..., None]) -> Callable[..., None]:
    """Give a ``command`` the options that say which network was pruned, and on which images, as ``**typed``."""
    made = [Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in _SOURCE.items()]
    return extended(command, made)


@guarded
@with_source
def export_command(
    folder: Annotated[
        Path, typer.Argument(help="What `snows prune` wrote.", show_default=False, callback=home_expanded)
    ],
    to: Annotated[
        str, typer.Option(help=f"{', '.join(completion.EXPORTS)}.", autocompletion=completion.export_formats)
    ],
    out: Annotated[Path, typer.Option(help="The file, or the folder for a hub.", callback=home_expanded)],
    dtype: Annotated[
        str | None,
        typer.Option(help="float16, bfloat16 or float32; not for onnx.", show_default="each tensor's own"),
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(help="Of the weights, for the model card.", show_default="that of the dense weights, if known"),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            min=1, help="Compare an ONNX file on so many test images.", show_default=f"{PARITY_IMAGES}, or all"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    **typed: Any,
) -> None:
    """Write a pruned network for others: one file of weights, an ONNX file, or a folder for the Hugging Face hub.

    The folder has config.json, from which timm makes the network in one call, and a model card from the run's record.
    """
    one_of("to", to, completion.EXPORTS)
    for flag, value, formats in (
        ("dtype", dtype, completion.EXPORTS[1:]),
        ("license", license, ("hf-hub-folder",)),
        ("images", images, ("onnx",)),
    ):
        if value is not None and to not in formats:
            got = f"{value} beside --to {to}, which does not ask for it"
            raise invalid_argument(f"--{flag}", got, f"--to {' or '.join(formats)}", "Leave it out.")
    if not folder.is_dir():
        raise invalid_argument("folder", f"'{folder}', which is no folder", "a folder that `snows prune` wrote")
    if to in ("state-dict", "safetensors"):
        export_file(folder, out, to, dtype, overwrite)
        return
    from snows_core.cli.source import source_of

    source = source_of(folder, **typed)
    if to == "onnx":
        export_onnx_file(folder, source, out, images, overwrite)
    else:
        export_hub_folder(folder, source, out, {"dtype": dtype, "overwrite": overwrite}, license)


def export_file(folder: Path, out: Path, format: str, dtype: str | None, overwrite: bool) -> None:
    """Write the weights of a saved result into one file, and say how to read it.

    Args:
        folder: what `snows prune` wrote.
        out: the file.
        format: "state-dict" or "safetensors".
        dtype: of the weights in the file, or None.
        overwrite: replace a file that is there.
    """
    from snows_core.export import export_weights
    from snows_core.export.weights import FORMATS, check_file_target, finished
    from snows_core.result import load

    check_file_target(out, FORMATS[format], overwrite, "out")
    result = finished(load(folder), "folder")
    written = export_weights(result, out, format, dtype=dtype, overwrite=overwrite)
    reader = f'torch.load("{out}", weights_only=True)'
    if format == "safetensors":
        reader = f'safetensors.torch.load_file("{out}")'
    typer.echo(f"{written}\nsaved to {out}\nin Python: model.load_state_dict({reader})")


def export_onnx_file(folder: Path, source: Source, out: Path, images: int | None, overwrite: bool) -> None:
    """Write a saved result into an ONNX file, compared with PyTorch on test images, and print what was seen of it.

    Args:
        folder: what `snows prune` wrote.
        source: its network and images.
        out: the file.
        images: how many test images; None for the usual number, or all there are.
        overwrite: replace a file that is there.
    """
    from snows_core.export.weights import check_file_target

    check_file_target(out, (".onnx",), overwrite, "out")
    chosen, result = pruned_network(folder, source)
    from snows_core.export.onnx.export_onnx import export_onnx

    bundle = chosen.load_data(source.data_root, source.data, num_classes=_classes(source, result))
    there = len(bundle.test)
    if images is not None and images > there:
        raise invalid_argument("--images", images, f"at most {there}, the test images of {bundle.source}")
    sample, _, _ = bundle.test.sample(images or min(PARITY_IMAGES, there), 0)
    with blamed("path", on="out"):
        made = export_onnx(result, sample, out, overwrite=overwrite)
    typer.echo(f"{made}\nsaved to {out}")


def _classes(source: Source, result: PruneResult) -> int | None:
    """Return how many classes the images of a fine-tuned network have, None for others."""
    from snows_core.zoo.heads import classes_of

    return None if source.weights is None else classes_of(result.module)


def export_hub_folder(folder: Path, source: Source, out: Path, options: dict[str, Any], license: str | None) -> None:
    """Write a saved result into a folder for a hub, and say how to load and upload it.

    Args:
        folder: what `snows prune` wrote.
        source: its network; its images are not read.
        out: the folder.
        options: ``dtype`` and ``overwrite`` of :func:`snows_core.export.hub.hub_folder.hub_folder`.
        license: of the weights, or None for that of the dense ones.
    """
    import torch

    from snows_core.export.files import check_folder
    from snows_core.export.hub.hub_folder import FILES, hub_folder
    from snows_core.zoo.origins import origin_of

    check_folder(out, FILES, options["overwrite"], "out", "hub folder")
    chosen, result = pruned_network(folder, source)
    about = origin_of(chosen, result.module, source.weights is not None)
    about = about if license is None else replace(about, license=license)
    images = torch.randn(EXAMPLE_IMAGES, *chosen.image_shape, generator=torch.Generator().manual_seed(0))
    made = hub_folder(result, out, images=images, about=about, **options)
    typer.echo(f"{made.weights}\nsaved to {out}, with a model card in README.md\nin Python:")
    typer.echo("\n".join(f"    {line}" for line in made.loading))
    typer.echo(f"next: snows push {out} USER/NAME")


def pruned_network(folder: Path, source: Source) -> tuple[Experiment, PruneResult]:
    """Return a saved result of a whole run with its network, which is built anew: no dense weights are read.

    Args:
        folder: what `snows prune` wrote.
        source: its network.

    Raises:
        SnowsError: on a damaged folder, an interrupted result, or weights that do not fit the network.
    """
    from snows_core.export.weights import finished
    from snows_core.network.fitting import load_weights
    from snows_core.result import load
    from snows_core.zoo.registry import experiment

    result = finished(load(folder), "folder")
    chosen = experiment(source.model)
    network = chosen.load_model(folder / "model.safetensors", num_classes=source.num_classes)
    load_weights(network, result.state)
    return chosen, replace(result, model=network)
