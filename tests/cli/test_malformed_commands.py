"""Command lines that cannot work: each ends with one clear sentence and code 2 or 1, and leaves the disk as it was."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import pytest
from malformed_world import make_world
from typer.testing import CliRunner

from snows_core.cli import app as cli

HUGE = str(2**70)
DIGITS = "9" * 5000
FAST = "--model digits-resnet20 --images 16 --layers layer3.2.conv2 --k 0 --effort quick -q"
PRUNE, EVALUATE = f"prune {FAST} --out {{out}}", "evaluate -q --model digits-resnet20"
COMPARE = "compare --model digits-resnet20 --images 16 --layers layer3.2.conv2 -q --out {out}"
REPRODUCE = "reproduce 01 -q --notebooks {base}/book/%s/notebooks --figures {base}/book/%s/figures"

# What is typed behind `snows prune`, and what the sentence has to hold. All of these are wrong options: code 2.
OPTIONS = [
    (f"--seed {HUGE}", "--seed"),
    ("--seed -1", "--seed"),
    (f"--images {HUGE}", "--images"),
    ("--images 1e3", "--images"),
    (f"--k {HUGE}", "--k"),
    (f"--k {DIGITS}", "--k"),
    ("--k ٣", "--k"),
    (f"--refine {HUGE}", "--refine"),
    (f"--sweep-images {HUGE}", "--sweep-images"),
    (f"--test-images {HUGE}", "--test-images: got"),
    ("--test-images 600", "--test-images: got 600; expected 1 to 597"),
    (f"--workers {HUGE}", "--workers"),
    ("--workers 100000 --data folder:{base}/ten", "--workers: got 100000; expected at most 64"),
    ("--flops nan", "--flops: got nan"),
    ("--flops inf", "--flops: got inf"),
    ("--flops 0.5", "--flops: got 0.5"),
    ("--max-memory inf", "--max-memory"),
    (f"--max-memory {DIGITS}GB", "--max-memory"),
    ("--max-memory 1", "--max-memory"),
    ("--set damping=nan", "--set damping: got nan"),
    ("--set damping=inf", "--set damping: got inf"),
    (f"--set steps={HUGE}", "--set steps"),
    (f"--set steps={DIGITS}", "--set: got 'steps=9"),
    ("--set =", "--set: got '='"),
    ("--set steps=1 --set steps=2", "--set: got steps twice"),
    ("--pattern nan", "--pattern: got 'nan'"),
    ("--pattern 1.0", "--pattern: got 1.0"),
    ("--pattern 4:4", "--pattern: got 4:4"),
    ("--pattern ''", "--pattern: got ''"),
    (f"--pattern {DIGITS}:4", "--pattern"),
    ("--pattern 1e-999999999", "--pattern: got '1e-999999999'"),
    ("--pattern layer3*=1e-999999999", "--pattern: got 'layer3*=1e-999999999'"),
    ("--pattern layer3*=1/0", "--pattern: got"),
    ("--pattern 1:99999999999999999999", "--pattern: got"),
    ("--stages nan", "--stages"),
    (f"--stages {HUGE}", "--stages"),
    ("--stages 0.5,x", "--stages: got 'x'"),
    ("--stage-k 3", "--stage-k: got 3"),
    ("--augment", "--augment: got"),
    ("--moving-masks", "--moving-masks: got"),
    ("--refine-solver newton", "--refine-solver: got"),
    ("--masks {base}/good/masks.safetensors --pattern 2:4", "--pattern: got 2:4 beside --masks"),
    ("--masks {base}/good/masks.safetensors --stages 3", "--stages: got 3 beside --masks"),
    ("--masks {base}/good/masks.safetensors --mask wanda", "--mask: got 'wanda'"),
    ("--saliency obs --mask wanda", "--saliency: got 'obs'"),
    ("--data-root {base}/nowhere", "--data-root"),
    ("--data-root {base}/file", "--data-root"),
    ("--data-root {base}/loop", "--data-root"),
    ("--num-classes 3", "--num-classes: got 3"),
    ("--device cuda:99", "--device: got 'cuda:99'"),
    ("--device ''", "--device: got ''"),
    ("--device cpu:7", "--device: got 'cpu:7'"),
    ("--device privateuseone", "--device: got 'privateuseone'"),
    ("--device meta", "--device: got 'meta'"),
    ("--layers ''", "--layers: got ''"),
    ("--layers [", "--layers: got '['"),
    ("--exclude nowhere*", "--exclude: got 'nowhere*'"),
    ("--recipe x", "--recipe: got 'x'"),
    ("--allocation x", "--allocation: got 'x'"),
    ("--permute --pattern 0.5", "--permute"),
    ("--colour blue", "--colour"),
    ("--model ''", "--model: got ''"),
    ("--model timm/nowhere", "--model: got 'timm/nowhere'"),
    ("--model torchvision/resnet18:NONE", "--model: got weights 'NONE'"),
    (f"--model {'x' * 9000}", "--model: got 'xxx"),
    ("--data ''", "--data: got ''"),
    ("--data nowhere", "--data: got 'nowhere'"),
    ("--data folder:", "--data: got 'folder:'"),
    ("--data folder:{base}/nowhere", "--data: got"),
    ("--data folder:{base}/file", "--data: got"),
    (f"--data folder:{'x' * 5000}", "--data: got 'folder:xxx"),
    ("--data folder:~nobody-here/x", "--data: got 'folder:~nobody-here/x'"),
    ("--data folder:{base}/empty", "--data: got 0 images in"),
    ("--data folder:{base}/hidden", "--data: got 0 images in"),
    ("--data folder:{base}/single", "--data: got 1 images in"),
    ("--data folder:{base}/ten --images 256", "--images: got 256; expected at most 32"),
    ("--data folder:{base}/lonely", "--data: got 1 class from"),
    ("--data cifar10", "--data: got 'cifar10' (colour images)"),
    ("--weights {base}/nowhere.pth", "--weights: got"),
    ("--weights {base}/empty", "--weights: got"),
    ("--weights {base}/loop", "--weights: got"),
    ("--weights {base}/shape.pth", "--weights: got"),
    ("--weights {base}/fewer.pth", "--weights: got"),
    ("--masks {base}/nowhere.pth", "--masks: got"),
    ("--masks {base}/masks-shape.safetensors", "--masks: got shape (3, 3)"),
    ("--masks {base}/masks-name.safetensors", "--masks: got a mask for 'nowhere'"),
    ("--masks {base}/masks-nan.safetensors", "--masks: got"),
    ("--masks {base}/list.pth", "--masks: got"),
    ("--out {base}/file", "--out: got the file"),
    ("--checkpoint-dir {base}/file", "--checkpoint-dir: got"),
    ("--checkpoint-dir {base}/file/below", "--checkpoint-dir: got"),
    ("--out {base}/file/below", "--out: got"),
    ("--out {base}/loop", "--out: got"),
    ("--out {base}/thesis", "which holds other files"),
    ("--out {base}/thesis --overwrite", "which holds other files"),
    ("--out {base}/good", "--overwrite"),
    ("--out ~nobody-here/x", "--out"),
    (f"--out {{base}}/{'x' * 300}", "--out: got"),
]
# Files that are damaged: the option is right, the run cannot go on. Code 1.
DAMAGED = [
    *((f"--weights {{base}}/{name}", "--weights: got '{base}/" + name) for name in (
        "text.pth", "text.safetensors", "none.pth", "none.safetensors", "huge.safetensors", "deep.safetensors",
        "cut.safetensors", "cut.pth", "list.pth", "numbers.pth", "texts.pth", "nothing.pth", "nan.pth", "infinite.pth",
        "integers.pth", "complex.pth", "sparse.pth", "meta.pth",
    )),
    ("--masks {base}/masks-half.safetensors", "--masks: got no zeros"),
    ("--masks {base}/text.pth", "--masks: got '{base}/text.pth', which cannot be read"),
    *((f"--data folder:{{base}}/{name}", f"{{base}}/{name}/0/0.png cannot be read as an image") for name in (
        "texts", "zeros", "cut", "bombs",
    )),
]  # fmt: skip
WHOLE = [  # the whole command, the code, and what the sentence has to hold
    ("prun", 2, "prun"),
    ("prune --out {out}", 2, "--model"),
    (f"prune {FAST}", 2, "--out"),
    (f"{PRUNE} more", 2, "more"),
    ("evaluate", 2, "--model: got nothing to measure"),
    ("evaluate {base}/nowhere", 2, "which has no manifest.json"),
    ("evaluate {base}/file", 2, "which has no manifest.json"),
    ("evaluate {base}/empty", 2, "which has no manifest.json"),
    ("evaluate {base}/loop", 2, "which has no manifest.json"),
    ("evaluate {base}/good {base}/good", 2, "{base}/good"),
    ("evaluate {base}/good -q --model digits-resnet50", 2, "--model: got"),
    ("evaluate {base}/good --device cuda:99", 2, "--device: got 'cuda:99'"),
    (f"{EVALUATE} --data folder:{{base}}/texts", 1, "{base}/texts/0/0.png cannot be read as an image"),
    (f"{EVALUATE} --data folder:{{base}}/bombs --workers 2", 1, "{base}/bombs/0/0.png cannot be read as an image"),
    ("evaluate {base}/result/keyless", 2, "names no network"),
    ("evaluate {base}/result/no-source", 2, "names no network"),
    ("evaluate {base}/result/no-weights", 2, "without model.safetensors"),
    ("compact {base}/nowhere --out {out}", 2, "which has no manifest.json"),
    ("compact {base}/good --out {base}/file", 2, "--out: got the file"),
    ("compact {base}/good --out {base}/file/below", 2, "--out: got"),
    ("compact {base}/good --out {base}/thesis", 2, "which holds other files"),
    ("finetune {base}/nowhere --out {out}", 2, "which has no manifest.json"),
    ("finetune {base}/good --out {base}/file", 2, "--out: got the file"),
    ("finetune {base}/good --out {base}/thesis", 2, "which holds other files"),
    ("finetune {base}/good --out {out} --lr 0", 2, "--lr: got 0"),
    ("finetune {base}/result/weights-cut --out {out} -q", 1, "a damaged file"),
    ("compact {base}/result/deep --out {out}", 1, "nested deeper"),
    ("compact {base}/result/weights-cut --out {out}", 1, "a damaged file"),
    ("eligibility {base}/result/deep", 1, "nested deeper"),
    ("eligibility {base}/result/weights-cut", 1, "a damaged file"),
    ("sizes {base}/nowhere", 2, "without model.safetensors"),
    ("sizes {base}/result/deep", 1, "nested deeper"),
    ("sizes {base}/result/weights-cut", 1, "a damaged file"),
    ("export {base}/nowhere --to safetensors --out {out}.safetensors", 2, "folder: got"),
    ("export {base}/empty --to hf-hub-folder --out {out}", 2, "which has no manifest.json"),
    ("export {base}/good --to hf-hub-folder --out {base}/thesis", 2, "which holds other files"),
    ("export {base}/good --to hf-hub-folder --out {base}/file/below", 2, "--out: got"),
    ("export {base}/good --to state-dict --out {base}/file/below.pth", 2, "--out: got"),
    ("export {base}/good --to onnx --out {out}", 2, "ends in .onnx"),
    ("export {base}/result/no-weights --to safetensors --out {out}.safetensors", 2, "without model.safetensors"),
    ("export {base}/result/weights-cut --to hf-hub-folder --out {out}", 1, "a damaged file"),
    ("export {base}/good --to safetensors", 2, "--out"),
    ("push {base}/good user/name", 2, "no config.json"),
    ("push {base}/file user/name", 2, "which is no folder"),
    ("verify {base}/nowhere", 2, "which does not exist"),
    ("verify {base}/file", 1, "which cannot be read"),
    ("verify {base}/thesis", 2, "which holds no result"),
    ("verify {base}/good --pattern 5:4", 2, "--pattern: got 5:4"),
    ("verify {base}/good --against {base}/thesis", 2, "--against: got"),
    ("verify {base}/result/deep", 1, "nested deeper"),
    ("verify {base}/result/weights-cut", 1, "a damaged file"),
    ("estimate --model digits-resnet20 --pattern 5:4", 2, "--pattern: got 5:4"),
    ("estimate --model digits-resnet20 --device cuda:99", 2, "--device: got 'cuda:99'"),
    ("train resnet20 --out {out}", 2, "name: got resnet20"),
    ("train digits-resnet20 --out {base}/file", 2, "--out: got"),
    ("train digits-resnet20 --out {base}/file/below", 2, "--out: got"),
    (f"train digits-resnet20 --out {{out}} --seed {HUGE}", 2, "--seed"),
    (f"{COMPARE} --masks ''", 2, "--masks: got none"),
    (f"{COMPARE} --masks magnitude,magnitude", 2, "--masks: got 'magnitude' twice"),
    (f"{COMPARE} --updates x", 2, "--updates: got 'x'"),
    (f"{COMPARE} --pattern 5:4", 2, "--pattern: got 5:4"),
    (f"{COMPARE} --stage-k 2", 2, "--stage-k: got 2"),
    (f"{COMPARE} --out {{base}}/file", 2, "--out: got the file"),
    (f"{COMPARE} --out {{base}}/compared", 1, "whose files are damaged"),
    (f"{COMPARE} --out {{base}}/compared-list", 1, "whose files are damaged"),
    ("prune --model resnet20 -q --out {out}", 1, "could not be downloaded"),
    ("prune --model resnet20 -q --out {out} --weights {base}/text.pth", 1, "--weights: got"),
    ("reproduce --notebooks {base}/nowhere", 2, "--notebooks: got"),
    ("reproduce --notebooks {base}/file", 2, "--notebooks: got"),
    ("reproduce 99 --notebooks {base}/book/plain/notebooks", 2, "notebook: got '99'"),
    ("reproduce ../../file --notebooks {base}/book/plain/notebooks", 2, "notebook: got"),
    (REPRODUCE % ("plain", "plain") + " --profile ../x", 2, "--profile: got '../x'"),
    (REPRODUCE % ("plain", "plain") + " --timeout nan", 2, "--timeout"),
    (REPRODUCE % ("plain", "plain") + " --timeout 1e308", 2, "--timeout"),
    (REPRODUCE % ("plain", "plain") + " --figures {base}/file", 2, "--figures: got '{base}/file'"),
    (REPRODUCE % ("plain", "plain") + " --figures {base}/file/below", 2, "--figures: got"),
    (REPRODUCE % ("plain", "plain") + " --data-root {base}/nowhere", 2, "--data-root"),
    (REPRODUCE % ("runs-file", "runs-file"), 2, "--figures: got"),
    (REPRODUCE % ("expected", "expected"), 1, "expected.yaml: cannot be read"),
    ("reproduce --list --notebooks {base}/book/yaml-latin/notebooks", 1, "01_a.big.yaml: cannot be read (no UTF-8"),
]
RESULTS = (  # damaged in a way of its own, each
    "list number deep deep-dict open void digits large source-list names-list names-numbers model-number model-unknown"
    " data-list weights-number classes-negative classes-true images-zero images-huge images-half latin utf16"
    " weights-cut weights-head masks-text report-void report-bytes report-columns report-large pending-text"
).split()
NOTEBOOKS = (
    "cells-numbers cells-dict source-number tags-number source-deep julia spec-number third list deep latin void"
).split()
PROFILES = (
    "latin bomb deep list number tag digits date month large zero unknown code nan"  # of 01_a.big.yaml
).split()
TABLE = [
    *((f"{PRUNE} {typed}", 2, word) for typed, word in OPTIONS),
    *((f"{PRUNE} {typed}", 1, word) for typed, word in DAMAGED),
    *WHOLE,
    *((f"evaluate {{base}}/result/{name}", 1, "folder: got") for name in RESULTS),
    *((REPRODUCE % (name, name), 1, "01_a") for name in NOTEBOOKS),
    *((REPRODUCE % (f"yaml-{name}", "plain") + " --profile big", 1, "01_a") for name in PROFILES),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("world")
    done = CliRunner().invoke(cli.app, ["prune", *shlex.split(FAST), "--pattern", "1:4", "--out", str(base / "good")])
    assert done.exit_code == 0, done.output
    make_world(base)
    then = seen(base)
    yield base
    assert seen(base) == then, "a command has changed what was there"


def seen(base: Path) -> list[tuple[str, int]]:
    """Return every folder there is, and every file with the time of its last change."""
    return sorted((str(p), 0 if p.is_dir() else p.lstat().st_mtime_ns) for p in base.rglob("*"))


@pytest.fixture
def at_home(base, tmp_path, monkeypatch):
    """Let everything that a command may write by default be in one place, without a network; return that place."""

    def refuse(*arguments, **options):
        raise OSError("Name or service not known")

    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in ("SNOWS_DATA", "SNOWS_FIGURES", "SNOWS_TRACE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", str(base.parent / "matplotlib"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    monkeypatch.setattr("snows_core.zoo.fetch.download_url", refuse)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def check(done, code, word, home):
    said = done.stderr
    assert done.exit_code == code, said
    assert isinstance(done.exception, SystemExit) and "Traceback" not in done.output and "unexpected " not in said[:20]
    (sentence,) = [line for line in said.splitlines() if line.lower().startswith("error: ")]
    assert word in sentence and len(sentence) < 2000
    if code == 1 or sentence.startswith("error: "):  # typer's own say how the command is used before
        assert all(line.startswith(("error: ", "warning: ")) for line in said.splitlines()), said
    assert [path.name for path in home.rglob("*")] == ["here"]


@pytest.mark.parametrize(("line", "code", "word"), TABLE, ids=lambda value: str(value)[-60:])
def test_a_command_that_cannot_work_is_one_sentence(base, at_home, line, code, word):
    line, word = (text.replace("{base}", str(base)).replace("{out}", str(at_home / "out")) for text in (line, word))
    check(CliRunner().invoke(cli.app, shlex.split(line)), code, word, at_home)


def test_there_are_more_than_a_hundred_of_them():
    assert len({line for line, _, _ in TABLE}) == len(TABLE) > 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_a_pipe_is_not_waited_for(base, at_home):
    done = CliRunner().invoke(cli.app, ["evaluate", str(base / "result" / "pipe")])
    check(done, 2, "which has no manifest.json", at_home)


@pytest.mark.parametrize(("error", "code"), [(errno.EACCES, 2), (errno.EROFS, 2), (errno.ENOSPC, 1), (errno.EDQUOT, 1)])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(base, at_home, monkeypatch, error, code):
    """As root every folder can be written, so the system's answer is made up."""

    def refuse(*arguments, **options):
        raise OSError(error, os.strerror(error))

    for command, words in (
        (f"{PRUNE}", "--out: got"),
        ("compact {base}/good --out {out}", "--out: got"),
        ("export {base}/good --to hf-hub-folder --out {out}", "--out: got"),
        ("export {base}/good --to safetensors --out {out}/a.safetensors", "--out: got"),
        (COMPARE, "--out: got"),
        ("train digits-resnet20 --out {out}", "--out: got"),
        (REPRODUCE % ("plain", "plain"), "--figures: got"),
    ):
        line = command.replace("{base}", str(base)).replace("{out}", str(at_home / "out"))
        with monkeypatch.context() as patch:
            patch.setattr("tempfile.NamedTemporaryFile", refuse)
            check(CliRunner().invoke(cli.app, shlex.split(line)), code, words, at_home)


def test_a_missing_kernel_and_a_missing_library_are_named(base, at_home, monkeypatch):
    from jupyter_client.kernelspec import NoSuchKernel

    def refuse(*arguments, **options):
        raise NoSuchKernel("python3")

    line = shlex.split((REPRODUCE % ("plain", "plain")).replace("{base}", str(base)))
    with monkeypatch.context() as patch:
        patch.setattr("papermill.execute_notebook", refuse)
        done = CliRunner().invoke(cli.app, line)
    assert done.exit_code == 1 and "Jupyter has no kernel 'python3' here" in done.stderr
    (base / "book" / "plain" / "runs" / "01_a-digits.json").unlink()  # the record of that run
    (base / "book" / "plain" / "runs").rmdir()
    found = find_spec_without("ipykernel")
    monkeypatch.setattr("snows_core.errors.find_spec", found)
    check(CliRunner().invoke(cli.app, line), 1, "ipykernel, not installed here", at_home)


def find_spec_without(name):
    from importlib.util import find_spec

    return lambda module: None if module == name else find_spec(module)
