"""The command line: help, exit codes, one sentence for a user's mistake, nothing half-written."""

from __future__ import annotations

import importlib
import io
import json
import shlex

import numpy as np
import pytest
from PIL import Image
from spies import stop_after
from typer.testing import CliRunner

import snows_core.cli
from snows_core.cli import app as cli
from snows_core.cli import commands
from snows_core.errors import SnowsError

FAST = ["--model", "digits-resnet20", "--images", "16", "--layers", "layer3.2.conv2", "--quiet"]
COMMANDS = [
    "prune",
    "compare",
    "compact",
    "evaluate",
    "estimate",
    "reproduce",
    "train",
    "experiments",
    "methods",
    "verify",
]


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_and_defaults(command):
    shown = run(command, "--help")
    assert shown.exit_code == 0
    assert f"Example:\n    snows {command}" in shown.output
    if command not in ("experiments", "methods"):
        assert "[default: " in shown.output


def test_version_and_list_of_commands():
    assert run("--version").output.strip() == f"snows-core {snows_core.__version__}"
    shown = run("--help").output
    assert all(command in shown for command in COMMANDS)


def test_experiments_are_listed():
    shown = run("experiments")
    assert shown.exit_code == 0 and "digits-resnet20" in shown.output and "resnet20" in shown.output


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Return what `snows prune` printed, and where it wrote."""
    out = tmp_path_factory.mktemp("cli") / "pruned"
    return run("prune", *FAST, "--pattern", "1:4", "--k", "1", "--out", out), out


def test_prune_then_evaluate(pruned):
    done, out = pruned
    assert done.exit_code == 0, done.output
    assert "dense accuracy" in done.output and "layer3.2.conv2" in done.output and f"saved to {out}" in done.output
    assert {p.name for p in out.iterdir()} == {"model.safetensors", "masks.safetensors", "manifest.json", "report.csv"}
    manifest = json.loads((out / "manifest.json").read_text())
    sample = manifest["source"]["calibration"]
    assert len(set(sample.pop("indices"))) == 16 and sample == {"data": "digits", "split": "train", "seed": 0}
    assert manifest["source"]["model"] == "digits-resnet20"
    shown = run("evaluate", out)
    assert shown.exit_code == 0, shown.output
    line = next(row for row in shown.output.splitlines() if row.startswith("pruned"))
    measured = manifest["evaluation"]["pruned"]
    assert float(line.split()[1]) == pytest.approx(measured["accuracy"], abs=0.01)
    assert float(line.split()[2]) == pytest.approx(measured["agreement"], abs=0.01)

    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    refused = run("prune", *FAST, "--out", out)
    assert refused.exit_code == 2 and "--overwrite" in refused.stderr and "dense accuracy" not in refused.output
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--model", "digits-resnet21"], "Nearest: digits-resnet20"),
        ([*FAST, "--pattern", "5:4"], "--pattern"),
        ([*FAST, "--pattern", "some"], "--pattern"),
        ([*FAST, "--recipe", "quick"], "--recipe: got 'quick'"),
        ([*FAST, "--images", "100000"], "--images: got 100000; expected at most 1200"),
        ([*FAST, "--device", "cuda:99"], "--device"),
        ([*FAST, "--device", "abacus"], "--device"),
        ([*FAST, "--device", "meta"], "--device: got 'meta'"),
        ([*FAST, "--data", "cifar10"], "data"),
        ([*FAST, "--data", "mnist"], "--data"),
        ([*FAST, "--weights", "nowhere.safetensors"], "--weights"),
        (["--model", "digits-resnet20", "--images", "16", "--quiet", "--layers", "layer9*"], "--layers"),
        ([*FAST, "--set", "stpes=2"], "--set: got 'stpes=2'"),
        ([*FAST, "--set", "steps=two"], "--set: got 'steps=two'; expected an integer"),
        ([*FAST, "--set", "steps=-1"], "--set steps: got -1; expected an integer >= 0"),
        ([*FAST, "--set", "damping=nan"], "--set damping: got nan; expected a finite number >= 0"),
        ([*FAST, "--augment", "--refine", "0"], "--augment: got no --refine"),
        ([*FAST, "--augment", "--effort", "quick"], "--augment: got no --refine"),
        ([*FAST, "--effort", "bset"], "--effort: got 'bset'; expected one of ['quick', 'standard', 'best']"),
        ([*FAST, "--stages", "3"], "--stages: got 3; expected no more stages than 2:4 has steps"),
        ([*FAST, "--stages", "3:4,1:4"], "--stages: got [3:4, 1:4]; expected a list that ends with the pattern, 2:4"),
        ([*FAST, "--mask", "magnitud"], "--mask: got 'magnitud'"),
        ([*FAST, "--update", "adam"], "--update: got 'adam'"),
        ([*FAST, "--leaf-modules", "nosuch"], "--leaf-modules: got 'nosuch'"),
    ],
)
def test_prune_names_the_mistake_and_writes_nothing(tmp_path, arguments, word):
    done = run("prune", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert sentence.startswith("error: ") and word in sentence and "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--k", "-1"],
        ["--images", "0"],
        ["--images", "many"],
        ["--colour", "blue"],
        ["--seed", "x"],
        ["--seed", "99999999999999999999"],
        ["--seed", "-1"],
        ["--max-memory", "much"],
        ["--max-memory", "nan"],
        ["--refine", "-1"],
    ],
)
def test_wrong_options_are_usage_errors(tmp_path, arguments):
    done = run("prune", "--model", "digits-resnet20", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 2 and arguments[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_out_may_not_hold_other_files(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for more in ([], ["--overwrite"]):
        assert run("prune", *FAST, "--out", tmp_path, *more).exit_code == 2
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_wrong_normalisation_stops_before_pruning(tmp_path, monkeypatch):
    monkeypatch.setattr("snows_core.zoo.digits.MEAN", (3.0,))
    done = run("prune", *FAST, "--out", tmp_path / "out")
    assert done.exit_code == 1 and "normalisation" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluate_a_dense_network_or_say_what_is_missing(tmp_path):
    assert "dense" in run("evaluate", "--model", "digits-resnet20").output
    assert "--model" in run("evaluate").stderr
    for folder in (tmp_path, tmp_path / "none"):
        done = run("evaluate", folder)
        assert done.exit_code == 2 and "snows prune" in done.stderr


def test_evaluate_refuses_another_architecture(pruned):
    done = run("evaluate", pruned[1], "--model", "digits-resnet50")
    assert done.exit_code == 2 and "model" in done.stderr and "Traceback" not in done.output


def test_interrupted_pruning_saves_what_is_done(tmp_path, monkeypatch):
    stop_after(monkeypatch, 1)
    out = tmp_path / "out"
    done = run(
        "prune", "--model", "digits-resnet20", "--images", "16", "--k", "0", "--effort", "quick", "-q", "--out", out
    )
    assert done.exit_code == 130 and "solved so far" in done.stderr
    assert not json.loads((out / "manifest.json").read_text())["complete"]
    assert "not reached" in (out / "report.csv").read_text()
    assert run("evaluate", out).exit_code == 0
    monkeypatch.undo()
    again = run(
        "prune", "--model", "digits-resnet20", "--images", "16", "--k", "0", "--effort", "quick", "-q", "--out", out
    )
    assert again.exit_code == 0 and "interrupted run has done: it goes on there" in again.output
    assert json.loads((out / "manifest.json").read_text())["resumed"]["layers"] == 1
    assert not (out / "checkpoint").exists()


def test_interrupted_before_the_first_layer_writes_nothing(tmp_path, monkeypatch):
    stop_after(monkeypatch, 0)
    done = run("prune", *FAST, "--effort", "quick", "--out", tmp_path / "out")
    assert done.exit_code == 130 and "nothing is half-written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupted_measurement_keeps_the_pruned_network(tmp_path, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "evaluate_both", stop)
    done = run("prune", *FAST, "--k", "0", "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_next_step_can_be_pasted(pruned):
    done, out = pruned
    lines = dict(row.split(": ", 1) for row in done.output.splitlines() if row.startswith(("next: ", "in Python: ")))
    shell, python = lines["next"], lines["in Python"]
    assert run(*shlex.split(shell)[1:]).exit_code == 0
    model = eval(python, {"snows_core": snows_core})
    manifest = json.loads((out / "manifest.json").read_text())
    source = commands.Source("digits-resnet20")
    chosen, network, bundle = source.load()
    _, agreement = commands.evaluate_both(model, network, source.judging(chosen, bundle))
    assert agreement.accuracy == pytest.approx(manifest["evaluation"]["pruned"]["accuracy"], abs=1e-9)


def test_train_hands_over_and_reports(tmp_path, monkeypatch):
    asked = {}

    def train(name, out, seed, progress):
        asked.update(name=name, out=out, seed=seed, progress=progress)
        return snows_core.Metrics(images=597, accuracy=98.5)

    monkeypatch.setattr(importlib.import_module("snows_core.zoo.train"), "train", train)
    done = run("train", "digits-resnet20", "--out", tmp_path, "--seed", "3", "-q")
    assert done.exit_code == 0 and "98.50 %" in done.output
    assert asked == {"name": "digits-resnet20", "out": tmp_path, "seed": 3, "progress": False}
    monkeypatch.undo()
    unknown = run("train", "digits-resnet99", "--out", tmp_path)
    assert unknown.exit_code == 2 and "Nearest" in unknown.stderr


def test_a_bug_keeps_its_trace_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(commands, "experiments_frame", lambda: 1 / 0)
    done = run("experiments")
    assert done.exit_code == 1 and done.stderr.startswith("error: unexpected ZeroDivisionError: division by zero.")
    monkeypatch.setenv("SNOWS_TRACE", "1")
    assert isinstance(run("experiments").exception, ZeroDivisionError)


def test_guarded_keeps_the_signature():
    @cli.guarded
    def command(name: str) -> None:
        raise SnowsError(name)

    assert command.__wrapped__.__name__ == "command"


def test_unlabelled_images_are_measured_by_agreement():
    lines = []
    source = commands.Source("digits-resnet20")
    chosen, model, bundle = source.load()
    bundle.train.labelled = bundle.test.labelled = False
    dense = commands.check_dense(chosen, model, bundle, source.judging(chosen, bundle), None, lines.append)
    assert dense.accuracy is None and dense.images == 597 and "no labels" in lines[0]


def test_estimate_prints_a_row_per_layer_and_the_sums():
    asked = ["estimate", "--model", "digits-resnet20", "--pattern", "1:4", "--images", "64"]
    shown = run(*asked, "--stage-k", "2", "--mask", "magnitude")
    assert shown.exit_code == 0
    # 18 layers of 7 products in the last stage, and of 4 in each of two stages before.
    assert shown.output.count("layer1.") == 6 and "in all: 270 products" in shown.output
    assert shown.output.count("(joint refinement)") == 1
    quick = run(*asked, "--effort", "quick")
    assert "in all: 126 products" in quick.output and "(joint" not in quick.output


@pytest.mark.parametrize("option", ["--mask", "--update"])
def test_a_method_that_is_not_there_is_refused_before_any_work(option, tmp_path):
    done = run("prune", *FAST, option, "snowz", "--out", tmp_path / "out")
    assert done.exit_code == 2 and done.stderr.startswith(f"error: {option}: got 'snowz'") and not done.stdout


def test_images_that_cannot_be_read_are_counted_and_no_position_of_theirs_is_recorded(tmp_path, monkeypatch):
    """Four images a digit: one for calibration and one for judging are no images."""
    rng = np.random.RandomState(0)
    for digit in range(10):
        (tmp_path / "images" / str(digit)).mkdir(parents=True)
        for i in range(4):
            pixels = Image.fromarray(rng.randint(0, 256, (16, 16), dtype=np.uint8))
            pixels.save(tmp_path / "images" / str(digit) / f"{i}.png")
    (tmp_path / "images" / "0" / "0.png").write_bytes(b"no image")  # the first of the test images
    (tmp_path / "images" / "0" / "1.png").write_bytes(b"no image")  # and of the others
    out = tmp_path / "out"
    done = run("prune", *FAST, "--images", "32", "--k", "0", "--data", f"folder:{tmp_path / 'images'}", "--out", out)
    assert done.exit_code == 0, done.output
    for name in ("0.png", "1.png"):
        assert f"warning: an image was left out: {tmp_path / 'images' / '0' / name} cannot be read" in done.stderr
    manifest = json.loads((out / "manifest.json").read_text())
    calibration = manifest["source"]["calibration"]
    assert sorted(calibration["indices"]) == list(range(1, 32)) and calibration["unreadable"] == 1
    sample = manifest["evaluation"]["sample"]
    assert (sample["images"], sample["of"], sample["unreadable"]) == (7, 8, 1)
    assert manifest["evaluation"]["pruned"]["images"] == manifest["evaluation"]["dense"]["images"] == 7
    assert manifest["calibration"]["images"] == 31
    compared = tmp_path / "compared"
    words = ["--data", f"folder:{tmp_path / 'images'}", "--masks", "magnitude", "--updates", "none", "--out", compared]
    done = run("compare", "--model", "digits-resnet20", "--images", "32", "--layers", "layer3.2.conv2", "-q", *words)
    assert done.exit_code == 0, done.output
    record = json.loads((compared / "results.json").read_text())["source"]
    assert record["calibration"] == calibration and record["test"] == sample


def test_the_command_says_what_no_command_has_caught(monkeypatch, capsys):
    monkeypatch.setattr(cli, "main", lambda: 1 / 0)
    with pytest.raises(SystemExit, match=r"^error: unexpected ZeroDivisionError: division by zero\. SNOWS_TRACE=1"):
        snows_core.cli.main()
    monkeypatch.setenv("SNOWS_TRACE", "1")
    with pytest.raises(ZeroDivisionError):
        snows_core.cli.main()


def test_names_that_the_terminal_cannot_show_are_spelled_out(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(shown, encoding="ascii"))
    monkeypatch.setattr(cli, "main", lambda: print("saved to \udcff/\u00fc", flush=True))
    snows_core.cli.main()
    assert shown.getvalue() == b"saved to \\udcff/\\xfc\n"
