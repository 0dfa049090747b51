"""The cost of a run, foretold: what must hold whatever the machine's speed."""

import sys

import pytest
import torch
from spies import stop_after
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.methods import METHODS, MeasureLosses, Rates, multiply_adds
from snows_core.sweep.other_costs import allocation_cost
from snows_core.sweep.prepare import checked_settings, prepare


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4)])
def test_one_row_per_layer_that_would_be_pruned(make, size):
    model, images = make(), random_images(8, size)
    table = snows.estimate(model, images, "2:4", count=64, k=2, effort="quick")
    result = snows.prune(model, images, "2:4", k=2, progress=False, steps=1, cg_iterations=1, effort="quick")
    pruned = result.report.query("status == 'pruned'")
    assert table["layer"].tolist() == pruned["layer"].tolist()
    assert table["k"].tolist() == pruned["k"].tolist()
    assert (table["seconds"] > 0).all() and (table["image_products"] == table["products"] * 64).all()


def test_bytes_grow_with_images_and_k():
    model, images = small_resnet(), random_images(8)
    few, many, deep = (
        snows.estimate(model, images, "2:4", count=count, k=k, effort="quick")["graph_bytes"].sum()
        for count, k in ((16, 1), (32, 1), (16, 9))
    )
    assert many == pytest.approx(2 * few)
    assert deep > 1.5 * few


