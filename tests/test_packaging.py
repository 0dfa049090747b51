"""The files that describe the package agree with each other and hold nothing of one machine."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import snows_core

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
CONDA_NAMES = {  # conda-forge's name, the lighter one where a package is split
    "torch": "pytorch",
    "matplotlib": "matplotlib-base",
    "seaborn": "seaborn-base",
    "nbconvert": "nbconvert-core",
}
CORE = {"torch", "numpy", "safetensors", "tqdm", "pandas", "psutil", "filelock"}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def bounds(project: dict, extra: str) -> dict[str, str]:
    """Return name to specifier of all that the package with an extra requires, through the extras that it names."""
    found, waiting = {}, [project["dependencies"], project["optional-dependencies"][extra]]
    for requirements in waiting:
        for requirement in map(Requirement, requirements):
            waiting += [project["optional-dependencies"][name] for name in sorted(requirement.extras)]
            if requirement.name != "snows-core":
                found[CONDA_NAMES.get(requirement.name, requirement.name)] = str(requirement.specifier)
    return found


def conda_bounds(path: Path) -> dict[str, str]:
    found = {}
    for entry in yaml.safe_load(path.read_text(encoding="utf-8"))["dependencies"]:
        for text in [entry] if isinstance(entry, str) else entry["pip"]:
            if match := re.fullmatch(r"([a-z][\w-]*)(.*)", text):
                found[match[1]] = match[2]
    return {name: bound for name, bound in found.items() if name not in ("python", "pip")}


def test_environment_repeats_pyproject(project):
    assert conda_bounds(ROOT / "environment.yml") == bounds(project, "dev")


def test_binder_repeats_pyproject_without_dev(project):
    assert conda_bounds(ROOT / "binder" / "environment.yml") == bounds(project, "book")


def test_the_core_requires_little_and_each_extra_holds_those_below_it(project):
    assert {Requirement(text).name for text in project["dependencies"]} == CORE
    sizes = [len(bounds(project, extra)) for extra in ("zoo", "cli", "export", "cells", "book", "dev")]
    assert sizes == sorted(set(sizes))
    held = [bounds(project, extra).items() for extra in ("zoo", "cli", "export", "cells", "book", "dev")]
    assert all(below <= above for below, above in itertools.pairwise(held))


@pytest.mark.parametrize("name", ["environment.yml", "binder/environment.yml"])
def test_environments_use_conda_forge_and_a_supported_python(name, project):
    content = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    assert content["channels"] == ["conda-forge", "nodefaults"]
    python = next(entry for entry in content["dependencies"] if isinstance(entry, str) and entry.startswith("python"))
    assert Version(re.sub(r"[^\d.]", "", python)) >= Version(project["requires-python"].removeprefix(">="))


def test_requirements_are_lower_bounds_only(project):
    texts = project["dependencies"] + [t for extra in project["optional-dependencies"].values() for t in extra]
    for requirement in map(Requirement, texts):
        if requirement.name != "snows-core":
            assert [s.operator for s in requirement.specifier] == [">="], requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_requirement_once_within_its_bound(python, project):
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pins: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert requirement.name not in pins, f"{requirement.name} pinned twice for {python}"
            pins[requirement.name] = str(requirement.specifier).removeprefix("==")
    texts = project["dependencies"] + [t for extra in project["optional-dependencies"].values() for t in extra]
    for requirement in map(Requirement, texts):
        if requirement.name != "snows-core":
            assert requirement.specifier.contains(pins[requirement.name]), requirement


def test_citation_names_this_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == snows_core.__version__
    assert citation["license"] == "MIT"
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lucas", "Mazumder"]
    assert paper["year"] == 2025 and "Hessian-Free" in paper["title"]


def test_installed_version_is_the_packages():
    from importlib import metadata

    assert metadata.version("snows-core") == snows_core.__version__
    (script,) = [e for e in metadata.entry_points(group="console_scripts") if e.name == "snows"]
    assert script.value == "snows_core.cli:main"


def test_types_are_shipped(project):
    assert "Typing :: Typed" in project["classifiers"]
    assert (Path(snows_core.__file__).parent / "py.typed").is_file()
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert content["tool"]["hatch"]["build"]["targets"]["wheel"] == {"packages": ["snows_core"]}  # all that git knows


def tracked_texts() -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".safetensors")]


def test_no_file_names_a_package_index_or_a_place_on_one_machine():
    index_hosts = ("py" + "pi.org", "download." + "pytorch.org", "index-" + "url", "anaconda." + "org")
    places = re.compile(r"(?<![\w.])/(?:root|work|home/\w+|Users/\w+)/\w")
    for path in tracked_texts():
        text = path.read_text(encoding="utf-8")
        assert not [host for host in index_hosts if host in text], path
        assert not places.search(text), (path, places.search(text))


def test_files_stay_small():
    for path in tracked_texts():
        limit = {".ipynb": 500_000}.get(path.suffix, 200_000)
        assert path.stat().st_size < limit, path


def test_scripts_parse_and_run_what_they_should():
    for name in (".ci/run", "binder/postBuild"):
        path = ROOT / name
        assert subprocess.run(["bash", "-n", str(path)]).returncode == 0
        assert path.stat().st_mode & 0o111, f"{name} is not executable"
    ci = (ROOT / ".ci/run").read_text()
    assert ci.startswith("#!/usr/bin/env bash") and "set -euo pipefail" in ci and ci.strip().endswith("exec make test")
    assert "set -e" in (ROOT / "binder/postBuild").read_text()


@pytest.mark.slow
def test_postbuild_in_a_clean_environment(tmp_path):
    """Run Binder's postBuild on a copy of the tracked files; the packages of conda are those of this environment."""
    copy = tmp_path / "snows"
    for path in [*tracked_texts(), *(ROOT / "snows_core").rglob("*.safetensors")]:
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    (packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (packages / "conda.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MPLBACKEND")}
    environment["PATH"] = f"{tmp_path / 'env' / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "binder/postBuild"], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "accuracy=9" in done.stdout
    where = [str(tmp_path / "env" / "bin" / "python"), "-c", "import snows_core; print(snows_core.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert found.startswith(str(copy))


@pytest.mark.parametrize("target", ["figures", "test", "bench", "coverage", "lint", "tidy", "lab", "site", "clean"])
def test_make_targets_set_themselves_up(target):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    plan = subprocess.run(["make", "-n", target, "VENV=no-such-environment"], cwd=ROOT, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    assert ('-c constraints.txt -e ".[dev]"' in plan.stdout) == (target != "clean")
