"""bounded.py: files of others are read up to a size and a depth, and only ordinary ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from snows_core.files.bounded import DEEPEST, check_file, read_json, read_text


def test_what_json_gives_comes_back(tmp_path):
    content = {"a": [1, 2.5, None, True, 'quotes " and \\ [{['], "b": {"c": "ü"}}
    (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("levels", [DEEPEST - 1, DEEPEST])
@pytest.mark.parametrize(("start", "end"), [("[", "]"), ('{"a":', "}")])
def test_the_deepest_that_is_read(tmp_path, levels, start, end):
    (tmp_path / "a.json").write_text(start * levels + "1" + end * levels)
    read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text(start * (DEEPEST + 1) + "1" + end * (DEEPEST + 1))
    with pytest.raises(ValueError, match="nested deeper than 60 levels"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested deeper"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested deeper"),
        (b'["' + b"[" * 200_000, "nested deeper"),
        (b"", "no JSON: Expecting value in line 1"),
        (b'{"a": 1,\n}', "no JSON: .* in line 2"),
        ("é".encode("latin-1"), "no UTF-8 text: byte 0xe9 at 0"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8 text"),
        (b"9" * 5000, "a number that is too long"),
        (b'"' + b"x" * 2000 + b'"', "more than 1,000 bytes"),
    ],
)
def test_what_cannot_be_read_says_why_on_one_line(tmp_path, content, reason):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        read_json(tmp_path / "a.json", 1_000 if b"x" in content else 10_000_000)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_large_file_is_refused_without_being_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)  # a terabyte that takes no room
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read_text(tmp_path / "sparse", 100)
    with pytest.raises(ValueError, match="1,099,511,627,776 bytes, where at most 100"):
        check_file(tmp_path / "sparse", 100)
    assert check_file(tmp_path / "sparse") == tmp_path / "sparse"


def test_only_ordinary_files_are_opened(tmp_path):
    with pytest.raises(ValueError, match="no ordinary file"):
        read_text(tmp_path, 100)
    if os.path.exists("/dev/zero"):
        with pytest.raises(ValueError, match="no ordinary file"):
            read_text(Path("/dev/zero"), 100)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(ValueError, match="no ordinary file"):
            read_json(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nowhere")
