"""Several processes with a checkpoint: one is killed, the others end, and the same call goes on to the same result."""

import os
import signal

import groups
import pytest
from toys import random_images, same, small_resnet

import snows_core as snows
from snows_core.sweep.checkpoint import Checkpoint
from snows_core.sweep.sweep import Sweep

OPTIONS = {"pattern": 0.6, "k": 1, "stages": 2, "effort": "quick", "batch_size": 4, "progress": False, "refine": 3}


def pruned(rank, folder, victim=None):
    """Prune into a checkpoint; be killed, where this is the victim, at its fourth layer."""
    solve, seen = Sweep._solve, []

    def leaving(self, entry):
        seen.append(entry.name)
        if rank == victim and len(seen) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return solve(self, entry)

    Sweep._solve = leaving
    result = snows.prune(small_resnet(), random_images(11), checkpoint_dir=folder, **OPTIONS)
    return result.state, result.manifest.get("resumed"), len(seen)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_group_that_lost_a_process_goes_on(tmp_path, victim):
    (whole, new, _), (other, _, _) = groups.run(2, pruned, None)
    assert new is None and same(whole, other)
    words = groups.run_failing(2, pruned, tmp_path / "kept", victim, limit=3)
    assert words[victim] == "killed" and words[1 - victim].startswith("LostProcess: several processes")
    for state, resumed, solved in groups.run(2, pruned, tmp_path / "kept"):
        assert same(state, whole) and resumed["layers"] >= 2 and solved == 10 - resumed["layers"]


def writes(rank, folder):
    """Return the kinds of records that a process writes itself."""
    kinds, add = [], Checkpoint._add
    Checkpoint._add = lambda self, record, replaces=(): (
        kinds.append(record.kind) if self.journal else None,
        add(self, record, replaces),
    )
    pruned(rank, folder)
    return kinds


def test_the_first_process_alone_keeps_what_is_done(tmp_path):
    first, second = groups.run(2, writes, tmp_path / "kept")
    assert first.count("layer") == 10 and second == []
