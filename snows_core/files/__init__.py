"""Files: written whole or not at all, read within bounds and without running code, and kept on the way of a run.

Nothing that is imported here loads PyTorch; :mod:`~snows_core.files.journal` does.
"""

from snows_core.files.weights import FORCE, FORCE_NOT, read_checkpoint, safe_unpickling
from snows_core.files.writing import (
    LEFTOVER,
    as_path,
    clean_leftovers,
    contents,
    fill_folder,
    is_file,
    recover,
    try_to_write,
    write_text,
    write_whole,
)

__all__ = [
    "FORCE",
    "FORCE_NOT",
    "LEFTOVER",
    "as_path",
    "clean_leftovers",
    "contents",
    "fill_folder",
    "is_file",
    "read_checkpoint",
    "recover",
    "safe_unpickling",
    "try_to_write",
    "write_text",
    "write_whole",
]
