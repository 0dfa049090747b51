"""ONNX files on the disk: where they may be written, and whole or not at all, with weights beside them if need be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from snows_core.errors import invalid_argument
from snows_core.files import as_path, fill_folder, try_to_write, write_whole

if TYPE_CHECKING:
    from onnx import ModelProto

SUFFIX = ".onnx"
DATA = ".data"  # behind the name of the file that the weights are of
_WORTH_A_PLACE = 1024  # bytes; smaller tensors stay in the graph
LARGEST = 2**31 - 2**20  # bytes of a protobuf message, with some room for the graph


def check_onnx_target(path: str | Path, overwrite: bool = False) -> Path:
    """Refuse a path that no ONNX file can be written to, before any work is done for it.

    Args:
        path: what the caller gave.
        overwrite: whether a file that is there may be replaced.

    Returns:
        The path.

    Raises:
        SnowsError: says which of these it is.
    """
    path = as_path("path", path, f"the name of a file that ends in {SUFFIX}")
    try:
        if path.suffix != SUFFIX or path.is_dir():
            got = f"the folder '{path}'" if path.is_dir() else f"'{path}'"
            fix = f"For instance '{path / 'model.onnx' if path.is_dir() else path.with_suffix(SUFFIX)}'."
            raise invalid_argument("path", got, f"the name of a file that ends in {SUFFIX}", fix)
        if path.exists() and not overwrite:
            fix = "Choose another name, or pass overwrite=True."
            raise invalid_argument("path", f"'{path}', which exists already", "a new file", fix)
        try_to_write(path.parent)
    except (OSError, ValueError) as error:
        if hasattr(error, "argument"):
            raise
        reason = getattr(error, "strerror", None) or error
        got = f"{str(path)[:200]!r}, which cannot be written ({reason})"
        raise invalid_argument("path", got, "a file that can be made", "Choose another place.") from error
    return path


def read_file(path: Path) -> ModelProto:
    """Read a whole ONNX file, weights that lie beside it included."""
    import onnx

    return onnx.load(str(path))


def write_file(model: ModelProto, path: Path) -> None:
    """Write an ONNX file, the same bytes for the same model, and check it.

    Args:
        model: with all its weights; taken apart where they are put beside the file.
        path: the file.
    """
    import onnx

    for other in path.parent.iterdir():  # what the exporter put there
        other.unlink()
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.raw_data) >= _WORTH_A_PLACE]
    if sum(len(tensor.raw_data) for tensor in tensors) > LARGEST:
        for tensor in tensors:
            onnx.external_data_helper.set_external_data(tensor, path.name + DATA)
    onnx.save_model(model, str(path))
    onnx.checker.check_model(str(path), full_check=True)


def place_file(made: Path, path: Path) -> None:
    """Copy a file, and the weights beside it, to where they belong, all or nothing.

    Args:
        made: the file, in a folder of its own.
        path: the new place, under the same name.
    """
    names = sorted(file.name for file in made.parent.iterdir())

    def write(folder: Path) -> None:
        for name in names:
            shutil.copyfile(made.parent / name, folder / name)

    if len(names) > 1:
        fill_folder(path.parent, write, seal=path.name)
        return
    replaced = path.exists()
    write_whole(path, lambda temporary: shutil.copyfile(made, temporary))
    if replaced:  # by a network whose weights need no file of their own
        path.with_name(path.name + DATA).unlink(missing_ok=True)
