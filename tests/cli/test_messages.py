"""messages.py: what the package says about arguments, in the words that were typed."""

from __future__ import annotations

import errno

import pytest
import typer
from typer.testing import CliRunner

from snows_core.cli import app as cli
from snows_core.cli.messages import Typed, as_typed, guarded, typed_options
from snows_core.cli.options import MaxMemory
from snows_core.errors import SnowsError, cannot_go_on, invalid_argument

PRUNE = typed_options(cli.prune_command)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("max_memory: got 'much'; expected bytes.", "--max-memory: got 'much'; expected bytes."),
        ("data_root: got 'x'.", "--data-root: got 'x'."),
        ("pattern: got '5:4'.", "--pattern: got '5:4'."),
        ("k: got -1; expected an integer >= 0. Use k=0.", "--k: got -1; expected an integer >= 0. Use --k 0."),
        ("steps: got -1; expected an integer >= 0.", "--set steps: got -1; expected an integer >= 0."),
        ("option: got 'stpes'.", "--set: got 'stpes'."),
        (
            "folder: got /x. Choose another name, or pass overwrite=True.",
            "--out: got /x. Choose another name, or pass --overwrite.",
        ),
        ("experiment: got 'resnet21'.", "--model: got 'resnet21'."),
        ("n: got 100; expected at most 20.", "--images: got 100; expected at most 20."),
        ("Pass weights='<path>' to a local file.", "Pass --weights <path> to a local file."),
        ("Leave it dense: exclude=['head.fc'].", "Leave it dense: --exclude head.fc."),
        ("Name them: exclude=['a', \"b*\"] or so.", "Name them: --exclude a --exclude 'b*' or so."),
        ("Mark it: leaf_modules=['blocks.0.attn'] (dense).", "Mark it: --leaf-modules blocks.0.attn (dense)."),
        ("Try curvature_images=None, ridge=1e-2.", "Try --set curvature_images=None, --set ridge=1e-2."),
        ("not among layers=", "not among --layers"),
        ("Give device='cuda:1'.", "Give --device cuda:1."),
        # What is no option, or means something else in Python, stays as it is.
        ("images: got shape (2, 3, 8, 8); expected (N, C).", "images: got shape (2, 3, 8, 8); expected (N, C)."),
        (
            "images: got 3 images with NaN; expected finite values.",
            "images: got 3 images with NaN; expected finite values.",
        ),
        ("labels: got 'a'; pass images=x.", "labels: got 'a'; pass images=x."),
        ("--set: got 'x'. For instance --set steps=2.", "--set: got 'x'. For instance --set steps=2."),
        ("got '/tmp/k=5/x' and my.layers=3", "got '/tmp/k=5/x' and my.layers=3"),
        ("leaf_modules=[Attention] is a class", "leaf_modules=[Attention] is a class"),
        ("device=torch.device('cpu')", "device=torch.device('cpu')"),
        ("layers=lambda name, module: True", "layers=lambda name, module: True"),
        ("Nothing was changed.", "Nothing was changed."),
        ("", ""),
    ],
)
def test_arguments_are_named_as_typed(message, shown):
    assert as_typed(message, PRUNE) == shown


def test_a_command_knows_its_own_options_only():
    evaluate = typed_options(cli.evaluate_command)
    assert "max_memory" not in evaluate and "out" not in evaluate and evaluate["weights"] == Typed("--weights")
    assert as_typed("folder: got 'x'.", evaluate) == "folder: got 'x'."  # an argument without a name
    assert as_typed("steps: got 'x'.", evaluate) == "steps: got 'x'."
    assert PRUNE["overwrite"] == Typed("--overwrite", switch=True) and PRUNE["settings"].flag == "--set"


def app_of(error):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @guarded
    def command(max_memory: MaxMemory = None) -> None:
        raise error

    return CliRunner().invoke(app, [])


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (invalid_argument("max_memory", "'much'", "bytes"), 2, "error: --max-memory: got 'much'; expected bytes."),
        (SnowsError("Something else."), 1, "error: Something else."),
        (PermissionError(13, "Permission denied", "/x"), 1, "error: [Errno 13] Permission denied: '/x'"),
        (KeyboardInterrupt(), 130, "interrupted: what was finished before is kept, nothing is half-written"),
        (MemoryError(), 1, "error: memory ran out. Use fewer --images, or less --max-memory."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "error: memory ran out."),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "error: memory ran out."),
        (
            RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later. Compile"),
            1,
            "error: the device stopped working (CUDA error: unspecified launch failure CUDA kernel errors",
        ),
        (RuntimeError("NCCL error: remote process exited"), 1, "error: the device stopped working (NCCL error: remote"),
        (OSError(28, "No space left on device"), 1, "error: [Errno 28] No space left on device"),
    ],
)
def test_mistakes_end_in_one_sentence(error, code, said):
    done = app_of(error)
    assert done.exit_code == code and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert "Traceback" not in done.output


def test_bugs_are_one_sentence_that_says_how_to_see_the_trace(monkeypatch):
    for error in (RuntimeError("shapes\ndiffer"), TypeError("x"), ZeroDivisionError(), RecursionError("too deep")):
        monkeypatch.delenv("SNOWS_TRACE", raising=False)
        done = app_of(error)
        assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "SNOWS_TRACE=1" in done.stderr
        assert done.stderr.startswith(f"error: unexpected {type(error).__name__}")
        monkeypatch.setenv("SNOWS_TRACE", "1")
        assert app_of(error).exception is error


def test_an_option_that_has_to_be_another_one_is_told_from_a_run_that_cannot_go_on():
    full = invalid_argument("max_memory", "'/out', which cannot be written", "a folder")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error, code in (
        (invalid_argument("max_memory", 1, "more"), 2),
        (invalid_argument("--max-memory", 1, "more"), 2),
        (invalid_argument("steps", 1, "more"), 1),  # no option of this command
        (cannot_go_on("max_memory", "a damaged file", "a whole one"), 1),
        (SnowsError("max_memory: damaged."), 1),
        (full, 1),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), 1),
    ):
        assert app_of(error).exit_code == code, error
