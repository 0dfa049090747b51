"""Files of weights, read without running any code that they bring."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snows_core.errors import cannot_go_on, invalid_argument
from snows_core.files.writing import is_file

FORCE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""Environment variable that PyTorch reads in each ``torch.load``: tensors and plain containers alone."""
FORCE_NOT = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""Its opposite."""


@contextlib.contextmanager
def safe_unpickling() -> Iterator[None]:
    """Let every ``torch.load`` in the block read tensors and plain containers alone, whatever its caller asked for.

    A pickle can run any code. Other libraries' loaders decide for themselves whether to allow that; PyTorch's own
    environment variable overrules them. Variables of the user's are back afterwards.
    """
    before = {name: os.environ.pop(name, None) for name in (FORCE, FORCE_NOT)}
    os.environ[FORCE] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def read_checkpoint(path: str | Path, argument: str, wrappers: Sequence[str]) -> Any:
    """Read a .safetensors file, or one that ``torch.save`` wrote, of tensors and plain containers alone.

    Args:
        path: the file.
        argument: of the caller, for messages.
        wrappers: keys under one of which checkpoints keep the dictionary that is meant; the first that is there counts.

    Returns:
        What is in it, or the dictionary under such a key.

    Raises:
        SnowsError: when the file is missing, or cannot be read without running code that it brings.
    """
    import torch  # what only writes files does not wait for it
    from safetensors.torch import load_file

    if not is_file(path):
        raise invalid_argument(
            argument, f"'{path}', which is no file", "a .safetensors or .pth file", "Check the path."
        )
    file = Path(path).expanduser()
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            with safe_unpickling():
                content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere in either reader
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if reason.startswith("Weights only load failed"):  # PyTorch goes on with advice to run the code
            reason = "it was not made by torch.save, or would run code"
        raise cannot_go_on(
            argument,
            f"'{path}', which cannot be read ({reason[:160]})",
            "a file of tensors only",
            "Save model.state_dict() with safetensors or torch.save.",
        ) from error
    inside = [content[key] for key in wrappers if isinstance(content, dict) and isinstance(content.get(key), dict)]
    return inside[0] if inside else content
