"""The command line: ``main`` is what the command ``snows`` calls."""

from snows_core.errors import SnowsError, require_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line, alone or as one of the processes that torchrun starts; or say what it lacks in one line."""
    try:
        require_extra("cli", "typer")
    except SnowsError as error:
        raise SystemExit(f"error: {error}") from None
    from snows_core.cli.app import main as run
    from snows_core.cli.launcher import launched_processes, run_launched

    rank, world = launched_processes()
    if world > 1:
        run_launched(run, rank, world)
    else:
        run()
