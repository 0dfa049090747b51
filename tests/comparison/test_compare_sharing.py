"""What cells of a comparison share of Gram matrices: counted, not timed, and to the last bit what a single run has."""

import pytest
import torch
from spies import noted
from toys import RESNET_INNER, random_images, small_resnet

import snows_core as snows
from snows_core.comparison import Cell
from snows_core.comparison.runs import SharedRuns
from snows_core.masks import parse_pattern
from snows_core.sweep.prepare import checked_settings

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
QUICK = {"effort": "quick", "k": 1, "progress": False}
LAYERS = len(RESNET_INNER)
MASKS = ("wanda", "obs", "sparsegpt")


def begun(**options):
    runs = SharedRuns(small_resnet(), random_images(16), checked_settings(snows.prune, **QUICK), **options)
    runs.begin(parse_pattern("2:4"))
    return runs


def same_as_alone(pruned, **asked):
    alone = snows.prune(small_resnet(), random_images(16), "2:4", **QUICK, **asked)
    return all(torch.equal(weight, alone.state[name]) for name, weight in pruned.weights.items())


def test_fixed_masks_of_all_methods_are_chosen_on_the_same_gram_matrices(monkeypatch):
    with monkeypatch.context() as patch:
        products, runs = noted(patch, "snows_core.methods.problem", "normal_equations"), begun(fixed_masks=True)
        cells = {mask: [runs.run(Cell("2:4", mask, update)) for update in ("none", "layerwise")] for mask in MASKS}
    # Once for all choices, and in each re-fit at all layers but the first: 3 x 2 sweeps of all layers without sharing.
    assert len(products) == LAYERS + len(MASKS) * (LAYERS - 1)
    for mask in MASKS:
        assert same_as_alone(cells[mask][1], masks=cells[mask][1].masks, update="layerwise")


def test_the_first_layer_of_all_cells_has_one_gram_matrix(monkeypatch):
    with monkeypatch.context() as patch:
        products, runs = noted(patch, "snows_core.methods.problem", "normal_equations"), begun()
        cells = {
            (mask, update): runs.run(Cell("2:4", mask, update)) for mask in MASKS for update in ("layerwise", "none")
        }
    assert len(products) == 1 + len(cells) * (LAYERS - 1)
    for (mask, update), pruned in cells.items():
        assert same_as_alone(pruned, mask=mask, update=update)


def test_without_room_for_all_nothing_is_shared(monkeypatch):
    monkeypatch.setattr("snows_core.sweep.sweep.DENSE_SHARE", 0.0)
    products, runs = noted(monkeypatch, "snows_core.methods.problem", "normal_equations"), begun()
    for mask in MASKS:
        runs.run(Cell("2:4", mask, "none"))
    assert len(products) == len(MASKS) * LAYERS
