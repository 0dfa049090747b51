"""Files and folders that no command can work with, made once for the table of test_malformed_commands.py."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from snows_core.zoo import experiment

NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "execution_count": None,
            "outputs": [],
            "source": 'profile = "digits"\nsize = 2',
        }
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
ALIASES = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


def draw(folder: Path, count: int, size: int = 16, mode: str = "L") -> None:
    """Write small images of random pixels."""
    folder.mkdir(parents=True)
    for i in range(count):
        shape = (size, size) if mode == "L" else (size, size, 3)
        Image.fromarray(np.random.RandomState(i).randint(0, 256, shape, dtype=np.uint8)).save(folder / f"{i}.png")


def make_images(base: Path) -> None:
    """Make folders of images: too few, of one class, flat, of colour, unreadable, and bombs."""
    for digit in range(10):
        draw(base / "ten" / str(digit), 4)
    draw(base / "flat", 20)
    draw(base / "lonely" / "a", 20)
    draw(base / "single" / "a", 1)
    draw(base / "colour" / "a", 4, mode="RGB")
    (base / "empty").mkdir()
    (base / "hidden" / ".cats").mkdir(parents=True)
    for name, spoil in {
        "texts": lambda path: path.write_text("no image"),
        "zeros": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:60]),
        "bombs": _bomb,
    }.items():
        shutil.copytree(base / "ten", base / name)
        for path in sorted((base / name).rglob("*.png")):
            spoil(path)


def _bomb(path: Path) -> None:
    """Write a PNG whose header promises 50,000 x 50,000 pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 50_000, 50_000)
    path.write_bytes(bytes(content))


