"""Write the animations of the book into figures/animations: ``python -m snows_core.book.animations [names]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from snows_core.book.animations.encode import look, write
from snows_core.book.animations.show import FOLDER, NAMES
from snows_core.book.files_shown import CHECKOUT


def main(arguments: list[str] | None = None) -> int:
    """Read the options, compute, draw and write; return the exit code.

    Args:
        arguments: of the command line; default those of the process.

    Returns:
        0.
    """
    parser = argparse.ArgumentParser(prog="python -m snows_core.book.animations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(NAMES)}; default all")
    parser.add_argument("--out", type=Path, default=CHECKOUT / FOLDER, help="folder; default figures/animations")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"got {', '.join(sorted(unknown))}; expected some of {', '.join(NAMES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or NAMES:
        topic = importlib.import_module(f"snows_core.book.animations.{name.replace('-', '_')}")
        shown = topic.compute()
        with look():
            files = write(topic.animate(shown), options.out / name)
        print(", ".join(f"{file.name}: {file.stat().st_size:,} bytes" for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
