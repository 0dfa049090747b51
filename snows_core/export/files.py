"""A compacted network in a folder, in forms that load without this package.

``model.pt2`` is the whole network as a ``torch.export`` program: ``torch.export.load("model.pt2").module()`` is a
module that PyTorch runs alone, whatever library the network was from. ``model.safetensors`` holds its state dict, for a
model whose layers were made of these shapes. ``compact.json`` says what was removed, and the new shapes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from snows_core.errors import SnowsError, invalid_argument
from snows_core.files import as_path, contents, fill_folder, try_to_write
from snows_core.provenance import versions

if TYPE_CHECKING:
    from snows_core.export.compaction.compact import Compacted

FILES = ("model.pt2", "model.safetensors", "compact.json")


def check_compact_target(folder: str | Path, overwrite: bool = False, argument: str = "folder") -> None:
    """Refuse a folder that holds something else than a compacted network, or cannot be written.

    Args:
        folder: where a compacted network is to be saved.
        overwrite: whether one that is there may be replaced.
        argument: what the caller calls the folder, for messages.

    Raises:
        SnowsError: says which.
    """
    check_folder(folder, FILES, overwrite, argument)


def check_folder(
    folder: str | Path, files: Collection[str], overwrite: bool = False, argument: str = "folder", what: str = "network"
) -> None:
    """Refuse a folder that holds something else than certain files, or cannot be written.

    Args:
        folder: where these files are to be.
        files: their names.
        overwrite: whether those that are there may be replaced.
        argument: what the caller calls the folder, for messages.
        what: one word for what the files are together, for messages.

    Raises:
        SnowsError: says which.
    """
    folder = as_path(argument, folder, "the path of a folder")
    try:
        held = contents(folder) if folder.is_dir() else []
        if folder.exists() and not folder.is_dir():
            raise invalid_argument(argument, f"the file {folder}", "a folder")
        if other := [name for name in held if name not in files]:
            got = f"{folder}, which holds other files ({other[0]})"
            raise invalid_argument(argument, got, "a new or empty folder", "Choose another name.")
        if held and not overwrite:
            got, fix = f"{folder}, which holds a {what} already", "Choose another name, or pass overwrite=True."
            raise invalid_argument(argument, got, "a new or empty folder", fix)
        try_to_write(folder)
    except SnowsError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        got = f"{str(folder)[:200]}, which cannot be written ({reason})"
        raise invalid_argument(argument, got, "a folder that can be made", "Choose another place.") from error


def save(compacted: Compacted, folder: str | Path, overwrite: bool = False) -> Path:
    """Write a compacted network into a folder, all files or none.

    Args:
        compacted: from :func:`snows_core.export.compaction.compact.compact`.
        folder: new or empty, or one that holds such files.
        overwrite: replace these.

    Returns:
        The folder.

    Raises:
        SnowsError: when the folder cannot be used, or the network cannot be exported.
    """
    check_compact_target(folder, overwrite)
    folder, model = Path(folder), compacted.model
    program, any_batch = exported(model, compacted.example)
    state = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in _state(model)}
    record = {
        "input": {"shape": ["batch" if any_batch else len(compacted.example), *compacted.example.shape[1:]]},
        "parameters": dict(zip(("before", "after"), compacted.parameters, strict=True)),
        "change": compacted.change,
        "groups": compacted.table.to_dict("records"),
        "shapes": {name: list(value.shape) for name, value in state.items()},
        "versions": versions(),
    }

    def write(target: Path) -> None:
        torch.export.save(program, target / "model.pt2")
        save_file(state, target / "model.safetensors")
        (target / "compact.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    fill_folder(folder, write, seal="compact.json")
    return folder


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in model.state_dict().items() if isinstance(value, Tensor)]


def exported(model: nn.Module, example: Tensor) -> tuple[torch.export.ExportedProgram, bool]:
    """Record a network as a program of PyTorch's own.

    Args:
        model: in eval mode; it is moved to the CPU for the while.
        example: images (N, C, H, W).

    Returns:
        The program, on the CPU, and whether it takes any number of images; if not, it takes as many as the example has,
        two at least.

    Raises:
        SnowsError: where the network cannot be exported.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), example.dtype)
    images = example.to("cpu", dtype)
    if len(images) < 2:  # a batch of one is taken for a number that is always one
        images = images.repeat(2, *[1] * (images.ndim - 1))
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    reasons: list[str] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, on its own future
        try:
            model.cpu()
            for batch in (torch.export.Dim("batch"), None):
                shapes: Any = ({} if batch is None else {0: batch},)
                try:
                    return torch.export.export(model, (images,), dynamic_shapes=shapes), batch is not None
                except Exception as error:  # whatever the exporter makes of anybody's forward pass
                    reasons.append(" ".join(str(error).split())[:200] or type(error).__name__)
        finally:
            model.to(where)
    raise SnowsError(
        f"model: got a network that torch.export cannot export ({reasons[-1]}); the state dict of the module itself "
        "(of a compacted network: Compacted.model) can be saved by hand."
    )
