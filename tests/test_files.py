"""files.py: whole files, with the mode that the user's umask gives."""

import os
import stat
import sys

import pytest
import torch
from safetensors.torch import save_file

from snows_core.files import write_whole


@pytest.fixture
def umask():
    """Return a function that sets the process's umask; afterwards it is as it was."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("private", [False, True])
def test_files_have_the_mode_of_the_umask(umask, tmp_path, mask, mode, private):
    umask(mask)

    def write(path):
        save_file({"weight": torch.zeros(2)}, path)
        if private:
            path.chmod(0o600)

    for path in (tmp_path / "new" / "w.safetensors", tmp_path / "new" / "w.safetensors"):
        assert write_whole(path, write) == path
        assert stat.S_IMODE(path.stat().st_mode) == mode
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["w.safetensors"]


def test_writers_see_the_suffix_and_may_replace_the_file(tmp_path):
    def write(path):
        assert path.suffix == ".png" and path.parent == tmp_path
        other = path.with_name("other")
        other.write_text("new")
        other.replace(path)

    assert write_whole(tmp_path / "figure.png", write).read_text() == "new"


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "record.json"
    path.write_text("old")

    def interrupted(temporary):
        temporary.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
