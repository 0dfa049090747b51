"""`snows reproduce` on notebooks made on the spot: what it refuses, what it finds out, what it leaves behind."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from snows_core.book import profiles
from snows_core.book.checks import check_after, declared_parameters, find_notebooks, read_notebook
from snows_core.book.expected import load_expected
from snows_core.book.profiles import Needs, check_needs, load_profile
from snows_core.book.reproduce import notebooks_folder, profiles_table, reproduce
from snows_core.cli import app as cli
from snows_core.errors import SnowsError

PARAMETERS = 'profile = "digits"\nsize = 2'
WRITE = """
import json, os, pathlib
folder = pathlib.Path(os.environ["SNOWS_FIGURES"]) / NAME
folder = folder if profile == "digits" else folder / profile
folder.mkdir(parents=True, exist_ok=True)
(folder / "a.png").write_bytes(b"png")
record = {"notebook": NAME, "profile": profile, "metrics": {"size": size}, "figures": ["a.png"], "provenance": {}}
(folder / "metrics.json").write_text(json.dumps(record))
"""


class Book:
    """A folder of notebooks beside a folder of figures."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.figures = root, root / "notebooks", root / "figures"
        (self.folder / "profiles").mkdir(parents=True)

    def add(self, name, *code, parameters=(PARAMETERS,), kernel="python3"):
        cells = [nbformat.v4.new_markdown_cell(f"# {name}")]
        cells += [nbformat.v4.new_code_cell(p, metadata={"tags": ["parameters"]}) for p in parameters]
        cells += [nbformat.v4.new_code_cell(part.replace("NAME", repr(name))) for part in code]
        spec = {"name": kernel, "display_name": kernel, "language": "python"}
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": spec})
        nbformat.write(notebook, self.folder / f"{name}.ipynb")
        return self.folder / f"{name}.ipynb"

    def profile(self, name, profile, **content):
        (self.folder / "profiles" / f"{name}.{profile}.yaml").write_text(yaml.safe_dump(content))

    def expect(self, name, profile="digits", **metrics):
        self.figures.mkdir(exist_ok=True)
        (self.figures / "expected.yaml").write_text(yaml.safe_dump({name: {profile: metrics}}))

    def reproduce(self, *names, **options):
        return reproduce(names, notebooks=self.folder, figures=self.figures, progress=False, **options)

    def run_record(self, name, profile="digits"):
        return json.loads((self.root / "runs" / f"{name}-{profile}.json").read_text())


@pytest.fixture
def book(tmp_path):
    return Book(tmp_path)


def test_a_failed_notebook_leaves_the_others_and_names_its_cell(book, monkeypatch):
    book.add("01_good", WRITE, f"import sys; assert sys.executable == {sys.executable!r}")
    book.add("02_bad", "1 + 1", "raise ValueError('the third\\nline')", WRITE)
    book.expect("01_good", size={"value": 3, "tolerance": 1.5, "reason": "made up"})
    monkeypatch.setenv("MPLBACKEND", "Agg")
    summary = book.reproduce()
    table = summary.metrics_table()
    columns = ["notebook", "metric", "value", "expected", "verdict"]
    assert table[columns].values.tolist() == [["01_good", "size", 2, 3, "ok"]]
    assert list(summary.runs_table()["status"]) == ["ok", "failed"]
    (reason,) = summary.failures
    assert "02_bad: cell 4 (In [3]) failed: ValueError: the third The executed" in reason
    assert book.run_record("01_good")["failures"] == [] and book.run_record("02_bad")["failures"] == [reason]
    assert {"torch", "snows-core"} <= book.run_record("02_bad")["provenance"]["versions"].keys()
    assert (book.root / "runs" / "02_bad-digits.ipynb").is_file()
    assert (book.figures / "01_good" / "a.png").is_file() and not (book.figures / "02_bad").exists()
    assert os.environ["MPLBACKEND"] == "Agg" and "SNOWS_FIGURES" not in os.environ


def test_a_profile_injects_its_parameters_and_has_its_own_folder(book):
    book.add("01_good", WRITE, "if size == 7: raise KeyError('seven')")
    book.add("02_other", WRITE)
    book.profile("01_good", "big", description="Larger.", needs={"minutes": 1}, parameters={"size": 5})
    assert book.reproduce(profile="big").runs_table().values.tolist()[0][:2] == ["01_good", "big"]
    assert json.loads((book.figures / "01_good" / "big" / "metrics.json").read_text())["metrics"] == {"size": 5}
    assert book.run_record("01_good", "big")["parameters"] == {"size": 5, "profile": "big"}
    book.profile("01_good", "seven", parameters={"size": 7})
    (reason,) = book.reproduce("1", profile="seven").failures
    assert "01_good: cell 4 (In [4]) failed: KeyError" in reason  # the cell of the notebook, not of the injected copy


