"""The command line: ``main`` is what the command ``snows`` calls."""

import os
import sys

from snows_core.errors import SnowsError, reason_of, require_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say in one line what has to be installed for it, or what went wrong unexpectedly."""
    for stream in (sys.stdout, sys.stderr):  # a path need not be a text of the terminal's encoding
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        require_extra("cli", "typer")
        from snows_core.cli.app import main as run

        run()
    except SnowsError as error:
        raise SystemExit(f"error: {error}") from None
    except Exception as error:  # before a command began: commands end in a sentence of their own
        if os.environ.get("SNOWS_TRACE"):
            raise
        raise SystemExit(f"error: unexpected {reason_of(error)}. SNOWS_TRACE=1 shows where, for a report.") from None
