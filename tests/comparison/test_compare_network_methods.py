"""``snows.compare`` with methods that look at the whole network: cells are single runs, masks are made once."""

from __future__ import annotations

import pytest
from comparisons import QUICK
from toys import random_images, same, small_resnet

import snows_core as snows
from snows_core.comparison import Cell
from snows_core.comparison.cells import read_patterns
from snows_core.comparison.runs import SharedRuns
from snows_core.methods.chita import Chita
from snows_core.sweep.prepare import checked_settings

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


@pytest.mark.parametrize("fixed", [False, True])
def test_every_cell_has_the_weights_of_a_single_run(fixed, monkeypatch):
    network, images = small_resnet(), random_images(16)
    settings = checked_settings(snows.prune, update="none", mask="magnitude", **QUICK)
    runs = SharedRuns(network, images, settings, fixed_masks=fixed)
    chosen, original = [], Chita.choose
    monkeypatch.setattr(Chita, "choose", lambda self, problem: chosen.append(1) or original(self, problem))
    pattern, read = next(iter(read_patterns([0.6]).items()))
    runs.begin(read)
    cells = [("chita", "none"), ("chita", "snows"), ("chita", "own"), ("obd", "layerwise"), ("magnitude", "woodfisher")]
    cells += [("mfac", "own+snows"), ("obs", "own+snows")]
    for mask, update in cells:
        before = len(chosen)
        done = runs.run(Cell(pattern, mask, update))
        made = len(chosen) - before
        method = {"own": mask, "own+snows": "snows"}.get(update, update)
        start = {"warm_start": "own"} if update == "own+snows" else {}
        once = snows.prune(network, images, pattern, mask=mask, update=method, **QUICK | start)
        assert same(runs.write(done).state_dict(), once.state), (mask, update)
        if mask == "chita":
            assert made == (update == "none"), "the mask is chosen for the first of its cells alone"


def test_a_comparison_has_their_cells_and_says_which_cannot_be():
    network, images = small_resnet(), random_images(16)
    found = snows.compare(
        network,
        images,
        [0.6, "2:4"],
        test=random_images(8, seed=3),
        masks="magnitude,cbs",
        updates="none,own",
        k=1,
        progress=False,
    )
    states = found.table.set_index(["pattern", "mask", "update"])["status"]
    assert states["0.6", "cbs", "own"] == states["0.6", "cbs", "none"] == "done"
    assert states["2:4", "cbs", "none"] == states["0.6", "magnitude", "own"] == "not applicable"
