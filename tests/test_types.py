"""The package has no type error, its users' checkers see its types, and nothing is waved through without a reason."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")
ROOT = Path(__file__).resolve().parent.parent

# What a user may write; the checker must object to the lines that say WRONG, and to no other.
CALLS = """
import snows_core as snows
import torch
from snows_core.masks import NM, masks_for
from torch import Tensor, nn

model: nn.Module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
images = torch.zeros(8, 4)
result = snows.prune(model, images, pattern="2:4", k=5, recipe="fast")
snows.prune(model, [images, images], pattern=0.8, k="auto", masks=model)
snows.prune(images=images)  # WRONG: no network
snows.prune(model, images, pattern=[2, 4])  # WRONG: no pattern
snows.prun(model, images)  # WRONG: no such function
masks: dict[str, Tensor] = result.masks
dense: dict[str, str] = result.masks  # WRONG: masks are tensors
result.save("folder", overwrite=1)  # WRONG: a switch is True or False
result.model(images)  # WRONG: None when loaded without a model
if result.model is not None:
    result.model(images)
accuracy: float | None = snows.evaluate(model, images).accuracy
percent: float = snows.evaluate(model, images).accuracy  # WRONG: None without labels
NM("2", 4)  # WRONG: numbers
masks_for({"fc": torch.ones(2, 4)}, "2:4")  # WRONG: inside the package a pattern is no text
"""


def test_the_package_has_no_type_error_and_wrong_calls_of_it_have(tmp_path):
    """One run for both: it takes seconds with a warm cache, and half a minute without."""
    calls = tmp_path / "calls_of_a_user.py"  # a cached run may name the folder of the run before: the name tells
    calls.write_text(CALLS)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "snows_core", str(calls)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 2: mypy itself failed
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    rejected = [re.search(r"calls_of_a_user\.py:(\d+): error: ", line) for line in errors]
    assert all(rejected), done.stdout
    expected = {number for number, line in enumerate(CALLS.splitlines(), 1) if "# WRONG" in line}
    assert {int(found[1]) for found in rejected} == expected, done.stdout


def test_every_silenced_error_has_its_code_and_a_reason():
    for path in sorted((ROOT / "snows_core").rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if "type: ignore" in line:
                assert re.search(r"# type: ignore\[[a-z-]+\] # \w.{10,}", line), f"{path}:{number}: {line.strip()}"
            assert "mypy: ignore-errors" not in line and "no_type_check" not in line, path


def test_the_core_is_strict():
    """The options that ``mypy --strict`` adds are on for the core, by name or for all modules."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    everywhere, *sections = text[text.index("[tool.mypy]") :].split("[[tool.mypy.overrides]]")
    (core,) = [section for section in sections if '"snows_core.masks.*"' in section]
    assert all(f'"snows_core.{room}.*"' in core for room in ("solvers", "masks", "loss", "methods"))
    help_text = subprocess.run([sys.executable, "-m", "mypy", "--help"], capture_output=True, text=True).stdout
    words = " ".join(help_text.split()).replace("- ", "-")  # lines are broken behind hyphens
    listed = words.split("Strict mode; enables the following flags: ")[1].split(" --disable-error-code")[0]
    flags = [flag.removeprefix("--").replace("-", "_") for flag in listed.split(", ")]
    assert len(flags) > 10 and [flag for flag in flags if f"{flag} = true" not in everywhere + core] == []
