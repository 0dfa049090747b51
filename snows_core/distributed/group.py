"""How a run gets its processes: from the process group that the caller has, or the one that a launcher asks for."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from snows_core.distributed.processes import ALONE, Processes
from snows_core.errors import invalid_argument

Item = TypeVar("Item")
LIMIT = "SNOWS_PROCESS_TIMEOUT"
"""Environment variable: seconds after which a process that does not answer counts as lost."""
DEFAULT_LIMIT = 600.0
_CURRENT: ContextVar[Processes] = ContextVar("processes", default=ALONE)
_APART: ContextVar[bool] = ContextVar("apart", default=False)


def current() -> Processes:
    """Return the processes that share the work going on; this one alone outside of :func:`joined`."""
    return _CURRENT.get()


def is_main() -> bool:
    """Tell whether this process writes files and shows progress: the first of a group, or one that works for itself."""
    return _group().is_main


def broadcast(item: Item) -> Item:
    """Return the first process's ``item`` in every process of a run; see :meth:`.Processes.broadcast`."""
    return current().broadcast(item)


@contextmanager
def joined() -> Iterator[None]:
    """Share the work inside with the other processes of PyTorch's process group, where there is one of several.

    Every process has to come here with the same arguments, and in the same order. Warnings are those of the first
    process. Without such a group nothing is different.
    """
    group = _group()
    token = _CURRENT.set(group)
    try:
        with ExitStack() as silence:
            if not group.is_main:
                silence.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
            yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work for itself inside, although there is a process group of several."""
    tokens = _APART.set(True), _CURRENT.set(ALONE)
    try:
        yield
    finally:
        _APART.reset(tokens[0])
        _CURRENT.reset(tokens[1])


def on_main(function: Callable[..., Item], *arguments: Any) -> Item:
    """Call a function in the first process alone; the others wait, and fail where it fails.

    Args:
        function: what is called; its result is pickled on the way.
        *arguments: its arguments.

    Returns:
        Its result, in every process.

    Raises:
        Exception: what the function has raised, in every process.
    """
    processes = _group()
    if not processes.several:
        return function(*arguments)
    outcome: tuple[Any, Exception | None] = (None, None)
    if processes.is_main:
        try:
            outcome = (function(*arguments), None)
        except Exception as error:
            outcome = (None, error)
    found, failed = processes.broadcast(outcome)
    if failed is not None:
        raise failed
    told: Item = found
    return told


def refuse_several(what: str) -> None:
    """Refuse what processes cannot share.

    Args:
        what: the function that was called.

    Raises:
        SnowsError: in a process group of several, outside of :func:`alone`.
    """
    if _group().several:
        fix = "Inside `with snows_core.distributed.alone():` each works for itself, into a folder of its own."
        raise invalid_argument(what, f"a call in each of {_group().world} processes", "one process", fix)


@contextmanager
def launched() -> Iterator[None]:
    """Join the process group that a launcher's environment variables describe, and leave it at the end.

    Sums over CPU tensors go through gloo, over CUDA tensors through NCCL; each process computes on the GPU of its
    ``LOCAL_RANK`` where the device is given as "cuda".

    Raises:
        SnowsError: on a time limit that is none.
    """
    limit = time_limit()
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=limit)
    try:
        yield
    except SystemExit as end:
        if not end.code:
            dist.destroy_process_group()
        raise  # a group that failed is left as it is: to end it in order would wait for processes that are gone
    else:
        dist.destroy_process_group()


def time_limit() -> timedelta:
    """Return the time after which a process that does not answer counts as lost, from ``SNOWS_PROCESS_TIMEOUT``.

    Raises:
        SnowsError: when that is no positive number of seconds.
    """
    text = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= 1e6:
        raise invalid_argument(LIMIT, repr(text), "a number of seconds above 0, at most 1,000,000", "For instance 600.")
    return timedelta(seconds=seconds)


def _group() -> Processes:
    """Return the processes of PyTorch's default group; this one alone where there is none, or inside :func:`alone`."""
    if _APART.get() or not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() < 2:
        return ALONE
    return Processes(dist.get_rank(), dist.get_world_size())
