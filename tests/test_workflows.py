"""What continuous integration, pre-commit and `make lint` run is the same, and the workflows say what they should."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = ROOT / ".github" / "workflows"


def workflow(name: str) -> dict:
    content = yaml.safe_load((WORKFLOWS / f"{name}.yml").read_text(encoding="utf-8"))
    content["on"] = content.pop(True)  # YAML 1.1 reads the key `on` as a truth value
    return content


def commands(job: dict) -> list[str]:
    return [step["run"].strip() for step in job["steps"] if "run" in step]


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile, without the folder of the environment."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.search(rf"^{target}:[^\n]*\n((?:\t[^\n]*\n)+)", text, re.MULTILINE)
    return [line.strip().replace("$(BIN)/", "") for line in found[1].splitlines()]


@pytest.mark.parametrize("name", ["ci", "docs", "release"])
def test_workflows_parse_and_ask_for_no_more_than_they_need(name):
    content = workflow(name)
    assert content["name"] and content["on"] and content["permissions"] == {"contents": "read"}
    for job in content["jobs"].values():
        assert job["runs-on"] == "ubuntu-latest"
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)", step.get("uses", "a/b@v1"))
            assert "secrets." not in str(step)


def test_ci_lints_by_make_lint_and_so_do_pre_commit_and_make_test():
    assert commands(workflow("ci")["jobs"]["lint"]) == ["make lint"]
    content = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in content["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == recipe("lint")
    assert all(hook["pass_filenames"] is False for hook in hooks)
    assert recipe("test")[:2] == ["ruff check .", "ruff format --check ."]  # the rest of lint is among the tests
    for command in ("ruff check .", "ruff format --check .", "mypy", "lint-imports"):
        assert command in recipe("lint")


def test_ci_tests_two_pythons_and_the_oldest_and_newest_pytorch():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    matrix = workflow("ci")["jobs"]["test"]["strategy"]["matrix"]
    assert len(matrix["python"]) == 2 and matrix["torch"] == ["oldest", "newest"]
    assert min(map(Version, matrix["python"])) == Version(project["requires-python"].removeprefix(">="))
    texts = project["dependencies"] + project["optional-dependencies"]["zoo"]
    lowest = {r.name: str(r.specifier).removeprefix(">=") for r in map(Requirement, texts)}
    pins = {row["torch"]: row["pins"].split() for row in matrix["include"]}
    assert pins["oldest"] == [f"{name}=={lowest[name]}.*" for name in ("torch", "torchvision")]
    assert pins["newest"] == ["torch", "torchvision"]


def test_pages_are_built_by_make_site_and_published_from_main_alone():
    jobs = workflow("docs")["jobs"]
    assert commands(jobs["build"]) == ["make site"] and jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["if"] == "github.ref == 'refs/heads/main'"
    assert jobs["publish"]["permissions"] == {"pages": "write", "id-token": "write"}


def test_a_release_is_built_checked_and_published_without_a_password():
    content = workflow("release")
    assert content["on"] == {"push": {"tags": ["v*"]}}
    build, publish = (content["jobs"][name] for name in ("build", "publish"))
    assert any("twine check --strict" in command and "__version__" in command for command in commands(build))
    assert publish["needs"] == "build" and publish["permissions"] == {"id-token": "write"}
    assert "with" not in publish["steps"][-1] and publish["steps"][-1]["uses"].startswith(
        "pypa/gh-action-pypi-publish@"
    )
