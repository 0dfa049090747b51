"""judging.py: test images are read once a command, by any number of processes, and only a bounded part is kept."""

from __future__ import annotations

import collections
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import snows_core
from snows_core.cli import app as cli
from snows_core.cli import judging
from snows_core.cli.judging import JudgingImages
from snows_core.errors import SnowsError
from snows_core.evaluate import evaluate_both
from snows_core.zoo import experiment, folder, reading, sources
from snows_core.zoo.bundle import Split
from snows_core.zoo.data import load_data

COUNT = 40  # images a class; every fifth is a test image: 16
IMAGE = 4 * 3 * 160 * 160  # bytes of one image of timm/test_vit


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """Return a folder of two classes, and options that prune a network of these classes on it."""
    root = tmp_path_factory.mktemp("pets")
    for label, name in enumerate(("cats", "dogs")):
        (root / "images" / name).mkdir(parents=True)
        for i in range(COUNT):
            pixels = np.random.RandomState(1000 * label + i).randint(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{i:02d}.png")
    torch.manual_seed(0)
    save_file(sources.build("timm/test_vit", 2).state_dict(), root / "mine.safetensors")
    return root


@pytest.fixture
def source(pets):
    return ["--model", "timm/test_vit", "--weights", pets / "mine.safetensors", "--data", f"folder:{pets / 'images'}"]


@pytest.fixture
def quick(source):
    return ["prune", *source, "--layers", "blocks.0.mlp.fc1", "--k", 0, "--images", 8, "--effort", "quick", "--quiet"]


@pytest.fixture
def reads(monkeypatch):
    """Return how often each file is read."""
    counted, read = collections.Counter(), folder.read_image

    def reading_one(path, mode):
        counted[str(path)] += 1
        return read(path, mode)

    monkeypatch.setattr(folder, "read_image", reading_one)
    return counted


@pytest.mark.parametrize("kept", [16, 5])
def test_no_test_image_is_read_twice(tmp_path, quick, source, reads, monkeypatch, kept):
    monkeypatch.setattr(judging, "KEPT_BYTES", kept * IMAGE)
    done = run(*quick, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"on {'5 of 16' if kept == 5 else '16'} test images" in done.output
    evaluation = json.loads((tmp_path / "out" / "manifest.json").read_text())["evaluation"]
    assert evaluation["dense"]["images"] == evaluation["pruned"]["images"] == 16
    assert evaluation["sample"] == {"split": "test", "images": 16, "of": 16, "seed": 0}
    assert set(reads.values()) == {1} and len(reads) == 16 + 8
    for more in ([tmp_path / "out"], source):
        reads.clear()
        shown = run("evaluate", *more, "--quiet")
        assert shown.exit_code == 0 and set(reads.values()) == {1} and len(reads) == 16, shown.output


def test_at_most_so_much_is_kept(pets, monkeypatch):
    monkeypatch.setattr(judging, "KEPT_BYTES", 5 * IMAGE + 1)
    images = JudgingImages(load_data(f"folder:{pets / 'images'}", image_size=160), 2, progress=False)
    batches = [len(x) for x, _ in images]
    assert sum(batches) == len(images) == 16 and max(batches) == 2
    assert sum(len(x) for x, _ in images._kept) == 5 == len(images.first)
    assert sorted([*images.first.tolist(), *images.others.tolist()]) == list(range(16))


def test_numbers_do_not_depend_on_workers_or_on_what_is_kept(tmp_path, quick, monkeypatch):
    run(*quick, "--out", tmp_path / "out")
    alone = run("evaluate", tmp_path / "out", "--quiet", "--workers", 0)
    assert run("evaluate", tmp_path / "out", "--quiet", "--workers", 2).output == alone.output
    monkeypatch.setattr(judging, "KEPT_BYTES", 3 * IMAGE)
    rows = [line.split() for line in run("evaluate", tmp_path / "out", "--quiet").output.splitlines()[-2:]]
    assert rows == [line.split() for line in alone.output.splitlines()[-2:]]


def test_the_pass_over_both_networks_gives_what_evaluate_gives(pets):
    row = experiment("timm/test_vit")
    bundle = row.load_data(data=f"folder:{pets / 'images'}")
    dense = row.load_model(pets / "mine.safetensors")
    pruned = snows_core.apply_masks(dense, snows_core.make_masks(dense, torch.zeros(1, 3, 160, 160), "2:4"))
    images = JudgingImages(bundle, 4, progress=False)
    of_dense, of_pruned = evaluate_both(pruned, dense, images)
    x, y = bundle.test_tensors()
    assert of_dense.accuracy == snows_core.evaluate(dense, x, y).accuracy
    expected = snows_core.evaluate(pruned, x, y, reference=dense)
    assert (of_pruned.accuracy, of_pruned.agreement) == (expected.accuracy, expected.agreement)
    assert of_pruned.kl == pytest.approx(expected.kl, rel=1e-5)  # sums of single precision in another order


def test_a_part_of_the_test_images(tmp_path, quick, source):
    done = run(*quick, "--test-images", 6, "--out", tmp_path / "out")
    assert done.exit_code == 0 and "on 6 of 16 test images" in done.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["evaluation"]["sample"] == {"split": "test", "images": 6, "of": 16, "seed": 0}
    again = run("evaluate", tmp_path / "out", "-q")
    assert "on 6 of 16 test images" in again.output, "as it was pruned"
    assert "on 16 test images" in run("evaluate", tmp_path / "out", "-q", "--test-images", 16).output
    assert "on 6 of 16 test images" in run("evaluate", *source, "-q", "--test-images", 6).output
    refused = run("evaluate", *source, "--test-images", 17)
    assert refused.exit_code == 2 and refused.stderr.startswith("error: --test-images: got 17; expected 1 to 16")
    manifest["source"]["test_images"] = "six"
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(manifest))
    assert "which is no manifest" in run("evaluate", tmp_path / "out").stderr


def test_the_draw_is_seeded_and_in_order(pets):
    bundle = load_data(f"folder:{pets / 'images'}", image_size=8)
    drawn, again = (JudgingImages(bundle, 4, 6, progress=False).positions.tolist() for _ in range(2))
    assert drawn == again == sorted(set(drawn)) and len(drawn) == 6 and drawn != list(range(6))


def test_a_dense_accuracy_that_is_wrong_on_the_whole_keeps_the_pruned_network(tmp_path, monkeypatch):
    """The sample is too small to tell; all images are enough."""
    monkeypatch.setattr(judging, "KEPT_BYTES", 4 * 16 * 16 * 20)
    row = experiment("digits-resnet20")
    wrong = dataclasses.replace(row, records=(dataclasses.replace(row.records[0], accuracy=96.0),))
    monkeypatch.setattr("snows_core.cli.source.experiment", lambda name: wrong)
    options = ["--model", "digits-resnet20", "--images", 8, "--layers", "layer3.2.conv2", "--k", 0, "--effort", "quick"]
    done = run("prune", *options, "-q", "--out", tmp_path / "out")
    assert "on 20 of 597 test images" in done.output
    assert done.exit_code == 1 and "on 597 images of 'digits'; expected 96.00 %" in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_an_unreadable_image_is_one_sentence_from_a_worker_too(tmp_path, pets):
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.png").write_bytes((pets / "images" / name / f"{i:02d}.png").read_bytes())
    split = load_data(f"folder:{tmp_path}", image_size=16).test
    (tmp_path / "dogs" / "0.png").write_bytes(b"no image")
    for workers in (0, 2):
        with pytest.raises(SnowsError, match=r"^data: .*dogs.0.png cannot be read as an image") as caught:
            list(split.loader(1, workers))
        assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["timm/test_vit", "torchvision/squeezenet1_1", None])
