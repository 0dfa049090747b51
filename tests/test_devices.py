"""devices.py: how much memory this process may have, whatever bounds it: the host, a container, a batch system."""

import math

import pandas as pd
import pytest
import torch
from toys import random_images, small_resnet

import snows_core as snows
from snows_core import devices
from snows_core.activations import calibration
from snows_core.devices import free_memory, total_memory
from snows_core.errors import SnowsError
from snows_core.sweep.memory import memory_budget

CPU = torch.device("cpu")
NOTHING = "25 30 0:23 / /proc rw,nosuid - proc proc rw"
HOST = 1e12


class Groups:
    """Control groups made of files, and what the system says of this process's place in them."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "self").mkdir()

    def member(self, *lines):
        (self.folder / "self" / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def mounted(self, *mounts):
        """Each mount is (root in the hierarchy, folder here, type, options)."""
        lines = [NOTHING]
        for root, at, kind, options in mounts:
            place = str(self.folder / at).replace(" ", "\\040")
            lines.append(f"32 31 0:29 {root} {place} rw,relatime shared:9 - {kind} {kind} {options}")
        (self.folder / "self" / "mountinfo").write_text("".join(f"{line}\n" for line in lines))

    def unified(self, group, limit, used=0, cached=0, high="max"):
        self._write(group, {"max": limit, "high": high, "current": used, "stat": f"anon 4\ninactive_file {cached}"})

    def older(self, group, limit, used=0, cached=0, outer=2**63 - 4096):
        statistics = f"hierarchical_memory_limit {outer}\ntotal_inactive_file {cached}"
        self._write(group, {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": statistics})

    def _write(self, group, files):
        (self.folder / group).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (self.folder / group / f"memory.{name}").write_text(f"{text}\n")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A host with much memory, on which control groups alone decide."""
    monkeypatch.setattr(devices, "PROCESS", tmp_path / "self")
    host = type("Host", (), {"total": HOST, "available": HOST})
    monkeypatch.setattr(devices.psutil, "virtual_memory", lambda: host)
    return Groups(tmp_path)


def free_and_total():
    return free_memory(CPU), total_memory(CPU)


def test_the_tightest_of_nested_groups_counts_and_files_that_were_read_are_free(groups):
    groups.mounted(("/", "mnt", "cgroup2", "rw,nsdelegate"))
    groups.member("0::/job/step")
    assert free_and_total() == (HOST, HOST), "no limit anywhere"
    groups.unified("mnt/job", 1000, used=700, cached=250)
    groups.unified("mnt/job/step", "max", used=700, cached=250)
    assert free_and_total() == (550, 1000)
    groups.unified("mnt/job/step", 720, used=700, cached=250)
    assert free_and_total() == (270, 720)
    groups.unified("mnt/job", 1000, used=900)  # by other steps of the job
    assert free_and_total() == (100, 720)
    groups.unified("mnt/job", 1000, used=1100)
    assert free_and_total() == (0, 720)


def test_a_group_that_is_slowed_down_from_some_size_on_is_bounded_by_that(groups):
    groups.mounted(("/", "mnt", "cgroup2", "rw"))
    groups.member("0::/pod")
    groups.unified("mnt/pod", 1000, used=100, high=800)
    assert free_and_total() == (700, 800)


def test_the_older_control_groups_and_both_kinds_at_once(groups):
    groups.mounted(
        ("/", "cg/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        ("/", "cg/memory", "cgroup", "rw,memory"),
        ("/", "cg/unified", "cgroup2", "rw"),
    )
    groups.member("5:cpu,cpuacct:/other", "4:memory:/slurm/uid_7/job_1/step_0", "1:name=systemd:/", "0::/", "garbage")
    groups.older("cg/memory", 2**63 - 4096, used=5)  # what stands for no limit
    groups.older("cg/memory/slurm/uid_7/job_1", 1000, used=900, cached=100)
    groups.older("cg/memory/other", 1)  # of the group of another controller
    groups.older("cg/cpu,cpuacct/slurm/uid_7/job_1", 1)
    assert free_and_total() == (200, 1000)


def test_limits_around_a_container_that_only_its_statistics_know(groups):
    groups.mounted(("/docker/abc", "cg/memory", "cgroup", "rw,memory"))
    groups.member("4:memory:/docker/abc")
    groups.older("cg/memory", 2**63 - 4096, used=100, outer=600)
    assert free_and_total() == (500, 600)


@pytest.mark.parametrize(
    "root, member",
    [
        ("/", "/"),  # a namespace of its own: the container is all there is
        ("/docker/abc", "/docker/abc"),  # named as the host names it, and mounted alone
        ("/", "/../.."),  # above what it may see
        ("/../..", "/"),
        ("/kubepods/pod1", "/system.slice/exec"),  # not below what is mounted
        ("/", "/docker/abc"),  # named as the host names it, but its own group alone is there
    ],
)
@pytest.mark.parametrize("at", ["sys/fs/cgroup", "an other place/cgroup"])
def test_a_container_finds_its_limit_where_its_groups_are_mounted(groups, root, member, at):
    groups.mounted((root, at, "cgroup2", "rw"))
    groups.member(f"0::{member}")
    groups.unified(at, 1000, used=300)
    assert free_and_total() == (700, 1000)


def test_without_control_groups_the_host_decides(groups):
    assert free_and_total() == (HOST, HOST), "no files at all, as on other systems"
    groups.mounted(("/", "mnt", "cgroup2", "rw"))
    groups.member("0::/gone")
    assert free_and_total() == (HOST, HOST)
    groups.unified("mnt/gone", "nonsense")
    assert free_and_total() == (HOST, HOST)
    groups.unified("mnt/gone", 500, used="", cached="x")  # what is taken cannot be told
    assert free_and_total() == (500, 500)


def test_here_memory_is_finite():
    assert 0 < free_memory(CPU) <= total_memory(CPU) < math.inf


@pytest.fixture
def container(groups):
    """A container of 3 MB, of which 1 MB is taken."""
    groups.mounted(("/", "mnt", "cgroup2", "rw"))
    groups.member("0::/")
    groups.unified("mnt", 3_000_000, used=1_000_000)


@pytest.mark.usefixtures("container", "few_images_are_fine")
def test_budgets_images_and_estimates_keep_to_the_container():
    assert memory_budget(0.25, CPU) == 500_000 and memory_budget(None, CPU) == 1_000_000
    images = random_images(8, 64)  # 0.8 MB
    with pytest.raises(SnowsError, match=r"images: got more than 16 images"):
        calibration.calibration_parts([images] * 3)
    with pytest.warns(UserWarning, match=r"max_memory: 1 MB are less than the .* that one batch"):
        found = snows.estimate(small_resnet(width=8), images, count=4000, k=2)
    assert isinstance(found, pd.DataFrame) and len(found)
    with pytest.warns(UserWarning, match=r"max_memory: 1 MB are less"):
        result = snows.prune(small_resnet(width=8), images, k=2, effort="quick", progress=False)
    assert result.manifest["memory"]["storage"] == "disk"
