"""files.py: a folder is filled whole or not at all, and one that cannot be written is known before."""

import os
import stat
from pathlib import Path

import pytest

from snows_core.errors import SnowsError
from snows_core.files import LEFTOVER, fill_folder
from snows_core.result import check_target

FILES = {"model.safetensors": "weights", "report.csv": "rows", "manifest.json": "record"}


def write(folder):
    for name, text in FILES.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)  # as safetensors does


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_new_folder_is_filled_with_its_parents(tmp_path):
    fill_folder(tmp_path / "a" / "b", write, "manifest.json")
    assert contents(tmp_path / "a" / "b") == FILES
    assert tree(tmp_path) == ["a", "a/b", *(f"a/b/{name}" for name in sorted(FILES))]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_all_files_and_the_folder_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        fill_folder(tmp_path / "a", write, "manifest.json")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~umask
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a").iterdir()} == {0o666 & ~umask}


def test_an_existing_folder_stays_the_same_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a"
    folder.mkdir(mode=0o750)
    before = folder.stat()
    monkeypatch.chdir(folder)
    for _ in range(2):  # empty, then full
        fill_folder(Path("."), write, "manifest.json")
        assert contents(folder) == FILES
    assert (folder.stat().st_ino, folder.stat().st_mode) == (before.st_ino, before.st_mode)
    (tmp_path / "link").symlink_to(folder)
    fill_folder(tmp_path / "link", write, "manifest.json")
    assert (tmp_path / "link").is_symlink() and contents(folder) == FILES


@pytest.mark.parametrize("held", [{}, {name: "old" for name in FILES}, {"report.csv": "old"}])
@pytest.mark.parametrize("failing", range(6))
def test_an_exchange_that_fails_anywhere_is_undone(tmp_path, monkeypatch, held, failing):
    folder = tmp_path / "a"
    folder.mkdir()
    for name, text in held.items():
        (folder / name).write_text(text)
    rename, calls = Path.rename, []

    def fail(self, target):
        calls.append(self.name)
        if len(calls) == failing + 1:
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    if failing >= len(held) + len(FILES):
        fill_folder(folder, write, "manifest.json")
        assert contents(folder) == FILES
        return
    with pytest.raises(OSError, match="no space"):
        fill_folder(folder, write, "manifest.json")
    assert contents(folder) == held


def test_the_seal_goes_first_and_comes_last(tmp_path, monkeypatch):
    fill_folder(tmp_path / "a", write, "manifest.json")
    rename, order = Path.rename, []

    def watch(self, target):
        order.append(("in" if Path(target).parent == tmp_path / "a" else "out", self.name))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", watch)
    fill_folder(tmp_path / "a", write, "manifest.json")
    assert order[0] == ("out", "manifest.json") and order[-1] == ("in", "manifest.json") and len(order) == 6


def test_what_a_killed_process_left_does_not_count(tmp_path):
    (tmp_path / "a" / f"{LEFTOVER}x").mkdir(parents=True)
    check_target(tmp_path / "a")


@pytest.mark.parametrize("place", ["a", "a/b/c", ".", "there", "there/d", "x" * 200, "größe", "a b/c"])
def test_a_folder_that_can_be_written_leaves_nothing_behind(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    if place == ".":
        monkeypatch.chdir("there")
    for form in (Path, str, lambda p: tmp_path / p if p != "." else Path(p)):
        check_target(form(place))
    assert tree(tmp_path) == ["there"]


UNWRITABLE = {
    "a parent that is a file": lambda tmp: tmp / "file" / "result",
    "a grandparent that is a file": lambda tmp: tmp / "file" / "a" / "b" / "result",
    "the file itself": lambda tmp: tmp / "file",
    "a broken link": lambda tmp: tmp / "broken",
    "below a broken link": lambda tmp: tmp / "broken" / "result",
    "a null character": lambda tmp: tmp / "a\0b",
    "a null character, text": lambda tmp: f"{tmp}/a\0b/c",
    "a long name": lambda tmp: tmp / ("x" * 300),
    "a long name of a parent": lambda tmp: tmp / "new" / ("x" * 300) / "result",
    "a long path": lambda tmp: tmp.joinpath(*["y" * 200] * 30),
    "a name that cannot be encoded": lambda tmp: tmp / "\udfff\ud800",
}


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX file systems")
@pytest.mark.parametrize("what", UNWRITABLE)
def test_a_folder_that_can_never_be_written_is_refused(tmp_path, what):
    (tmp_path / "file").write_text("x")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    with pytest.raises(SnowsError, match=r"^folder: got .*; expected a folder") as caught:
        check_target(UNWRITABLE[what](tmp_path))
    assert len(str(caught.value)) < 1000 and tree(tmp_path) == before


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a file system that takes no folders: Linux only")
def test_a_file_system_that_takes_no_folders_is_refused():
    with pytest.raises(SnowsError, match=r"which cannot be written \(.+\); expected a folder that can be made"):
        check_target("/proc/result")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    for place in ("locked", "locked/new"):
        with pytest.raises(SnowsError, match="Permission denied"):
            check_target(tmp_path / place)


@pytest.mark.parametrize("failing", ["mkdir", "write"])
def test_a_full_or_read_only_disk_is_refused_and_nothing_stays(tmp_path, monkeypatch, failing):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    if failing == "mkdir":
        mkdir = Path.mkdir
        monkeypatch.setattr(Path, "mkdir", lambda self, *a: fail() if self.name == "c" else mkdir(self, *a))
    else:
        monkeypatch.setattr("snows_core.files.writing.tempfile.NamedTemporaryFile", fail)
    with pytest.raises(SnowsError, match=r"a/b/c', which cannot be written \(No space left on device\)"):
        check_target(tmp_path / "a" / "b" / "c")
    assert tree(tmp_path) == []
