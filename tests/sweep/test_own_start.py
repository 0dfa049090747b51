"""``warm_start="own"``: SNOWS begins at the weights of the method that chose the mask."""

from __future__ import annotations

import pytest
import torch
from toys import random_images, same, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.sweep.network_steps import NetworkSteps
from snows_core.sweep.sweep import Sweep

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
QUICK = {"effort": "quick", "k": 1, "progress": False, "sampled": False}
FIRST = "layer1.conv1"  # before it nothing is pruned, so that all methods see the same


@pytest.fixture(scope="module")
def network():
    return small_resnet()


@pytest.fixture(scope="module")
def images():
    return random_images(16)


@pytest.mark.parametrize("mask", ["obc", "sparsegpt", "woodfisher", "chita"])
def test_newton_starts_where_the_method_ended(network, images, mask):
    own = snows.prune(network, images, 0.5, mask=mask, update=mask, layers=FIRST, **QUICK)
    on_top = snows.prune(network, images, 0.5, mask=mask, update="snows", layers=FIRST, warm_start="own", **QUICK)
    usual = snows.prune(network, images, 0.5, mask=mask, update="snows", layers=FIRST, **QUICK)
    row, there = (done.report.set_index("layer").loc[FIRST] for done in (on_top, own))
    assert torch.equal(on_top.masks[FIRST], own.masks[FIRST]) and torch.equal(on_top.masks[FIRST], usual.masks[FIRST])
    assert row["loss_start"] == pytest.approx(there["loss_end"], rel=1e-6)
    assert row["loss_end"] < row["loss_start"]
    least_squares = usual.report.set_index("layer").loc[FIRST, "loss_start"]  # the usual start, and all that OBC does
    assert (row["loss_start"] == pytest.approx(least_squares, rel=1e-6)) == (mask == "obc")
    assert on_top.manifest["recipe"]["warm_start"] == "own"


def test_the_update_of_osscar_is_where_solves_start_anyway(network, images):
    runs = [
        snows.prune(network, images, "structured:0.5", mask="osscar", update="snows", warm_start=start, **QUICK)
        for start in (True, "own")
    ]
    assert same(runs[0].state, runs[1].state)


def test_every_stage_starts_at_weights_of_its_own(network, images, monkeypatch):
    asked, masks = [], NetworkSteps.masks

    def watched(self, pattern, before):
        found = masks(self, pattern, before)
        asked.append({name: weight.clone() for name, weight in self.own.items()})
        return found

    monkeypatch.setattr(NetworkSteps, "masks", watched)
    options = QUICK | {"mask": "chita", "update": "snows", "stages": 2}
    staged = snows.prune(network, images, 0.6, warm_start="own", **options)
    assert len(asked) == 2 and all(asked) and not same(asked[0], asked[1])
    assert not same(staged.state, snows.prune(network, images, 0.6, **options).state)


def test_an_interrupted_run_starts_there_again(network, images, monkeypatch):
    options = QUICK | {"mask": "chita", "update": "snows", "warm_start": "own"}
    whole = snows.prune(network, images, 0.6, **options)
    solve, count = Sweep._solve, iter(range(100))

    def stopping(self, entry):
        if next(count) == 2:
            raise KeyboardInterrupt
        return solve(self, entry)

    with monkeypatch.context() as patched:
        patched.setattr(Sweep, "_solve", stopping)
        part = snows.prune(network, images, 0.6, **options)
    assert not part.manifest["complete"]
    assert same(snows.prune(network, images, 0.6, resume=part, **options).state, whole.state)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": "wanda"}, "warm_start: got 'own' with mask='wanda'; expected a mask whose method re-fits weights"),
        ({}, "warm_start: got 'own' with mask='magnitude'"),
        ({"mask": "dimap"}, "warm_start: got 'own' with mask='dimap'"),
        ({"warm_start": "mine"}, "warm_start: got 'mine'; expected True or False, or 'own'"),
        ({"warm_start": 1}, "warm_start: got 1; expected True or False"),
    ],
)
def test_a_method_without_weights_is_refused(network, images, options, words):
    with pytest.raises(SnowsError, match=words):
        snows.prune(network, images, 0.5, **{"warm_start": "own", **QUICK, **options})