def test_what_workers_read_can_be_sent_to_them(pets, name):
    """Where processes are spawned, the data set, its transform and the functions around it are pickled."""
    place = f"folder:{pets / 'images'}"
    bundle = experiment(name).load_data(data=place) if name else load_data(place, image_size=32)
    loader = bundle.test.loader(4, 1)
    sent = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
    assert torch.equal(sent[0][3][0], bundle.test.tensors(indices=[3])[0][0])


def test_workers_start_where_they_pay(monkeypatch):
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert reading.usual_workers(597, (1, 16, 16)) == reading.usual_workers(10_000, (3, 32, 32)) == 0
    assert reading.usual_workers(2000, (3, 224, 224)) == 4
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    assert reading.usual_workers(2000, (3, 224, 224)) == 2
    monkeypatch.setattr(reading.os, "sched_getaffinity", lambda process: {0}, raising=False)
    assert reading.usual_workers(2000, (3, 224, 224)) == 0
    with pytest.raises(SnowsError, match="workers: got -1"):
        load_data("digits").test.loader(4, -1)


def test_positions_of_a_loader_are_those_of_the_split():
    split = Split(load_data("digits").test.dataset, range(10, 30))
    x, y = next(iter(split.loader(8, positions=[5, 2])))
    expected = split.tensors(indices=[5, 2])
    assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])


def test_bars_unless_it_is_quiet(source):
    assert "reading test images" in run("evaluate", *source).stderr
    assert "reading test images" not in run("evaluate", *source, "--quiet").stderr
