"""Runs a function in several processes of one gloo group, on one thread each, and gathers what they return.

The processes are forked from a server that has imported everything and computed nothing: autograd's threads, which a
GPU brings with it, do not survive a fork.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
# What takes seconds to import; files of the tests are not on the server's path.
IMPORTED = [
    "timm.models.vision_transformer",
    "torch._dynamo",
    "snows_core.prune",
    "snows_core.comparison.grid",
    "pytest",
]
if os.name == "posix":
    CONTEXT.set_forkserver_preload(IMPORTED)
PATIENCE = 120  # seconds until a group that hangs is ended


def _begin(rank, world, folder, limit, function, arguments):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*calibration images.*")
    answer = Path(folder) / f"{rank}.pt"
    try:
        if world > 1:
            store, patience = f"file://{folder}/store", timedelta(seconds=limit)
            dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=patience)
        result = function(rank, *arguments)
        if world > 1:
            dist.destroy_process_group()
    except BaseException as error:
        torch.save({"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}, answer)
        raise SystemExit(1) from None
    torch.save({"result": result}, answer)


def run(world, function, *arguments, limit=60):
    """Return what ``function(rank, *arguments)`` gives in each of ``world`` processes."""
    import torch

    with tempfile.TemporaryDirectory(prefix="snows-") as folder:
        _run(world, function, arguments, folder, limit)
        answers = [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
    for answer in answers:
        assert "error" not in answer, answer.get("trace", answer)
    return [answer["result"] for answer in answers]


def run_failing(world, function, *arguments, limit=60):
    """Return the error of each process, "killed" of one that could not tell, or "none"."""
    import torch

    with tempfile.TemporaryDirectory(prefix="snows-") as folder:
        _run(world, function, arguments, folder, limit)
        files = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        answers = [torch.load(file, weights_only=False) if file.exists() else {"error": "killed"} for file in files]
    return [answer.get("error", "none") for answer in answers]


def _run(world, function, arguments, folder, limit):
    started = [
        CONTEXT.Process(target=_begin, args=(rank, world, folder, limit, function, arguments)) for rank in range(world)
    ]
    for process in started:
        process.start()
    end = time.monotonic() + PATIENCE
    for process in started:
        process.join(max(0.0, end - time.monotonic()))
    hung = [rank for rank, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
        process.join()
    assert not hung, f"processes {hung} of {world} hang"
