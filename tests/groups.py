"""Runs a function in several processes of one gloo group, on one thread each, and gathers what they return.

The processes are forked from a server that has imported everything and computed nothing: autograd's threads, which a
GPU brings with it, do not survive a fork.
"""

import multiprocessing
import os
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
if os.name == "posix":
    CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "snows_core.prune", "toys"])
PATIENCE = 120  # seconds until a group that hangs is ended


def _begin(rank, world, folder, limit, function, arguments):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
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


def run(world, function, *arguments, limit=60, fails=False):
    """Return what ``function(rank, *arguments)`` gives in each of ``world`` processes, or its error where ``fails``."""
    import torch

    with tempfile.TemporaryDirectory(prefix="snows-") as folder:
        started = [
            CONTEXT.Process(target=_begin, args=(rank, world, folder, limit, function, arguments))
            for rank in range(world)
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
        files = [Path(folder) / f"{rank}.pt" for rank in range(world)]
        answers = [torch.load(file, weights_only=False) if file.exists() else {"error": "killed"} for file in files]
    if fails:
        return [answer.get("error", "") for answer in answers]
    for answer in answers:
        assert "error" not in answer, answer.get("trace", answer)
    return [answer["result"] for answer in answers]
