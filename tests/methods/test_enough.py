"""enough.py: how many images a layer's solve reads, and that it reads no others."""

import importlib
import math

import pytest
import torch
from spies import noted
from toys import random_images, random_mask, wide

import snows_core as snows
from snows_core.methods import LayerProblem
from snows_core.methods.enough import (
    CURVATURE_POSITIONS,
    GRAM_POSITIONS,
    IMAGES,
    LOSS_IMAGES,
    LOSS_POSITIONS,
    Enough,
    enough_for,
)
from snows_core.settings import get_recipe

FAST, MANY = get_recipe("fast"), 10**9
SNOWS = "snows_core.methods.snows"
solver = importlib.import_module(SNOWS)
enough = importlib.import_module("snows_core.methods.enough")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def mask_of(kept, width=100, rows=4):
    mask = torch.zeros(rows, width, 1, 1, dtype=torch.bool)
    mask[:, :kept] = True
    return mask


def test_more_unknowns_ask_for_more_images_and_more_positions_for_fewer():
    assert (GRAM_POSITIONS, CURVATURE_POSITIONS, LOSS_POSITIONS) == (400, 200, 2000)
    assert (IMAGES, LOSS_IMAGES) == (32, 64)
    free = get_recipe("fast", curvature_images=10**9)
    assert enough_for(free, mask_of(50), 100, MANY) == Enough(loss=1000, gram=200, curvature=100)
    assert enough_for(free, mask_of(50), 50, MANY) == Enough(2000, 400, 200)
    assert enough_for(free, mask_of(25), 50, MANY) == Enough(1000, 200, 100)
    assert enough_for(free, mask_of(1), 9.0, MANY) == Enough(223, 45, 32), "rounded up: 222.2, 44.4"
    assert enough_for(free, mask_of(50), 1e9, MANY) == Enough(64, 32, 32), "never less"
    uneven = mask_of(50)
    uneven[0] = False
    assert enough_for(free, uneven, 75.0, MANY).gram == 200, "the mean over rows"


def test_curvature_stays_within_what_was_asked_for():
    assert enough_for(FAST, mask_of(100), 1.0, MANY) == Enough(200_000, 40_000, 256)
    assert enough_for(get_recipe("fast", curvature_images=7), mask_of(50), 100, MANY).curvature == 7
    assert enough_for(get_recipe("fast", curvature_images=None), mask_of(50), 100, MANY).curvature is None


def test_a_sample_of_nearly_a_third_is_no_sample():
    taken = {count: enough_for(FAST, mask_of(50), 100, count).curvature for count in (333, 334)}
    assert taken == {333: 256, 334: 100}
    capped = get_recipe("fast", curvature_images=7)
    assert enough_for(capped, mask_of(50), 100, 40).curvature == 7, "nobody takes more than asked for"


def test_recipes_that_read_all_images():
    assert enough_for(get_recipe("fast", sampled=False), mask_of(1), 1e6, MANY) == Enough(curvature=256)
    assert enough_for(get_recipe("fast", mini_batches=True, steps=1), mask_of(1), 1e6, MANY) == Enough(curvature=256)
    assert enough_for(get_recipe("paper"), mask_of(1), 1e6, MANY) == Enough()


@pytest.mark.parametrize(("given", "expected"), [(256, 8), (7, 7), (None, None)])
def test_a_solve_reads_what_is_enough_for_the_layers_size(monkeypatch, given, expected):
    positions = {"GRAM_POSITIONS": 200, "CURVATURE_POSITIONS": 150, "LOSS_POSITIONS": 450}
    for name, value in (positions | {"IMAGES": 3, "LOSS_IMAGES": 5}).items():
        monkeypatch.setattr(enough, name, value)
    solves, equations = noted(monkeypatch, SNOWS, "newton"), noted(monkeypatch, SNOWS, "least_squares")
    x, mask = random_images(40), random_mask((5, 4, 1, 1), 0.7)
    snows.prune(wide(), x, masks={"2": mask}, k=2, batch_size=4, progress=False, curvature_images=given, effort="quick")
    unknowns = float(mask.flatten(1).sum(1).double().mean())
    gram, curvature, loss = (math.ceil(p * unknowns / 64) for p in positions.values())
    assert equations[0][0][2] == gram == 11 and curvature == 8
    objective, _, options, *_ = solves[0][0]
    assert objective.images == 4 * math.ceil(loss / 4) < 40 and options.curvature_images == expected


def test_the_loss_of_a_part_is_that_of_a_run_with_these_images_alone(monkeypatch):
    monkeypatch.setattr(enough, "LOSS_POSITIONS", 1)
    monkeypatch.setattr(enough, "LOSS_IMAGES", 8)
    solves, x = noted(monkeypatch, SNOWS, "newton"), random_images(40)
    options = {"masks": {"2": random_mask((5, 4, 1, 1), 0.7)}, "k": 2, "batch_size": 4, "progress": False}
    part = snows.prune(wide(), x, **options, effort="quick")
    assert [args[0].images for args, _ in solves] == [8]
    kept = x[part.manifest["calibration"]["order"]][:8]
    whole = snows.prune(wide(), kept, **options, sampled=False, effort="quick")
    assert [args[0].images for args, _ in solves] == [8, 8]
    losses = [result.report.set_index("layer").loc["2", "loss_end"] for result in (part, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # their starts differ: the Gram matrices have other images


@pytest.mark.parametrize("recipe", ["fast", "paper"])
def test_layerwise_solves_and_mini_batches_read_all_images(monkeypatch, recipe):
    monkeypatch.setattr(enough, "LOSS_IMAGES", 4)
    monkeypatch.setattr(enough, "LOSS_POSITIONS", 1)
    monkeypatch.setattr(enough, "IMAGES", 4)
    monkeypatch.setattr(enough, "GRAM_POSITIONS", 1)
    made = []
    original = LayerProblem.reconstruction
    monkeypatch.setattr(LayerProblem, "reconstruction", lambda *a: made.append(original(*a)) or made[-1])
    k = 0 if recipe == "fast" else 2
    snows.prune(
        wide(),
        random_images(20),
        masks={"2": random_mask((5, 4, 1, 1), 0.7)},
        k=k,
        recipe=recipe,
        batch_size=4,
        progress=False,
        effort="quick",
    )
    assert {objective.images for objective in made} == {20}


@pytest.mark.parametrize("given", [8, None])
def test_newton_at_k_0_takes_the_curvature_images_that_were_asked_for(monkeypatch, given):
    solves = noted(monkeypatch, SNOWS, "newton")
    options = {"k": 0, "warm_start": False, "curvature_images": given, "batch_size": 4, "progress": False}
    snows.prune(wide(), random_images(20), masks={"2": random_mask((5, 4, 1, 1), 0.7)}, **options, effort="quick")
    assert [args[2].curvature_images for args, _ in solves] == [given]
