"""The mask method "swaps" through ``prune``: where it begins, what holds of its masks, and what they gain."""

import importlib

import pytest
import torch
from numpy_layers import refitted
from problems import problem_of
from torch import nn
from toys import awake, random_images

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS
from snows_core.methods.enough import Enough
from snows_core.methods.problem import Before
from snows_core.methods.swaps import groups_of
from snows_core.settings import RECIPES
from snows_core.solvers import swap_inputs

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
LAYERS = {"first": "0", "second": "2"}


def network():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 4, 1)
    return awake(nn.Sequential(*layers))


def pruned(pattern, layers=("2", "4"), **options):
    images = random_images(12)
    return snows.prune(network(), images, pattern, layers=list(layers), progress=False, k=0, **options, effort="quick")


def counts(mask, pattern):
    """Kept weights of everything that a pattern counts: groups of N:M, or rows."""
    if isinstance(pattern, NM):
        return mask.movedim(1, -1).unflatten(-1, (-1, pattern.m)).sum(-1)
    return mask.flatten(1).sum(1)


@pytest.mark.parametrize("pattern", [NM(1, 4), NM(2, 4), Unstructured(0.7), Unstructured(0.7, "global", 0.9)], ids=str)
def test_the_pattern_holds_and_the_layers_own_error_is_lower(pattern):
    model, images = network(), random_images(12)
    masks = {mask: pruned(pattern, mask=mask).masks for mask in ("magnitude", "swaps")}
    changed = 0
    for name, before in masks["magnitude"].items():
        after = masks["swaps"][name]
        assert torch.equal(counts(before, pattern), counts(after, pattern))
        changed += int((before != after).sum())
    assert changed > 20
    x = model[:2](images).detach().numpy()
    error = {mask: refitted(x, x, model[2], made["2"].flatten(1))[1] for mask, made in masks.items()}
    assert error["swaps"] < 0.95 * error["magnitude"]


def test_swaps_begin_at_masks_of_any_saliency_and_at_given_ones():
    torch.manual_seed(0)
    lots = {
        name: torch.rand(12 if name == "2" else 4, 8 if name == "2" else 12, *[3 if name == "2" else 1] * 2)
        for name in "24"
    }
    given = {name: NM(1, 4).mask(score) for name, score in lots.items()}
    by_saliency = pruned("1:4", mask="swaps", saliency=lambda name, weight: lots[name])
    by_mask = pruned("1:4", mask="swaps", masks=given)
    for name, mask in by_mask.masks.items():
        assert torch.equal(mask, by_saliency.masks[name]) and not torch.equal(mask, given[name])
        assert torch.equal(counts(mask, NM(1, 4)), counts(given[name], NM(1, 4)))


def test_given_masks_that_the_pattern_does_not_fit_are_improved_within_parts_of_a_row():
    given = {"2": torch.rand(12, 8, 3, 3) < 0.3}
    done = pruned(NM(1, 3), ("2",), mask="swaps", masks=given).masks["2"]
    parts = groups_of(given["2"], None)
    assert parts.shape == (6, 12) and not torch.equal(done, given["2"])
    assert torch.equal(done.flatten(1)[:, parts].sum(2), given["2"].flatten(1)[:, parts].sum(2))


def test_weights_that_are_zero_already_stay_zero():
    model, images = network(), random_images(12)
    with torch.no_grad():
        model[2].weight[:, :3] = 0.0
    with pytest.warns(UserWarning, match="zero already"):
        done = snows.prune(model, images, "2:4", layers=["2"], mask="swaps", progress=False, k=0, effort="quick")
    assert not done.masks["2"][:, :3].any() and not done.state["2.weight"][:, :3].any()
    assert done.masks["2"][:, 3].all() and torch.equal(
        counts(done.masks["2"], NM(2, 4))[..., 1], torch.full((12, 3, 3), 2)
    )


def test_without_an_update_the_dense_weights_stay_on_the_swapped_mask():
    done = pruned("2:4", mask="swaps", update="none")
    for name, mask in done.masks.items():
        assert torch.equal(done.state[f"{name}.weight"], torch.where(mask, network()[int(name)].weight, 0.0))


@pytest.mark.parametrize("case", ["residual unit", "groups and stride"])
def test_the_mask_of_a_layer_behind_pruned_ones_is_fitted_to_its_own_inputs(case):
    """On the pruned network's inputs, with the dense outputs as targets: the loss that least squares minimises."""
    problem = problem_of(case)
    problem.pattern, problem.before = Unstructured(0.5), Before(mask=problem.mask)
    problem.mask = torch.ones_like(problem.mask)
    method = METHODS["swaps"](RECIPES["fast"], 0)
    solution, losses = method.solve(problem), []
    (gram, response), rows = problem.normal_equations(), problem.weight.flatten(1)
    start, places = problem.before.mask.flatten(1), groups_of(problem.weight, None)
    told = swap_inputs(gram, start, rows, places, response=response, damping=method.recipe.ridge).mask
    assert torch.equal(solution.mask.flatten(1), told)
    assert not torch.equal(told, swap_inputs(gram, start, rows, places, damping=method.recipe.ridge).mask)
    for mask in (problem.before.mask, solution.mask):
        problem.mask = mask
        gram, response = problem.normal_equations()
        weight = METHODS["layerwise"](RECIPES["fast"], 0).solve(problem).weight.flatten(1)
        grouped = weight.view(len(gram), -1, weight.shape[1])
        losses.append(float((grouped @ gram * grouped).sum() - 2 * (response * weight).sum()))
    assert losses[1] < losses[0] and torch.equal(solution.weight, problem.weight * solution.mask)


def test_a_start_is_asked_for():
    problem = problem_of("residual unit")
    with pytest.raises(ValueError, match="one to start with"):
        METHODS["swaps"](RECIPES["fast"], 0).choose(problem)


@pytest.mark.parametrize(("k", "images"), [(2, 8), (0, None)])
def test_the_gram_matrix_is_that_of_the_images_that_the_refit_reads(monkeypatch, k, images):
    problem = problem_of("residual unit", k)
    start = problem.mask
    problem.pattern, problem.before = Unstructured(0.5), Before(mask=start)
    problem.mask = torch.ones_like(problem.mask)
    swaps = importlib.import_module("snows_core.methods.swaps")  # snows_core.methods is the table of all methods
    monkeypatch.setattr(swaps, "enough_for", lambda *_: Enough(gram=8))
    mask = METHODS["swaps"](RECIPES["fast"], k).choose(problem)
    gram, response = problem.normal_equations(images)
    rows, places = problem.weight.flatten(1), groups_of(problem.weight, None)
    told = swap_inputs(gram, start.flatten(1), rows, places, response=response, damping=RECIPES["fast"].ridge)
    assert torch.equal(mask.flatten(1), told.mask) and len(problem.equations) == 1


def test_swaps_choose_masks_and_re_fit_nothing():
    with pytest.raises(SnowsError, match="update: got 'swaps'; expected one of"):
        snows.prune(torch.nn.Linear(8, 4).eval(), torch.zeros(4, 8), 0.5, update="swaps")