def test_stale_and_missing_files_are_failures(book):
    book.add("01_stale", WRITE, "os.utime(folder / 'a.png', (1e9, 1e9))")
    book.add("02_none", "pass")
    stale, none = book.reproduce().failures
    assert "a.png: older than the run" in stale
    assert "metrics.json: the notebook ended without writing it" in none


def test_off_and_missing_metrics_fail_with_the_numbers(book):
    book.add("01_good", WRITE)
    book.expect("01_good", size={"value": 3, "tolerance": 0.5}, depth={"value": 1, "tolerance": 0})
    shown = CliRunner().invoke(
        cli.app, ["reproduce", "01", "--notebooks", str(book.folder), "--figures", str(book.figures), "-q"]
    )
    assert shown.exit_code == 1
    assert "size is 2, expected 3 within 0.5" in shown.stderr and "depth was not recorded" in shown.stderr
    assert "missing" in shown.stdout and "off" in shown.stdout


def test_a_cell_that_hangs_and_a_kernel_that_dies(book):
    book.add("01_hangs", "import time; time.sleep(60)")
    book.add("02_dies", "import os; os._exit(1)")
    hangs, dies = book.reproduce(timeout=1).failures
    assert "longer than 1 s" in hangs and "--timeout" in hangs
    assert "kernel died" in dies


def test_interruption_stops_after_the_current_notebook(book, monkeypatch):
    book.add("01_first", WRITE)
    book.add("02_second", WRITE)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("snows_core.book.reproduce"), "_execute", stop)
    shown = CliRunner().invoke(cli.app, ["reproduce", "--notebooks", str(book.folder), "--figures", str(book.figures)])
    assert shown.exit_code == 130 and "01_first: interrupted" in shown.stderr
    assert not (book.root / "runs" / "02_second-digits.json").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"parameters": ()}, "0 cells tagged"),
        ({"parameters": (PARAMETERS, PARAMETERS)}, "2 cells tagged"),
        ({"parameters": ("size = 2",)}, "profile"),
        ({"parameters": (PARAMETERS + "\nsize = max(1, 2)",)}, "name = literal"),
        ({"parameters": (PARAMETERS + "\nimport os",)}, "name = literal"),
        ({"parameters": (PARAMETERS + "\nsize = (",)}, "no Python"),
        ({"kernel": "julia-1.9"}, "julia-1.9"),
    ],
)
def test_unfit_notebooks_are_refused_before_any_runs(book, options, word):
    book.add("01_good", WRITE)
    book.add("02_unfit", WRITE, **options)
    with pytest.raises(SnowsError, match=word):
        book.reproduce()
    assert not book.figures.exists() and not (book.root / "runs").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ({"parameters": {"siez": 3}}, "siez.*Nearest: size"),
        ({"parameters": {"profile": "other"}}, "profile"),
        ({"parametres": {}}, "parametres"),
        ({"needs": {"minutes": "long"}}, "minutes"),
        ({"needs": {"gigabytes": 1e6}}, "memory"),
        ({"needs": {"disk_gigabytes": 1e9}}, "disk"),
        ({"needs": {"data": ["imagenet"]}}, "ImageNet.*snows reproduce 01"),
    ],
)
def test_unfit_profiles_are_refused(book, content, word, monkeypatch):
    monkeypatch.delenv("SNOWS_DATA", raising=False)
    book.add("01_good", WRITE)
    book.profile("01_good", "big", **content)
    with pytest.raises(SnowsError, match=word):
        book.reproduce(profile="big")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SnowsError, match=r"needs a CUDA device.*imagenet, about 30 minutes, 40 GB of GPU memory"):
        check_needs("04_x", "imagenet", Needs(data=["imagenet"], gpu=True, minutes=30, gigabytes=40))


def test_unknown_names_and_profiles(book):
    book.add("01_good", WRITE)
    book.profile("01_good", "cifar")
    for names, options, word in (
        (("7",), {}, "'7'"),
        (("01_god",), {}, "Nearest: 01_good"),
        ((), {"profile": "cifra"}, "cifar"),
        (("01",), {"profile": "cifra"}, "Nearest: cifar"),
    ):
        with pytest.raises(SnowsError, match=word):
            book.reproduce(*names, **options)
    with pytest.raises(SnowsError, match="NN_title"):
        find_notebooks(book.root / "nowhere")
    (book.folder / "03_broken.ipynb").write_text("{")
    with pytest.raises(SnowsError, match="cannot be read"):
        book.reproduce()


