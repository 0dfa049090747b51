"""prune(checkpoint_dir=): a run that is killed at any moment goes on, and ends as one that was let alone."""

import errno
import random
import shutil
import signal
import warnings

import pytest
import torch
from killed_runs import CASES, prune, run
from safetensors.torch import load_file
from spies import stop_after
from toys import random_images, random_mask, same, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.files import journal as journal_module
from snows_core.files.journal import Journal
from snows_core.methods.snows import Snows

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
KILLED = -signal.SIGKILL
TIMES = {"seconds"}


@pytest.fixture(scope="module", params=CASES)
def whole(request, tmp_path_factory):
    """A case, the folder of its unbroken result, and how long that was computed."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(prune, request.param, None, folder / "out") == 0
    return request.param, folder / "out", float((folder / "out.seconds").read_text())


def assert_equal(out, whole):
    for name in ("model.safetensors", "masks.safetensors"):
        assert same(load_file(out / name), load_file(whole / name)), name
    one, other = snows.load(out), snows.load(whole)
    for column in one.report.columns.difference(TIMES):
        assert one.report[column].equals(other.report[column]), column
    records = [[{**r, "seconds": 0} for r in result.manifest["stage_records"]] for result in (one, other)]
    assert records[0] == records[1] and one.complete
    for entry in ("gradients", "flops", "allocation", "refinement", "calibration"):
        assert one.manifest.get(entry) == other.manifest.get(entry), entry


def test_a_run_killed_at_random_moments_ends_as_one_let_alone(whole, tmp_path):
    """Two or three kills a case, 20 in all."""
    case, unbroken, seconds = whole
    moments, kills = random.Random(case), 0
    while kills < 2 + (list(CASES).index(case) < 4):
        code = run(prune, case, tmp_path / "kept", tmp_path / "out", None, moments.uniform(0.1, 0.8) * seconds)
        kills += code == -signal.SIGVTALRM
        if code == 0:  # little was left: begin anew
            shutil.rmtree(tmp_path / "kept")
            shutil.rmtree(tmp_path / "out")
    assert run(prune, case, tmp_path / "kept", tmp_path / "out") == 0
    assert_equal(tmp_path / "out", unbroken)


@pytest.mark.parametrize("whole", ["the published recipe", "masks that move under Adam"], indirect=True)
def test_a_kill_between_two_records_loses_one_of_them(whole, tmp_path):
    case, unbroken, _ = whole
    for count in (1, 2, 3):
        assert run(prune, case, tmp_path / "kept", tmp_path / "out", count) == KILLED
    assert run(prune, case, tmp_path / "kept", tmp_path / "out") == 0
    assert_equal(tmp_path / "out", unbroken)
    assert not [path for path in (tmp_path / "kept").iterdir() if path.name.startswith(".snows-")]


def pruned(folder, model=None, **options):
    options = {"pattern": 0.7, "k": 1, "progress": False, "effort": "quick", **options}
    return snows.prune(
        model or small_resnet(), options.pop("images", random_images(12)), checkpoint_dir=folder, **options
    )


def records(folder):
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_a_finished_run_is_read_and_not_computed_again(tmp_path, monkeypatch):
    first = pruned(tmp_path, refine=3)
    solved = stop_after(monkeypatch, 0)
    again = pruned(tmp_path, refine=3)
    assert not solved and same(again.state, first.state) and again.complete
    assert again.manifest["resumed"] == {"stage": 1, "layers": 5, "joint_step": 3} and "resumed" not in first.manifest


@pytest.mark.parametrize("refine", [0, 12])
def test_an_interrupted_run_goes_on_and_says_so(tmp_path, monkeypatch, capsys, refine):
    whole = pruned(None, refine=refine)
    stop_after(monkeypatch, 2)
    assert not pruned(tmp_path, refine=refine).complete
    monkeypatch.undo()
    resumed = pruned(tmp_path, refine=refine, progress=True)
    assert "goes on behind 2 solved layers" in capsys.readouterr().err
    assert same(resumed.state, whole.state)


def changed_model():
    model = small_resnet()
    with torch.no_grad():
        model.fc.bias[0] += 1e-3
    return model


@pytest.mark.parametrize(
    "change, words",
    [
        ({"pattern": 0.8}, "pattern unstructured 0.7, not unstructured 0.8"),
        ({"k": 2}, "k 1, not 2"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"ridge": 1e-2}, "recipe.ridge 0.001, not 0.01"),
        ({"images": random_images(12, seed=5)}, "calibration.digest"),
        ({"images": random_images(11)}, "calibration.images 12, not 11"),
        ({"model": changed_model()}, "weights"),
        ({"layers": ["layer1.*"]}, "layers"),
        ({"refine": 5}, "refine 0, not 5"),
        ({"mask": "wanda"}, "mask magnitude, not wanda"),
        ({"masks": {"layer1.conv1": random_mask((4, 4, 3, 3))}}, "pattern unstructured 0.7, not given masks"),
    ],
)
def test_another_run_is_refused_with_the_difference_named(tmp_path, change, words):
    pruned(tmp_path)
    before = records(tmp_path)
    with pytest.raises(SnowsError, match=r"checkpoint_dir: got .* which holds a run with ") as found:
        pruned(tmp_path, **change)
    assert words in str(found.value) and records(tmp_path) == before


def test_a_damaged_record_is_seen_and_computed_anew(tmp_path):
    whole = pruned(tmp_path)
    third = tmp_path / records(tmp_path)[2]
    content = bytearray(third.read_bytes())
    content[-3] ^= 1  # one bit of a mask or weight
    third.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged .*; what it held is computed anew"):
        again = pruned(tmp_path)
    assert same(again.state, whole.state) and again.manifest["resumed"]["layers"] == 2


@pytest.mark.parametrize("cut", [0, 7, 100, 0.5])
def test_a_record_that_was_cut_off_is_seen(tmp_path, cut):
    whole = pruned(tmp_path)
    last = tmp_path / records(tmp_path)[-1]
    content = last.read_bytes()
    last.write_bytes(content[: int(cut * len(content)) if isinstance(cut, float) else cut])
    with pytest.warns(UserWarning, match="is damaged"):
        assert same(pruned(tmp_path).state, whole.state)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 9, "configuration": {}}', "[" * 200_000])
def test_a_damaged_configuration_is_refused(tmp_path, text):
    pruned(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SnowsError, match=r"checkpoint_dir: got .*run.json|checkpoint_dir: got .* format 9"):
        pruned(tmp_path)


def test_a_record_of_another_run_does_not_count(tmp_path):
    pruned(tmp_path / "a")
    whole = pruned(tmp_path / "b", seed=1)
    name = records(tmp_path / "a")[0]
    shutil.copy(tmp_path / "a" / name, tmp_path / "b" / name)
    with pytest.warns(UserWarning, match="it is of another run"):
        assert same(pruned(tmp_path / "b", seed=1).state, whole.state)


@pytest.mark.parametrize("kind", ["file", "others"])
def test_a_folder_that_is_none_of_ours_is_refused_before_any_work(tmp_path, monkeypatch, kind):
    folder = tmp_path / "kept"
    if kind == "file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    with pytest.raises(SnowsError, match="checkpoint_dir: got"):
        snows.prune("no model", None, checkpoint_dir=folder)
    assert (folder if kind == "file" else folder / "thesis.txt").read_text() == "mine"


def test_a_folder_in_use_is_refused(tmp_path):
    journal = Journal(tmp_path, {"a": 1})
    with pytest.raises(SnowsError, match=r"checkpoint_dir: got .* which another run is using"):
        pruned(tmp_path)
    journal.close()


def test_a_result_beside_a_folder_is_refused(tmp_path):
    with pytest.raises(SnowsError, match="resume: got a result beside checkpoint_dir"):
        pruned(tmp_path, resume=pruned(None))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_once_and_what_it_refused_is_written_later(tmp_path, monkeypatch):
    whole, write, calls = pruned(None), journal_module._write, []

    def full(record, run, path):
        calls.append(record.kind)
        if 2 <= len(calls) <= 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(record, run, path)

    monkeypatch.setattr(journal_module, "_write", full)
    with pytest.warns(UserWarning, match="cannot be written .No space left on device.") as told:
        done = pruned(tmp_path)
    assert sum("cannot be written" in str(one.message) for one in told) == 1
    assert same(done.state, whole.state) and len(records(tmp_path)) == 5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".snows-")]
    assert pruned(tmp_path).manifest["resumed"]["layers"] == 5


def test_batches_that_had_to_be_halved_stay_so(tmp_path, monkeypatch):
    """What ran out of memory before the kill would run out again; sums in another order round otherwise."""
    solve, seen = Snows.solve, []

    def runs_out(method, problem):
        if problem.sizes == [12]:
            raise torch.OutOfMemoryError("out of memory")
        seen.append(problem.sizes)
        return solve(method, problem)

    monkeypatch.setattr(Snows, "solve", runs_out)
    with pytest.warns(UserWarning, match="halved"):
        whole = pruned(tmp_path / "whole")
    stop_after(monkeypatch, 2)
    with pytest.warns(UserWarning, match="halved"):
        pruned(tmp_path / "kept")
    monkeypatch.undo()
    monkeypatch.setattr(Snows, "solve", runs_out)
    with warnings.catch_warnings(record=True) as told:
        assert same(pruned(tmp_path / "kept").state, whole.state)
    assert not any("halved" in str(one.message) for one in told) and set(map(tuple, seen)) == {(6, 6)}


def test_a_run_that_fails_before_its_first_layer_leaves_nothing(tmp_path, monkeypatch):
    def fails(*arguments, **options):
        raise RuntimeError("broken")

    monkeypatch.setattr(Snows, "solve", fails)
    with pytest.raises(RuntimeError, match="broken"):
        pruned(tmp_path / "a" / "b" / "kept")
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    stop_after(monkeypatch, 0)
    assert not pruned(tmp_path / "there" / "kept").masks
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EIO, "Input/output error")])
def test_a_record_that_cannot_be_read_now_is_not_taken_for_damaged(tmp_path, monkeypatch, error):
    whole, before = pruned(tmp_path), records(tmp_path)

    def fails(path, run):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_read", fails)
        with pytest.raises(type(error)):
            pruned(tmp_path)
    assert records(tmp_path) == before
    again = pruned(tmp_path)
    assert same(again.state, whole.state) and again.manifest["resumed"]["layers"] == 5


def test_a_refused_run_takes_nothing_away(tmp_path):
    """Another run, killed before its first layer, has its configuration there alone."""
    Journal(tmp_path, {"a": 1})._lock.release()
    with pytest.raises(SnowsError, match=r"checkpoint_dir: got .* which holds a run with "):
        pruned(tmp_path)
    assert (tmp_path / "run.json").is_file()
