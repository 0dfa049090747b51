"""contest.py, meter.py, minimisers.py: units are counted as the tariff says, and tables say what the traces hold."""

import numpy as np
import pytest
import torch
from races import known
from toys import random_images, small_resnet

from snows_core.book.contests import minimisers
from snows_core.book.contests.contest import (
    LOOKS,
    NEWTON,
    NO_CURVATURE,
    Tuned,
    arms,
    curves,
    gradient_arm,
    layer_table,
    newton_arm,
    race,
    summary,
)
from snows_core.book.contests.fits import layer_fits
from snows_core.book.contests.meter import Meter, Uncurved, seconds_of
from snows_core.network import Network
from snows_core.solvers import armijo, conjugate_gradients

BUDGET = 12.0
TUNED = Tuned(parts={False: 2, True: 4}, rates={False: 0.01, True: 0.02}, share=0.5)


@pytest.fixture(scope="module")
def fit():
    return next(layer_fits(Network(small_resnet()), ["layer1.conv1"], "1:2", 2, random_images(8)))


@pytest.fixture(scope="module")
def points(fit):
    return race([fit], arms(TUNED), BUDGET, seed=3)


def test_what_is_asked_is_counted(fit):
    meter = Meter(fit, paid=1.0)
    meter.value(fit.start)
    at = meter.linearise(fit.start)
    at.product(at.gradient)
    at.product(at.gradient)
    meter.free_value(fit.start)
    meter.gradient(fit.start)
    assert (meter.units, meter.products) == (1 + 0.5 + 1 + 2 + 1, 2)
    meter.note(7.0)
    first, second = meter.trace
    assert (first.units, first.loss) == (0.0, fit.loss.value(fit.start))
    assert (second.units, second.image_products, second.loss) == (5.5, 2 * fit.loss.images, 7.0)


def test_the_control_takes_no_product_and_steps_along_the_preconditioned_gradient(fit):
    meter = Meter(fit)
    at = Uncurved(meter, fit).linearise(fit.start)
    assert torch.allclose(at.product(fit.solve(at.gradient)), at.gradient, rtol=1e-6, atol=1e-9)
    meter, weight = gradient_arm(fit, BUDGET)
    assert meter.products == 0 and fit.loss.value(weight) < fit.loss.value(fit.start)


def test_every_arm_lowers_the_loss_on_its_mask_within_the_budget(fit, points):
    table, ends = points
    assert list(dict.fromkeys(table["method"])) == list(LOOKS)
    for method, part in table.groupby("method"):
        assert part["units"].is_monotonic_increasing and part["units"].max() <= BUDGET + 5
        assert part["loss"].iloc[0] == 1 and part["loss"].min() < 1, method
        assert bool((ends[fit.name, method][~fit.loss.mask] == 0).all())
    assert (table["seed"] == 3).all()


def test_newton_spends_as_much_as_it_may_and_a_looser_tolerance_less_a_step(fit):
    strict, _ = newton_arm(fit, 40, progress=1e-5)
    loose, _ = newton_arm(fit, 40, progress=0.2)
    assert loose.trace[1].units < strict.trace[1].units
    plain, _ = newton_arm(fit, BUDGET, preconditioned=False)
    assert plain.trace[1].units == plain.trace[1].image_products / plain.images + 1 + 0.5  # no probe was paid


def test_the_table_of_layers():
    table = layer_table(known()).set_index(["layer", "method"])
    assert table.loc[("a", NEWTON), "units_90"] == 8 and table.loc[("a", NEWTON), "units_99"] == 8
    control = table.loc[("a", NO_CURVATURE)]
    assert control["units_90"] == 3 and np.isnan(control["units_99"])
    assert (
        control["end"] == pytest.approx(0.96)
        and control["end_loss"] == 0.52
        and control["first"] == pytest.approx(0.96)
    )
    assert np.isnan(table.loc[("b", NO_CURVATURE), "units_90"]) and table.loc[
        ("b", NO_CURVATURE), "end"
    ] == pytest.approx(0.5)


def test_the_curves_are_stairs_that_never_fall():
    table = curves(known(), 8, step=1.0)
    newton = table[table["method"] == NEWTON].set_index("units")["median"]
    control = table[table["method"] == NO_CURVATURE].set_index("units")["median"]
    assert newton[5] == 0 and newton[6] == pytest.approx(50) and newton[8] == pytest.approx(100)
    assert control[2] == 0 and control[3] == control[8] == pytest.approx((96 + 50) / 2)


def test_the_summary_counts_what_was_never_reached():
    table = summary(layer_table(known()))
    assert list(table.index) == [NEWTON, NO_CURVATURE]
    assert table.loc[NEWTON, "units_90"] == 7 and table.loc[NEWTON, "seconds_90"] == 1
    assert np.isinf(table.loc[NO_CURVATURE, "units_90"]) and table.loc[NO_CURVATURE, "reached_99"] == 0
    assert table.loc[NEWTON, "reached_99"] == 2


@pytest.mark.parametrize("lengthen", [False, True])
def test_a_line_search_begins_at_twice_the_last_length_where_the_scale_means_nothing(fit, lengthen, monkeypatch):
    meter, begun = Meter(fit), []

    def solved(product, right, **options):
        found = conjugate_gradients(product, right, **options)
        begun.append([found.x])
        return found

    def searched(value, weight, step, *rest, **options):
        search = armijo(value, weight, step, *rest, **options)
        begun[-1] += [float(step.norm() / begun[-1][0].norm()), search.step]
        return search

    monkeypatch.setattr(minimisers, "conjugate_gradients", solved)
    monkeypatch.setattr(minimisers, "armijo", searched)
    minimisers.descend(meter, fit, meter, 30.0, lengthen=lengthen)
    lengths = [length for _, length, _ in begun]
    accepted = [length * step for _, length, step in begun]
    assert len(lengths) >= 3 and lengths[0] == 1
    expected = [2 * length for length in accepted[:-1]] if lengthen else [1.0] * (len(lengths) - 1)
    assert lengths[1:] == pytest.approx(expected, rel=1e-5)


def test_the_least_of_several_times_counts(monkeypatch):
    moments = iter([0.0, 5.0, 10.0, 12.0, 20.0, 29.0])
    monkeypatch.setattr("snows_core.book.contests.meter.clock", lambda device: next(moments))
    assert seconds_of(lambda: None, repeats=3) == 2.0
