"""The command line in several processes, as torchrun starts it: one of them speaks, all of them end together.

Nothing here loads PyTorch before the command is known to be one that several processes can share.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator

SHARED = "prune"  # the command that several processes share
PAUSE = 2.0  # seconds in which the first process tells of a mistake that all have found, before another one does


def launched_processes(environment: dict[str, str] | os._Environ[str] = os.environ) -> tuple[int, int]:
    """Return the rank of this process and how many a launcher has started; (0, 1) without a launcher.

    Args:
        environment: where launchers leave ``RANK``, ``WORLD_SIZE`` and ``MASTER_ADDR``.

    >>> launched_processes({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"})
    (1, 2)
    """
    try:
        rank, world = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    except (KeyError, ValueError):
        return 0, 1
    return (rank, world) if world > 1 and "MASTER_ADDR" in environment else (0, 1)


def run_launched(run: Callable[[], None], rank: int, world: int) -> None:
    """Run the command line as one of several processes.

    Args:
        run: the command line in one process.
        rank: of this process.
        world: how many there are.

    Raises:
        SystemExit: with code 2 for a command that processes cannot share.
    """
    command = next((word for word in sys.argv[1:] if not word.startswith("-")), "none")
    if command != SHARED:
        if rank == 0:
            fix = "Other commands run in one process; many comparisons are as many jobs."
            sys.stderr.write(f"error: command: got '{command}' in {world} processes; expected '{SHARED}'. {fix}\n")
        raise SystemExit(2)
    from snows_core.distributed import launched
    from snows_core.errors import SnowsError

    with _first_speaks(rank):
        try:
            with launched():
                run()
        except SnowsError as error:  # before any command has begun
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(1) from None


@contextlib.contextmanager
def _first_speaks(rank: int) -> Iterator[None]:
    """Let the first process print as ever, and of the others only what has ended them while the first one goes on.

    A launcher ends all processes as soon as one has failed, so that of a mistake which all have made the first process
    alone tells.
    """
    if rank == 0:
        yield
        return
    told = io.StringIO()
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
            with contextlib.redirect_stderr(told):
                yield
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code:
            time.sleep(PAUSE)
            for line in told.getvalue().splitlines():
                sys.stderr.write(f"process {rank}: {line}\n")
        raise
