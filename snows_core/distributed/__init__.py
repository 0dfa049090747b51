"""Several processes that prune one network together; the only room that talks to ``torch.distributed``.

``torchrun --nproc-per-node 2 -m snows_core prune ...`` starts them, or ``snows.prune(...)`` is called in every process
of a group that is there already. Each has all raw images and the network, computes on its part of the images alone
(:mod:`~snows_core.distributed.share`), and all go on with the same sums (:mod:`~snows_core.distributed.processes`).
"""

from snows_core.distributed.group import (
    LIMIT,
    alone,
    broadcast,
    current,
    is_main,
    joined,
    launched,
    on_main,
    refuse_several,
    time_limit,
)
from snows_core.distributed.processes import ALONE, LostProcess, Processes
from snows_core.distributed.share import Share

__all__ = [
    "ALONE",
    "LIMIT",
    "LostProcess",
    "Processes",
    "Share",
    "alone",
    "broadcast",
    "current",
    "is_main",
    "joined",
    "launched",
    "on_main",
    "refuse_several",
    "time_limit",
]