def test_the_foretold_graph_is_what_autograd_saves():
    model, images = small_resnet(), random_images(8)
    table = snows.estimate(model, images, "2:4", count=8, k=3, effort="quick").set_index("layer")
    saved = {}

    def count(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        snows.prune(
            model, images, "2:4", k=3, layers=["layer2.conv2"], steps=1, cg_iterations=1, progress=False, effort="quick"
        )
    assert 0.3 < table.loc["layer2.conv2", "graph_bytes"] / sum(saved.values()) < 1.5


def test_what_a_run_does_beside_its_sweeps_has_rows_of_its_own():
    model, images = small_resnet(), random_images(8)

    def rows(**options):
        table = snows.estimate(model, images, 0.5, count=64, k=0, layers="layer*", **options).set_index("layer")
        assert (table["seconds"] > 0).all() and (table["peak_bytes"] > 0).all()
        return table[table.index.str.startswith("(")]

    assert rows(effort="quick").empty
    assert list(rows(effort="standard").index) == ["(joint refinement)"]
    chosen = {"effort": "quick", "saliency": "obs+fisher", "allocation": "measured"}
    assert list(rows(**chosen, refine=1).index) == ["(allocation)", "(Fisher)", "(joint refinement)"]
    few, many = (rows(effort="quick", refine=steps)["seconds"].item() for steps in (2, 2000))
    assert many > 20 * few


def test_allocations_that_are_measured_are_charged_one_sweep_for_each_candidate(monkeypatch):
    monkeypatch.setattr(
        "snows_core.sweep.sweep_cost.SweepCost.rows",
        lambda self, method, layers, masks: [
            {"seconds": 100.0 if isinstance(method, MeasureLosses) else 1.0, "graph_bytes": 3.0, "peak_bytes": 4.0}
        ],
    )
    found = {}
    for stages in (1, 4):
        settings = checked_settings(snows.prune, pattern=0.5, allocation="measured", k=0, stages=stages)
        prepared = prepare(small_resnet(), [random_images(8)], settings)
        found[stages] = allocation_cost(prepared, settings, random_images(8), 64, 1e9)
    assert found[1] == {"seconds": 108.0, "graph_bytes": 3.0, "peak_bytes": 4.0}  # 4 closed forms, 2 powers, 2 mixtures
    assert found[4]["seconds"] == 120.0  # and 3 finalists in 4 stages


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_bad_counts_are_refused(count):
    with pytest.raises(SnowsError, match=r"count: got .*; expected an integer >= 1"):
        snows.estimate(small_resnet(), random_images(4), count=count, effort="quick")


def test_row_factors_are_charged_once_a_layer_and_timed_once_a_size(monkeypatch):
    module = sys.modules["snows_core.sweep.sweep_cost"]

    monkeypatch.setattr(module, "shortest", lambda function, repeats, device: function() is None or 1000.0)
    table = snows.estimate(small_resnet(), random_images(8, 8), "2:4", k=2, effort="quick")
    assert (table["seconds"] > 1000).all()
    without = snows.estimate(
        small_resnet(), random_images(8, 8), "2:4", k=2, warm_start=False, precondition=False, effort="quick"
    )
    assert (without["seconds"] < 1000).all()
    calls, mask = [], torch.ones(4, 8, dtype=torch.bool)
    monkeypatch.setattr(module, "shortest", lambda *args: calls.append(1) or 2.0)
    known = {}
    assert [module._factor_seconds(mask, 1e9, known) for _ in range(3)] == [2.0] * 3 and len(calls) == 1


def test_a_closed_form_takes_no_products_and_a_part_of_the_images_is_charged_as_such(monkeypatch):
    model, images = small_resnet(), random_images(8)
    closed = snows.estimate(model, images, "2:4", count=64, k=0, effort="quick")
    assert (closed["products"] == 0).all() and (closed["seconds"] > 0).all() and (closed["graph_bytes"] == 0).all()
    stepped = snows.estimate(model, images, "2:4", count=64, k=0, warm_start=False, effort="quick")
    assert (stepped["image_products"] == 64 * stepped["products"]).all() and (stepped["products"] > 0).all()
    for name, value in {"LOSS_POSITIONS": 1, "LOSS_IMAGES": 16, "CURVATURE_POSITIONS": 1, "IMAGES": 8}.items():
        monkeypatch.setattr(sys.modules["snows_core.methods.enough"], name, value)
    part = snows.estimate(model, images, "2:4", count=64, k=1, batch_size=4, effort="quick")
    assert (part["image_products"] == 8 * part["products"]).all()


def interrupted(monkeypatch, after, **options):
    """Return what a run had when Ctrl-C came."""
    with monkeypatch.context() as patch:
        stop_after(patch, after)
        return snows.prune(small_resnet(), random_images(8), **options, effort="quick")


@pytest.mark.usefixtures("few_images_are_fine")
def test_the_same_keywords_go_into_both(monkeypatch):
    images = random_images(8)
    options = {"pattern": "1:4", "k": 0, "max_images": 6, "refine": 1, "progress": False, "seed": 3, "ridge": 1e-2}
    options |= {"augment": snows.flip_and_shift, "max_memory": 1e9, "device": "cpu", "exclude": "layer1.conv1"}
    partial = interrupted(monkeypatch, 2, **options)
    whole = snows.prune(small_resnet(), images, **options, resume=partial, effort="quick")
    table = snows.estimate(small_resnet(), images, **options, resume=partial, effort="quick")
    solved = set(partial.masks)
    assert len(solved) == 2 and whole.complete
    expected = [name for name in whole.masks if name not in solved]
    assert table["layer"].tolist() == [*expected, "(joint refinement)"]
    assert snows.estimate(small_resnet(), images, **options, resume=whole, effort="quick").empty
    assert list(snows.estimate(small_resnet(), images, **options, resume=whole, effort="quick")) == list(table)
    with pytest.raises(SnowsError, match=r"^resume: got a result with another seed; expected an interrupted result"):
        snows.estimate(small_resnet(), images, **options | {"seed": 4}, resume=partial, effort="quick")
    for function in (snows.prune, snows.estimate):
        with pytest.raises(SnowsError, match=r"^resume: got str; expected an interrupted result of the same call"):
            function(small_resnet(), images, **options, resume="folder")


def test_no_more_images_are_charged_than_may_be_used():
    model, images = small_resnet(), random_images(16)
    options = {"k": 1, "layers": "layer1.conv1", "warm_start": False}

    def charged(**more):
        table = snows.estimate(model, images, "2:4", **options, **more, effort="quick")
        return (table["image_products"] / table["products"]).item()

    assert [charged(), charged(max_images=6), charged(count=64, max_images=12)] == [16, 6, 12]


@pytest.mark.usefixtures("few_images_are_fine")
def test_methods_without_curvature_are_charged_no_product():
    images = random_images(4)
    charged = {
        update: snows.estimate(small_resnet(), images, "2:4", k=2, update=update, effort="quick")["products"].sum()
        for update in ("snows", "layerwise", "adaprune", "snows-adam", "none")
    }
    assert charged.pop("snows") > 0 and set(charged.values()) == {0}


@pytest.mark.usefixtures("few_images_are_fine")
def test_a_method_is_charged_by_its_formula_beside_what_images_take(monkeypatch):
    """On a machine that does one multiply-add a second, the formula without images is all that counts."""
    monkeypatch.setattr(
        sys.modules["snows_core.sweep.sweep_cost"], "measured_rates", lambda device: Rates(1.0, 1.0, 1.0)
    )
    images = random_images(4)
    options = {"update": "none", "layers": ["layer1.conv2"], "effort": "quick"}
    sizes = {"n": 0.0, "f": 0.0, "o": 4.0, "g": 1.0, "d": 36.0, "k": 18.0}
    nothing = multiply_adds(METHODS["none"].origin.cost, **sizes).total
    for mask in ("obc", "alps", "sparsegpt", "wanda"):
        table = snows.estimate(small_resnet(), images, "2:4", mask=mask, **options)
        expected = nothing + multiply_adds(METHODS[mask].origin.cost, **sizes).total
        assert table["seconds"].sum() == pytest.approx(expected, abs=60)  # what is timed takes no minute
