"""The command line: ``main`` is what the command ``snows`` calls."""

from snows_core.errors import SnowsError, require_extra

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say in one line what has to be installed for it."""
    try:
        require_extra("cli", "typer")
    except SnowsError as error:
        raise SystemExit(f"error: {error}") from None
    from snows_core.cli.app import main as run

    run()
