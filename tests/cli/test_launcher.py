"""The command line in several processes: who speaks, and how all of them end."""

import os
import socket
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import snows_core
from snows_core import cli
from snows_core.cli import launcher
from snows_core.cli.launcher import launched_processes, run_launched

LAUNCHED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
SMALL = ["--model", "digits-resnet20", "--images", "33", "--layers", "layer3.2.*", "--effort", "quick", "--quiet"]


@pytest.mark.parametrize(
    "missing, found",
    [
        ({}, (1, 2)),
        ({"RANK": None}, (0, 1)),
        ({"RANK": "first"}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"WORLD_SIZE": ""}, (0, 1)),
        ({"MASTER_ADDR": None}, (0, 1)),
    ],
)
def test_a_launcher_is_known_by_its_variables(missing, found):
    given = {name: value for name, value in {**LAUNCHED, **missing}.items() if value is not None}
    assert launched_processes(given) == found


@pytest.mark.parametrize("command", ["compare", "evaluate", "none"])
def test_a_command_that_processes_cannot_share_is_refused_once(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["snows", *([] if command == "none" else [command])])
    for rank in (0, 1):
        with pytest.raises(SystemExit) as end:
            run_launched(pytest.fail, rank, 2)
        assert end.value.code == 2
    sentence = f"error: command: got '{command}' in 2 processes; expected 'prune'."
    assert capsys.readouterr().err.count(sentence) == 1


def speak(code):
    print("on the way")
    print("error: it is wrong\nand so on", file=sys.stderr)
    raise SystemExit(code)


@pytest.mark.parametrize(
    "rank, code, out, err",
    [
        (0, 0, "on the way\n", "error: it is wrong\nand so on\n"),
        (0, 1, "on the way\n", "error: it is wrong\nand so on\n"),
        (1, 0, "", ""),
        (1, 1, "", "process 1: error: it is wrong\nprocess 1: and so on\n"),
    ],
)
def test_the_first_process_speaks_and_another_one_of_what_ended_it(rank, code, out, err, monkeypatch, capsys):
    monkeypatch.setattr(launcher, "PAUSE", 0.0)
    with pytest.raises(SystemExit), launcher._first_speaks(rank):
        speak(code)
    assert capsys.readouterr() == (out, err)


def test_the_command_line_joins_the_processes_of_a_launcher(monkeypatch):
    seen = []
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launcher, "run_launched", lambda run, rank, world: seen.append((rank, world)))
    cli.main()
    assert seen == [(1, 2)]


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "snows_core", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == f"snows-core {snows_core.__version__}"


def begun(out, more=(), world=2, limit=60):
    """Begin `python -m snows_core prune` in several processes, as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    shared |= {"OMP_NUM_THREADS": "1", "SNOWS_PROCESS_TIMEOUT": str(limit)}
    command = [sys.executable, "-m", "snows_core", "prune", *SMALL, *more, "--pattern", "2:4", "--k", "1", "--out", out]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes, seconds=120):
    """Return what the processes have printed, and how they ended; none is left."""
    try:
        told = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, told, strict=True)]


@pytest.mark.slow
def test_two_processes_prune_from_the_command_line_as_one_does(tmp_path):
    (code, out, _), (code1, out1, err1) = ended(begun(tmp_path / "two"))
    assert (code, code1, out1, err1) == (0, 0, "", "") and f"saved to {tmp_path / 'two'}" in out
    assert ended(begun(tmp_path / "one", world=1))[0][0] == 0
    two, one = (load_file(tmp_path / name / "model.safetensors") for name in ("two", "one"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4)
    masks = [load_file(tmp_path / name / "masks.safetensors") for name in ("two", "one")]
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


@pytest.mark.slow
def test_a_mistake_of_all_ends_all_and_a_folder_is_looked_at_once(tmp_path):
    (tmp_path / "there").write_text("a file")
    start = time.monotonic()
    (code, _, err), (code1, _, err1) = ended(begun(tmp_path / "there"))
    assert code == code1 == 1 and time.monotonic() - start < 60
    assert err.startswith("error: --out: ") and err1 == f"process 1: {err}"


@pytest.mark.slow
def test_where_a_process_is_killed_the_first_one_ends_with_a_sentence(tmp_path):
    processes = begun(tmp_path / "out", ["--layers", "*", "--images", "999"], limit=20)
    for line in processes[0].stdout:
        if "dense accuracy" in line:
            break
    processes[1].kill()
    killed = time.monotonic()
    (code, _, err), (code1, *_) = ended(processes)
    assert code == 1 and code1 < 0 and time.monotonic() - killed < 60
    assert "error: several processes: another one ended, or did not answer" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()
