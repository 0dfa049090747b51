"""offload.py: files of tensors go with the process that made them, and with the next one where it was killed."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from snows_core.activations import offload

MAKES = """
import os, signal, sys, torch
from snows_core.activations.offload import DiskTensor
kept = [DiskTensor(torch.ones(9)) for _ in range(3)]
print(os.path.dirname(kept[0].path), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "lives":
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def start(way):
    return subprocess.Popen(
        [sys.executable, "-c", MAKES, way], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_files_of_a_killed_process_go_at_the_next_start_and_those_of_a_living_one_stay(place):
    lives = start("lives")
    of_living = lives.stdout.readline().strip()
    killed = start("killed")
    of_killed = killed.stdout.readline().strip()
    assert killed.wait() == -signal.SIGKILL and len(os.listdir(of_killed)) == 4
    assert [str(folder) for folder in offload.remove_abandoned()] == [of_killed]
    assert os.listdir(place) == [os.path.basename(of_living)] and len(os.listdir(of_living)) == 4
    lives.communicate("")
    assert os.listdir(place) == []


def test_a_process_that_ends_leaves_nothing(place):
    ends = start("ends")
    folder = ends.communicate()[0].strip()
    assert ends.returncode == 0 and os.path.dirname(folder) == str(place) and os.listdir(place) == []


def test_a_fork_does_not_take_its_parents_files_away(place):
    tensor = offload.DiskTensor(torch.arange(5.0))
    child = os.fork()
    if child == 0:
        del tensor
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(tensor.load("cpu"), torch.arange(5.0))


def test_a_folder_that_was_taken_away_is_made_again(place):
    first = offload.DiskTensor(torch.ones(2))
    for path in (os.path.dirname(first.path),):
        for name in os.listdir(path):
            os.unlink(os.path.join(path, name))
        os.rmdir(path)
    assert torch.equal(offload.DiskTensor(torch.ones(3)).load("cpu"), torch.ones(3))
