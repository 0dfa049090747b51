"""files.py: whole files, with the mode that the user's umask gives."""

import os
import stat
import sys

import pytest
import torch
from safetensors.torch import save_file

from snows_core.files import write_text, write_whole


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


@pytest.mark.parametrize("reason", [KeyboardInterrupt, RuntimeError])
def test_a_writer_that_does_not_end_leaves_the_old_file(tmp_path, reason):
    path = tmp_path / "record.json"
    write_text(path, "old")

    def fails(temporary):
        temporary.write_text("ha")
        raise reason

    with pytest.raises(reason):
        write_whole(path, fails)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_text_is_written_in_utf_8(tmp_path):
    assert write_text(tmp_path / "new" / "a.txt", "×\n").read_bytes() == "×\n".encode()
