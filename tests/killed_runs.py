"""Runs in processes of their own that can be killed at any moment: what tests of checkpoints share."""

import multiprocessing
import os
import signal
import threading
import time
import warnings
from pathlib import Path

# One process is started with all that a run imports, and forks for each run; it looks for tests in its environment.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "toys",
        "snows_core.prune",
        "snows_core.cli.commands",
        "snows_core.files.journal",
        "pandas.io.formats.csvs",
        "numpy.ctypeslib",
    ]
)

CASES = {
    "stages, then natural refinement": {"pattern": 0.7, "k": 2, "stages": 3, "refine": 24, "refine_solver": "natural"},
    "masks that move under Adam": {"pattern": "2:4", "k": 1, "refine": 44, "moving_masks": True},
    "joint Newton": {"pattern": 0.5, "k": 0, "refine": 8, "refine_solver": "newton"},
    "the published recipe": {"pattern": "1:4", "k": 2, "recipe": "paper", "batch_size": 8},
    "masks of a layer-wise method, K chosen": {"pattern": "2:4", "k": "auto", "mask": "sparsegpt", "stages": 2},
    "sparsities that are measured": {"pattern": 0.6, "k": 1, "allocation": "measured", "stages": 2},
    "masks and weights of the whole network": {"pattern": 0.6, "mask": "chita", "update": "chita", "stages": 3},
    "the start of another method": {"pattern": 0.6, "k": 2, "mask": "chita", "warm_start": "own"},
}


def prune(case, checkpoint, out, kill_at=None, kill_after=None):
    """Prune a small network into a folder, and note the seconds that it computed; or be killed on the way.

    Args:
        case: of ``CASES``.
        checkpoint: folder of the checkpoint, or None.
        out: folder of the result.
        kill_at: when so many files are written, and the last of them is not yet put in its place.
        kill_after: after so many seconds of computing, wherever that is.
    """
    warnings.simplefilter("ignore")
    import torch
    from toys import random_images, small_resnet

    import snows_core as snows
    from snows_core.sweep import checkpoint as module

    torch.set_num_threads(1)
    module.JOINT_SECONDS, module.JOINT_SHARE = 0.0, 1e9  # a record after every step
    if kill_at is not None:
        die_at_replacement(kill_at)
    if kill_after is not None:  # nobody handles this signal, so that it kills as SIGKILL does
        signal.setitimer(signal.ITIMER_VIRTUAL, kill_after)
    start = os.times().user
    options = {"progress": False, "effort": "quick", **CASES[case]}
    result = snows.prune(small_resnet(), random_images(24), **options, checkpoint_dir=checkpoint)
    result.save(out)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    Path(f"{out}.seconds").write_text(str(os.times().user - start))


def compare(out, kill_at=None):
    """Compare masks and updates into a folder; be killed as in :func:`prune`."""
    warnings.simplefilter("ignore")
    import torch
    from toys import random_images, small_resnet

    import snows_core as snows

    torch.set_num_threads(1)
    if kill_at is not None:
        die_at_replacement(kill_at)
    options = {"masks": "magnitude,wanda", "updates": "none,layerwise", "k": 1, "progress": False}
    snows.compare(small_resnet(), random_images(16), ["2:4", 0.5], test=random_images(20, seed=5), out=out, **options)


def command_line(arguments, kill_at=None, signals=(), after=0.0, told=None):
    """Run `snows` with arguments; be killed, or be sent signals, on the way.

    Args:
        arguments: of the command line.
        kill_at: as for :func:`prune`.
        signals: sent one after the other, once the first layer is solved.
        after: seconds between two of them.
        told: file for what it says on stderr.
    """
    import torch

    from snows_core.cli.app import app
    from snows_core.sweep.checkpoint import Checkpoint

    if kill_at is not None:
        die_at_replacement(kill_at)
    torch.set_num_threads(1)
    if told is not None:
        os.dup2(os.open(told, os.O_CREAT | os.O_WRONLY), 2)
    keep = Checkpoint.keep_layer

    def send():
        for number in signals:
            os.kill(os.getpid(), number)
            time.sleep(after)

    def sending(checkpoint, *given):
        keep(checkpoint, *given)
        if signals and not sending.begun:
            sending.begun = True
            threading.Thread(target=send).start()
            time.sleep(0.3)

    sending.begun = False
    Checkpoint.keep_layer = sending
    app(arguments)


def die_at_replacement(count):
    """Let this process be killed when it has written so many files and not yet put the last one in its place."""
    replace, seen = Path.replace, []

    def dying(path, target):
        seen.append(target)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace = dying


def run(function, *arguments):
    """Call a function in a process of its own; return its exit code, or the signal that ended it as a negative."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join(300)
    assert process.exitcode is not None, "the run hangs"
    return process.exitcode
