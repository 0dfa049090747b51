"""``snows.compare`` in stages, under a bound on operations, with labels: cells are single runs with these options."""

from __future__ import annotations

from dataclasses import replace

import pytest
from comparisons import QUICK
from toys import same

import snows_core as snows
from snows_core.comparison import Cell
from snows_core.comparison.cells import read_patterns
from snows_core.comparison.runs import SharedRuns
from snows_core.sweep.prepare import checked_settings

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
CELLS = [("chita", "own"), ("chita", "snows"), ("magnitude", "snows"), ("magnitude", "layerwise"), ("obd", "none")]


def runs_of(network, images, **options):
    settings = checked_settings(snows.prune, pattern="0.8", update="none", mask="magnitude", **QUICK | options)
    return SharedRuns(network, images, settings)


@pytest.mark.parametrize("stages", [3, (0.5, 0.8)])
def test_every_cell_in_stages_has_the_weights_of_a_single_run(network, images, stages):
    runs = runs_of(network, images, stages=stages)
    runs.begin(read_patterns(0.8)["0.8"])
    for mask, update in CELLS:
        done = runs.run(Cell("0.8", mask, update))
        method = mask if update == "own" else update
        once = snows.prune(network, images, 0.8, mask=mask, update=method, stages=stages, **QUICK)
        assert same(runs.write(done).state_dict(), once.state), (mask, update)
        assert done.figures["image_products"] == once.report["image_products"].sum()  # of all stages
        assert done.figures["sparsity"] == pytest.approx(once.sparsity, abs=1e-12)


def test_stages_change_what_a_cell_ends_at(network, images, test):
    call = {"test": test, "masks": "chita", "updates": "own", "k": 1, "progress": False}
    one, staged = (snows.compare(network, images, 0.8, stages=stages, **call) for stages in (1, 3))
    assert one.table.loc[0, "kl"] != staged.table.loc[0, "kl"]
    assert staged.record["configuration"]["settings"]["stages"] == 3


def test_a_bound_on_operations_is_for_the_masks_that_keep_it(network, images):
    runs = runs_of(network, images)
    runs.settings = replace(runs.settings, flops=0.15)
    runs.begin(read_patterns("global:0.8")["global:0.8"])
    for mask, flops in (("falcon", 0.15), ("chita", None)):
        done = runs.run(Cell("global:0.8", mask, "none"))
        once = snows.prune(network, images, "global:0.8", mask=mask, update="none", flops=flops, **QUICK)
        assert same(runs.write(done).state_dict(), once.state), mask
    assert not same(runs.write(done).state_dict(), network.state_dict())


def test_a_comparison_with_a_bound_has_other_masks_than_one_without(network, images, test):
    call = {"test": test, "masks": "falcon,magnitude", "updates": "none", "k": 1, "progress": False}
    free, bound = (snows.compare(network, images, "global:0.8", flops=flops, **call) for flops in (None, 0.15))
    kl = [found.table.set_index("mask")["kl"] for found in (free, bound)]
    assert kl[0]["magnitude"] == kl[1]["magnitude"] and kl[0]["falcon"] != kl[1]["falcon"]


def test_labels_are_for_the_methods_that_read_them(network, images, test):
    labels = [number % 3 for number in range(len(images))]
    call = {"masks": "woodfisher,obs", "updates": "own", "k": 1, "progress": False}
    drawn, given = (snows.compare(network, images, 0.6, test=test, labels=of, **call) for of in (None, labels))
    kl = [found.table.set_index("mask")["kl"] for found in (drawn, given)]
    assert kl[0]["obs"] == kl[1]["obs"]
    once = snows.prune(network, images, 0.6, mask="woodfisher", update="woodfisher", labels=labels, **QUICK).model
    assert kl[1]["woodfisher"] == pytest.approx(snows.evaluate(once, *test, reference=network).kl, rel=1e-9)
    assert kl[0]["woodfisher"] != kl[1]["woodfisher"]
    assert drawn.record["configuration"]["labels"] is None and given.record["configuration"]["labels"]
