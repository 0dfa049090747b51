"""The command line."""

from snows_core.cli.app import main

__all__ = ["main"]
