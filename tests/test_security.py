"""What SECURITY.md promises of the whole package: nothing is unpickled, evaluated, or handed to a shell."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "snows_core").rglob("*.py"), *(ROOT / "tools").rglob("*.py")])
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
LOADERS = {  # calls that may only stand where they are made safe, and where that is
    "torch.load": {"snows_core/files/weights.py"},
    "np.load": set(),
    "numpy.load": set(),
    "pd.read_pickle": set(),
    "yaml.load": set(),
    "yaml.full_load": set(),
    "yaml.unsafe_load": set(),
    "yaml.safe_load": {  # the others read files of this repository
        "snows_core/book/schemas.py",
        "snows_core/export/kernels/rule_file.py",
        "tools/steps.py",
    },
    "json.load": set(),
    "tarfile.open": {"snows_core/zoo/fetch.py"},
    "zipfile.ZipFile": {"snows_core/export/storage/sizes.py"},  # writes, into memory
    "shutil.unpack_archive": set(),
    "os.system": set(),
    "os.popen": set(),
    "eval": set(),
    "exec": set(),
    "compile": set(),
    "__import__": set(),
}


def calls(path):
    """Return (name, call) of every call of a plain or dotted name in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_what_could_run_code_stands_where_it_is_made_safe():
    found = [
        (name, path.relative_to(ROOT).as_posix())
        for path in SOURCES
        for name, _ in calls(path)
        if name in LOADERS and path.relative_to(ROOT).as_posix() not in LOADERS[name]
    ]
    assert not found
    for name, places in LOADERS.items():
        for place in places:
            assert name in [other for other, _ in calls(ROOT / place)], f"{place} has no {name} any more"


def test_no_library_that_unpickles_is_imported():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not UNPICKLERS & {name.split(".")[0] for name in names}, path


def test_torch_load_takes_tensors_alone():
    (call,) = [call for name, call in calls(ROOT / "snows_core/files/weights.py") if name == "torch.load"]
    assert {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}["weights_only"] == "True"


def test_programs_are_started_with_lists_of_words_and_no_shell():
    started = []
    for path in SOURCES:
        for name, call in calls(path):
            assert not any(keyword.arg == "shell" for keyword in call.keywords), path
            if name.startswith("subprocess.") and name.split(".")[1] in ("run", "Popen", "call", "check_output"):
                started.append(path.relative_to(ROOT).as_posix())
                first = call.args[0]
                assert not isinstance(first, ast.Constant | ast.JoinedStr), f"{path}: a text of a shell"
    assert {path for path in started if path.startswith("snows_core")} == {
        "snows_core/provenance.py",
        "snows_core/book/records/real_networks.py",
    }


def test_the_page_names_places_that_are_there_and_how_to_report():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for place in re.findall(r"`([\w/]+\.py)`", text):
        assert (ROOT / "snows_core" / place).is_file() or (ROOT / place).is_file(), place
    for place in re.findall(r"`(\w+)\.(\w+)`", text):
        file = ROOT / "snows_core" / f"{place[0]}.py"
        assert place[1] == "py" or not file.is_file() or f"def {place[1]}" in file.read_text(), place
    assert "Report a vulnerability" in text and "@" not in text
    assert "(SECURITY.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "holds"),
    [
        ("at most 16 MB", lambda: constant("snows_core.files.bounded", "MANIFEST_BYTES") == 16_000_000),
        ("64 MB with pictures", lambda: constant("snows_core.files.bounded", "NOTEBOOK_BYTES") == 64_000_000),
        ("at most 60 levels", lambda: constant("snows_core.files.bounded", "DEEPEST") == 60),
        ("at most 1 MB", lambda: constant("snows_core.book.schemas", "YAML_BYTES") == 1_000_000),
        ("50,000 values", lambda: constant("snows_core.book.schemas", "MOST_NODES") == 50_000),
        ("20 times the bytes", lambda: constant("snows_core.zoo.fetch", "MOST_TIMES") == 20),
        ("200,000 files", lambda: constant("snows_core.zoo.fetch", "MOST_MEMBERS") == 200_000),
        ("eight kinds", lambda: len(constant("snows_core.zoo.image_modes", "FORMATS")) == 8),
        ("three files or one in a hundred", lambda: constant("snows_core.zoo.unreadable", "FEW") == 3),
    ],
)
def test_the_numbers_of_the_page_are_those_of_the_code(words, holds):
    assert words in (ROOT / "SECURITY.md").read_text(encoding="utf-8") and holds()


def constant(module, name):
    from importlib import import_module

    return getattr(import_module(module), name)
