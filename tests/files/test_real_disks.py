"""A disk that is really full, and one that is really read-only: small file systems of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NETWORK = """
import os, warnings
import torch
from torch import nn
import snows_core as snows

torch.manual_seed(0)
images = torch.randn(40, 1, 10, 10)
net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)).eval()
"""
FULL = """
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    result = snows.prune(net, images, k=0, progress=False, checkpoint_dir=DISK + "/kept")
print("complete", result.complete, "warned", sum("cannot be written" in str(one.message) for one in told))
try:
    result.save(DISK + "/out")
except snows.SnowsError as error:
    print("refused", "could not be written" in str(error) or "cannot be written" in str(error))
print("left", sorted(os.listdir(DISK)))
"""
READ_ONLY = """
try:
    snows.prune(net, images, k=0, progress=False, checkpoint_dir=DISK + "/kept")
except snows.SnowsError as error:
    print(error)
"""


def on_disk(options: str, disk: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a small file system in ``disk``, in a name space of its own."""
    program = f"DISK = {str(disk)!r}\n{script}"
    shell = f'mount -t tmpfs -o {options} tmpfs "$0" && exec "$1" -c "$2"; exit 77'
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, str(disk), sys.executable, program]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("file systems of one's own are not allowed here")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_run_on_a_full_disk_warns_goes_on_and_saves_nothing_half(tmp_path):
    done = on_disk("size=64k", tmp_path, NETWORK + FULL)
    assert done.stdout.splitlines() == ["complete True warned 1", "refused True", "left ['kept']"], done.stderr


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare of util-linux")
def test_a_read_only_disk_is_refused_before_any_work(tmp_path):
    done = on_disk("size=64k,ro", tmp_path, NETWORK + READ_ONLY)
    assert done.stdout.startswith("checkpoint_dir: got ") and "Read-only file system" in done.stdout, done.stderr