def make_weights(base: Path) -> None:
    """Make files that are no weights of the digits network."""
    state = experiment("digits-resnet20").load_model().state_dict()
    first = next(name for name, value in state.items() if value.ndim == 4)
    (base / "text.pth").write_text("weights")
    (base / "text.safetensors").write_text("weights")
    (base / "none.pth").write_bytes(b"")
    (base / "none.safetensors").write_bytes(b"")
    (base / "huge.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    (base / "deep.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    save_file(state, base / "whole.safetensors")
    (base / "cut.safetensors").write_bytes((base / "whole.safetensors").read_bytes()[:-1000])
    torch.save(state, base / "whole.pth")
    (base / "cut.pth").write_bytes((base / "whole.pth").read_bytes()[:20_000])
    for name, content in {
        "list": [1, 2],
        "numbers": {1: torch.zeros(2)},
        "texts": {"fc.weight": "zero"},
        "nothing": {"state_dict": {}},
        "nan": state | {first: torch.full_like(state[first], float("nan"))},
        "infinite": state | {first: torch.full_like(state[first], float("inf"))},
        "integers": state | {first: state[first].int()},
        "complex": state | {first: state[first].to(torch.complex64)},
        "sparse": state | {"fc.weight": state["fc.weight"].to_sparse()},
        "meta": state | {first: state[first].to("meta")},
        "shape": state | {first: torch.zeros(3, 3)},
        "fewer": {first: state[first]},
    }.items():
        torch.save(content, base / f"{name}.pth")
    layer, shape = "layer3.2.conv2", state["layer3.2.conv2.weight"].shape
    save_file({layer: torch.ones(3, 3)}, base / "masks-shape.safetensors")
    save_file({"nowhere": torch.ones(3, 3)}, base / "masks-name.safetensors")
    save_file({layer: torch.full(shape, 0.5)}, base / "masks-half.safetensors")
    save_file({layer: torch.full(shape, float("nan"))}, base / "masks-nan.safetensors")


def make_results(base: Path) -> None:
    """Damage copies of the result in ``base / "good"``, one each."""
    manifest = json.loads((base / "good" / "manifest.json").read_text())

    def changed(**source: object) -> str:
        return json.dumps({**manifest, "source": {**manifest["source"], **source}})

    texts = {
        "list": "[]",
        "number": "3",
        "keyless": "{}",
        "deep": "[" * 200_000 + "]" * 200_000,
        "deep-dict": '{"a":' * 200_000 + "1" + "}" * 200_000,
        "open": "{",
        "void": "",
        "digits": '{"a": ' + "9" * 5000 + "}",
        "large": json.dumps({**manifest, "more": "x" * 17_000_000}),
        "no-source": json.dumps({key: value for key, value in manifest.items() if key != "source"}),
        "source-list": json.dumps({**manifest, "source": [1]}),
        "names-list": json.dumps({**manifest, "weight_names": [1]}),
        "names-numbers": json.dumps({**manifest, "weight_names": {"a": 1}}),
        "model-number": changed(model=3),
        "model-unknown": changed(model="resnet99"),
        "data-list": changed(data=["digits"]),
        "weights-number": changed(weights=7),
        "classes-negative": changed(num_classes=-1),
        "classes-true": changed(num_classes=True),
        "images-zero": changed(test_images=0),
        "images-huge": changed(test_images=2**70),
        "images-half": changed(test_images=1.5),
    }
    contents = {name: ("manifest.json", text.encode()) for name, text in texts.items()}
    weights = (base / "good" / "model.safetensors").read_bytes()
    contents |= {
        "latin": ("manifest.json", '{"name": "é"}'.encode("latin-1")),
        "utf16": ("manifest.json", (base / "good" / "manifest.json").read_text().encode("utf-16")),
        "weights-cut": ("model.safetensors", weights[:-100]),
        "weights-head": ("model.safetensors", weights[:50]),
        "masks-text": ("masks.safetensors", b"masks"),
        "report-void": ("report.csv", b""),
        "report-bytes": ("report.csv", bytes(range(256)) * 10),
        "report-columns": ("report.csv", b"a,b\n1,2\n"),
        "report-large": ("report.csv", b"x" * 17_000_000),
        "pending-text": ("pending.safetensors", b"masks"),
    }
    for name, (file, content) in contents.items():
        shutil.copytree(base / "good", base / "result" / name, copy_function=os.link)
        (base / "result" / name / file).unlink(missing_ok=True)  # the link, not what it leads to
        (base / "result" / name / file).write_bytes(content)
    shutil.copytree(base / "good", base / "result" / "no-weights")
    (base / "result" / "no-weights" / "model.safetensors").unlink()
    if hasattr(os, "mkfifo"):
        shutil.copytree(base / "good", base / "result" / "pipe")
        (base / "result" / "pipe" / "manifest.json").unlink()
        os.mkfifo(base / "result" / "pipe" / "manifest.json")
    (base / "compared").mkdir()
    (base / "compared" / "results.json").write_text("[" * 200_000)
    (base / "compared-list").mkdir()
    (base / "compared-list" / "results.json").write_text("[]")


def make_books(base: Path) -> None:
    """Make folders of one notebook each, with a notebook, a profile or a neighbour that nothing can be done with."""
    cell = NOTEBOOK["cells"][0]
    notebooks: dict[str, bytes] = {
        name: json.dumps(NOTEBOOK | changes).encode()
        for name, changes in {
            "plain": {},
            "cells-numbers": {"cells": [1, 2]},
            "cells-dict": {"cells": {}},
            "source-number": {"cells": [cell | {"source": 3}]},
            "tags-number": {"cells": [cell | {"metadata": {"tags": 3}}]},
            "source-deep": {"cells": [cell | {"source": 'profile = "digits"\na = ' + "[" * 5000 + "]" * 5000}]},
            "julia": {"metadata": {"kernelspec": {"name": "julia-1.9"}}},
            "spec-number": {"metadata": {"kernelspec": 3}},
            "third": {"nbformat": 3},
        }.items()
    }
    notebooks |= {"list": b"[]", "deep": b"[" * 200_000, "latin": '{"é": 1}'.encode("latin-1"), "void": b""}
    profiles: dict[str, bytes] = {
        "yaml-latin": "description: é".encode("latin-1"),
        "yaml-bomb": ALIASES.encode(),
        "yaml-deep": b"[" * 200_000,
        "yaml-list": b"- 1",
        "yaml-number": b"3",
        "yaml-tag": b"description: !!python/object/apply:os.system ['true']",
        "yaml-digits": b"parameters: {size: " + b"9" * 5000 + b"}",
        "yaml-date": b"parameters: {size: 2020-01-01}",
        "yaml-month": b"parameters: {size: 2020-13-01}",
        "yaml-large": b"# " + b"x" * 2_000_000,
        "yaml-zero": b"description: \x00",
        "yaml-unknown": b"parameters: {siez: 3}",
        "yaml-code": b"parameters: {'size; import os': 3}",
        "yaml-nan": b"needs: {minutes: .nan}",
    }
    for name, content in (notebooks | dict.fromkeys(profiles, notebooks["plain"])).items():
        (base / "book" / name / "notebooks" / "profiles").mkdir(parents=True)
        (base / "book" / name / "notebooks" / "01_a.ipynb").write_bytes(content)
    for name, content in profiles.items():
        (base / "book" / name / "notebooks" / "profiles" / "01_a.big.yaml").write_bytes(content)
    shutil.copytree(base / "book" / "plain", base / "book" / "runs-file")
    (base / "book" / "runs-file" / "runs").write_text("a file")
    shutil.copytree(base / "book" / "plain", base / "book" / "expected")
    (base / "book" / "expected" / "figures").mkdir()
    (base / "book" / "expected" / "figures" / "expected.yaml").write_text("a: [")


def make_world(base: Path) -> None:
    """Make all of it."""
    (base / "file").write_text("a file")
    (base / "loop").symlink_to(base / "loop")
    (base / "thesis").mkdir()
    (base / "thesis" / "chapter.txt").write_text("years of work")
    make_images(base)
    make_weights(base)
    make_results(base)
    make_books(base)
