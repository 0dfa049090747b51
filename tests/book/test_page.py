"""Where figures and metrics of a notebook land, and what the record holds."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from snows_core.book import plots
from snows_core.book.checks import read_notebook
from snows_core.book.page import NotebookOutputs, figure_dir, figures_root
from snows_core.book.reproduce import notebooks_folder
from snows_core.errors import SnowsError


@pytest.fixture
def page(tmp_path, monkeypatch):
    monkeypatch.setenv("SNOWS_FIGURES", str(tmp_path))
    return NotebookOutputs("03_x", "cifar")


def test_folders(page, tmp_path, monkeypatch):
    assert page.folder == tmp_path / "03_x" / "cifar" and figure_dir("03_x") == tmp_path / "03_x"
    monkeypatch.delenv("SNOWS_FIGURES")
    assert figures_root() == Path(__file__).resolve().parents[2] / "figures"
    for stem, profile in (("../x", "digits"), ("x", ""), ("x", "a/b")):
        with pytest.raises(SnowsError):
            NotebookOutputs(stem, profile)


def test_a_page_records_figures_metrics_and_provenance(page):
    figure, ax = plt.subplots()
    ax.plot([1, 2], label="SNOWS", **plots.style("SNOWS"))
    plots.labelled(ax, "K (operations)", "accuracy (%)", "a title")
    page.save_figure(figure, "accuracy")
    first = (page.folder / "accuracy.png").read_bytes()
    table = page.save_metrics(
        {"accuracy": torch.tensor(98.5), "layers": np.int64(3), "ok": True},
        seed=1,
        calibration=torch.arange(3),
        tables={"by_k": pd.DataFrame({"k": [0, 5], "loss": [1.0, float("nan")]})},
        recipe="fast",
    )
    plt.close(figure)
    text = (page.folder / "metrics.json").read_text()
    record = json.loads(text)
    assert record["metrics"] == {"accuracy": 98.5, "layers": 3, "ok": True} == table["value"].to_dict()
    assert record["figures"] == ["accuracy.png"] and first.startswith(b"\x89PNG")
    assert record["tables"]["by_k"] == [{"k": 0, "loss": 1.0}, {"k": 5, "loss": None}]
    assert '\n{ "k": 0, "loss": 1.0 },\n{ "k": 5, "loss": null }' in text  # a row of a table is a line
    made = record["provenance"]
    assert made["calibration"] == [0, 1, 2] and "[0, 1, 2]" in text
    assert {"commit", "versions", "seed", "device", "profile", "time", "peak_memory_mb", "recipe"} <= set(made)


def test_equal_figures_are_equal_files(page, tmp_path):
    images = []
    for name in ("a", "b"):
        figure, ax = plt.subplots()
        ax.plot([1, 2])
        images.append((page.folder / f"{name}.png", page.save_figure(figure, name)))
        plt.close(figure)
    assert images[0][0].read_bytes() == images[1][0].read_bytes()
    with pytest.raises(SnowsError, match="used before"):
        page.save_figure(figure, "a")
    with pytest.raises(SnowsError, match=r"\.png is added"):
        page.save_figure(figure, "a.png")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "98", [1.0], object()])
def test_a_metric_is_a_finite_number(page, value):
    with pytest.raises(SnowsError, match="metrics"):
        page.save_metrics({"accuracy": value}, seed=0)
    assert not page.folder.exists()


def test_one_calibration_set_has_a_mean_and_no_spread():
    for sets, text in (([98.5], "98.50"), ([98.0, 99.0], "98.50 ± 0.71")):
        values = pd.Series(sets)
        assert plots.mean_and_spread(values.mean(), values.std(), 2) == text


@pytest.mark.parametrize("stem", ["04_imagenet_resnet50", "05_vit_l"])
def test_no_notebook_writes_a_spread_of_its_own(stem):
    """A profile may ask for one calibration set; notebooks that print a spread leave it to the function."""
    cells = read_notebook(notebooks_folder() / f"{stem}.ipynb").cells
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert any("plots.mean_and_spread(" in text for text in code) and not any("±" in text for text in code)


def test_plots():
    plots.theme()
    assert len({(s["color"], s["linestyle"], s["marker"]) for s in plots.METHODS.values()}) == len(plots.METHODS)
    with pytest.raises(SnowsError, match="Nearest: magnitude"):
        plots.style("magnitud")
    mask = torch.zeros(4, 8, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 1] = True
    shown = plots.mask_image(mask, title="a mask").images[0].get_array()
    assert shown.shape == (4, 64) and shown[0, 8] == 1  # kernel positions outside, input channels inside
    plt.close("all")


def test_metrics_of_another_profile_are_those_of_the_repository(page, tmp_path, monkeypatch):
    monkeypatch.setattr("snows_core.book.page.CHECKOUT", tmp_path / "checkout")
    assert page.recorded("cifar") == {}
    figure = plt.figure()
    page.save_figure(figure, "a")
    plt.close(figure)
    page.save_metrics({"accuracy": 98.5}, seed=0)
    target = tmp_path / "checkout" / "figures" / "03_x" / "cifar"
    target.mkdir(parents=True)
    (page.folder / "metrics.json").rename(target / "metrics.json")
    assert page.recorded("cifar") == {"accuracy": 98.5} and page.recorded("digits") == {}


def test_a_record_of_another_profile_says_when_it_was_made(page, tmp_path, monkeypatch):
    monkeypatch.setattr("snows_core.book.page.CHECKOUT", tmp_path / "checkout")
    assert page.recorded_when("cifar") == ""
    target = tmp_path / "checkout" / "figures" / "03_x" / "cifar"
    target.mkdir(parents=True)
    made = {"calibration": [3, 1, 2], "time": "2026-11-25T17:55:50+00:00", "commit": "758ffbac2b7a"}
    record = {"notebook": "03_x", "profile": "cifar", "metrics": {}, "figures": [], "provenance": made}
    (target / "metrics.json").write_text(json.dumps(record))
    assert page.recorded_when("cifar") == "profile cifar, 3 calibration images, 2026-11-25, commit 758ffba"
    (target / "metrics.json").write_text(json.dumps(record | {"provenance": {"commit": None}}))
    assert page.recorded_when("cifar") == "profile cifar"


def test_the_picture_of_an_exercise_is_that_of_its_notebook(page, monkeypatch):
    asked = []
    monkeypatch.setattr("snows_core.book.page.shown_file", asked.append)
    page.show_expected("exercise-2")
    assert asked == ["figures/exercises/03_x/exercise-2.png"]