def test_the_list_of_notebooks(book):
    book.add("01_good", WRITE)
    book.profile("01_good", "cifar", description="Real images.", needs={"data": ["cifar10"], "network": True})
    shown = CliRunner().invoke(cli.app, ["reproduce", "--list", "--notebooks", str(book.folder)])
    assert shown.exit_code == 0 and "Real images." in shown.output and "a network the first time" in shown.output


def test_every_notebook_says_its_own_time():
    folder = notebooks_folder()
    needs = {n.stem: load_profile(n.stem, "digits", folder).needs for n in find_notebooks(folder)}
    assert all(need.minutes for need in needs.values()) and len({need.minutes for need in needs.values()}) > 2
    table = profiles_table().query("profile == 'digits'").set_index("notebook")["needs"]
    assert table["01_obs_background"] == "about 30 seconds, 1.5 GB of memory"
    assert table["02_hessian_free_newton_cg"].startswith("about 1 minute,")


def test_times_are_said_where_they_are_known():
    said = {minutes: Needs(minutes=minutes).sentence() for minutes in (None, 0.25, 1, 1.5, 120)}
    assert said == {
        None: "1.5 GB of memory",
        0.25: "about 15 seconds, 1.5 GB of memory",
        1: "about 1 minute, 1.5 GB of memory",
        1.5: "about 1.5 minutes, 1.5 GB of memory",
        120: "about 120 minutes, 1.5 GB of memory",
    }


def test_the_default_profile_may_only_say_what_it_needs(book):
    book.add("01_good", WRITE)
    book.profile("01_good", "digits", description="Small.", needs={"minutes": 3})
    loaded = load_profile("01_good", "digits", book.folder)
    assert loaded.parameters == {} and loaded.needs.sentence().startswith("about 3 minutes")
    book.profile("01_good", "digits", parameters={"size": 3})
    with pytest.raises(SnowsError, match=r"01_good\.digits\.yaml: parameters: got size; expected none"):
        book.reproduce()


@pytest.mark.parametrize("timeout", ["nan", "inf", "1e999"])
def test_a_time_that_never_ends_is_refused(book, timeout):
    book.add("01_good", WRITE)
    arguments = ["reproduce", "--notebooks", str(book.folder), "--figures", str(book.figures), "--timeout", timeout]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code in (1, 2) and "--timeout" in done.stderr and "Traceback" not in done.output
    assert not (book.root / "runs").exists()


def test_parameters_are_read_without_running(book):
    path = book.add("01_good", parameters=('profile: str = "digits"\nsparsities = [0.5,\n  -0.9]  # why\n',))
    assert declared_parameters(read_notebook(path)) == {"profile": "digits", "sparsities": [0.5, -0.9]}


@pytest.mark.parametrize(
    "text", ["a: [", "a: {digits: {x: {value: 1}}}", "a: 3", "a: {digits: {x: {value: 1, tolerance: -1}}}"]
)
def test_expected_values_follow_a_schema(tmp_path, text):
    (tmp_path / "expected.yaml").write_text(text)
    with pytest.raises(SnowsError, match=r"expected\.yaml"):
        load_expected(tmp_path / "expected.yaml")


def test_a_record_of_another_run_is_refused(tmp_path):
    record = {"notebook": "01_a", "profile": "digits", "metrics": {"x": 1}, "figures": ["a.png"]}
    (tmp_path / "a.png").write_bytes(b"")
    for change, word in (
        ({"profile": "cifar"}, "profile cifar"),
        ({"figures": []}, r"figures \[\]"),
        ({"metrics": None}, "metrics: got None"),
        ({"metrics": {}}, "metrics {}"),
        ({"metrics": {"x": "1"}}, r"metrics\.x"),
        ({"figures": [1]}, r"figures\.0: got 1"),
        ({"figures": ["../a.png"]}, r"figures\.0: got '\.\./a\.png'"),
        ({"figures": [".hidden"]}, r"figures\.0"),
        ({"provenance": 3}, "provenance: got 3"),
        ({"figures": ["b.png"]}, r"b\.png"),
    ):
        (tmp_path / "metrics.json").write_text(json.dumps({**record, **change}))
        with pytest.raises(SnowsError, match=word):
            check_after(tmp_path, "01_a", "digits", 0.0)


def test_broken_yaml_and_the_default_profile(book):
    assert load_profile("01_a", "digits", book.folder).parameters == {}
    (book.folder / "profiles" / "01_a.x.yaml").write_text("a: [")
    with pytest.raises(SnowsError, match=r"01_a\.x\.yaml"):
        load_profile("01_a", "x", book.folder)
    assert profiles.profiles_of("01_a", book.folder) == ["digits", "x"]
