"""The command line: ``main`` is what the command ``snows`` calls."""

import os
import sys

from snows_core.errors import SnowsError, reason_of, require_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line, alone or as one of the processes that torchrun starts.

    What has to be installed for it, or went wrong unexpectedly, is said in one line.
    """
    for stream in (sys.stdout, sys.stderr):  # a path need not be a text of the terminal's encoding
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")
    try:
        require_extra("cli", "typer")
        from snows_core.cli.app import main as run
        from snows_core.cli.launcher import launched_processes, run_launched

        rank, world = launched_processes()
        if world > 1:
            run_launched(run, rank, world)
        else:
            run()
    except SnowsError as error:
        raise SystemExit(f"error: {error}") from None
    except Exception as error:  # before a command began: commands end in a sentence of their own
        if os.environ.get("SNOWS_TRACE"):
            raise
        raise SystemExit(f"error: unexpected {reason_of(error)}. SNOWS_TRACE=1 shows where, for a report.") from None
