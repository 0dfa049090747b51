"""The K-step loss of SNOWS minimised by other means: one minimum where it has one, and the same start and images."""

from dataclasses import replace

import pytest
import torch
from problems import PROBLEMS, problem_of
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.methods import METHODS, BetweenStages, snows_adam
from snows_core.methods.layerwise import least_squares
from snows_core.settings import RECIPES, PruneSettings, get_recipe
from snows_core.sweep.layer_steps import layer_steps

RIVALS = ["snows-adam", "snows-fisher", "snows-gauss-newton", "snows-hessian"]
# Steps enough for what converges linearly.
EXACT = get_recipe("fast", warm_start=False, steps=200, tolerance=0.0, cg_progress=0.0, cg_relative=1e-10)
# What is left of the attainable decrease: Newton solves a quadratic at once, the others converge linearly.
LEFT = {"snows-adam": 1e-2, "snows-fisher": 1e-3, "snows-gauss-newton": 1e-9, "snows-hessian": 1e-9}


@pytest.mark.parametrize("case", ["residual unit", "transformer"])
@pytest.mark.parametrize("name", RIVALS)
def test_all_reach_the_minimum_of_the_layers_own_error(name, case, monkeypatch):
    monkeypatch.setattr(snows_adam, "STEPS", 600)
    problem = problem_of(case, k=0)
    _, wanted = least_squares(problem, 1e-12)
    solution = METHODS[name](EXACT, 0).solve(problem)
    loss = problem.reconstruction(problem.segments[0], METHODS[name](EXACT, 0).needs.loss, len(problem.sizes))
    least, done = loss.value(wanted), solution.statistics
    assert done.loss_end == pytest.approx(loss.value(solution.weight), rel=1e-12) and least < 0.9 * done.loss_start
    assert done.loss_end - least < LEFT[name] * (done.loss_start - least)
    assert not solution.weight[~problem.mask].any()


@pytest.mark.parametrize("recipe", ["fast", "paper"])
@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", RIVALS)
def test_none_raises_the_loss_that_it_starts_at(name, case, recipe):
    method = METHODS[name](RECIPES[recipe], 2)
    problem = problem_of(case)
    if recipe == "paper" and method.needs.mini_batches:
        return  # one step a batch, each on its own loss
    done = method.solve(problem).statistics
    assert done.loss_end < done.loss_start and done.k == 2


def test_each_has_its_curvature_whatever_the_recipe_says():
    for recipe in RECIPES.values():
        found = {name: METHODS[name](recipe, 3).needs for name in RIVALS}
        assert found["snows-hessian"].loss.curvature == "hessian"
        assert found["snows-gauss-newton"].loss.curvature == "gauss-newton"
        assert not found["snows-adam"].mini_batches and not found["snows-fisher"].mini_batches
        assert {METHODS[name](recipe, 3).k for name in RIVALS} == {3}
    ends = {
        name: METHODS[name](RECIPES["fast"], 2).solve(problem_of("transformer")).weight for name in (*RIVALS, "snows")
    }
    assert torch.equal(ends["snows"], ends["snows-gauss-newton"])
    assert not torch.equal(ends["snows"], ends["snows-hessian"])
    by_option = METHODS["snows"](replace(RECIPES["fast"], curvature="hessian"), 2).solve(problem_of("transformer"))
    assert torch.equal(ends["snows-hessian"], by_option.weight)


def test_what_they_took_is_counted():
    done = {name: METHODS[name](RECIPES["fast"], 2).solve(problem_of("transformer")).statistics for name in RIVALS}
    assert done["snows-adam"].products == 0 and done["snows-adam"].stop == "the 60 steps of Adam were taken"
    fisher = done["snows-fisher"]
    assert fisher.products > fisher.newton_steps > 0 and fisher.image_products == 11 * fisher.products


def test_between_stages_they_are_least_squares_as_snows_is():
    for name in RIVALS:
        steps = layer_steps(PruneSettings(0.5, update=name, stages=2, k=3))
        assert isinstance(steps.between, BetweenStages) and type(steps.update) is METHODS[name]


@pytest.mark.usefixtures("few_images_are_fine")
@pytest.mark.parametrize("make", [small_resnet, small_vit])
def test_prune_takes_them_with_any_mask(make):
    images = random_images(8, 8 if make is small_resnet else 4)
    for name in RIVALS:
        result = snows.prune(make(), images, 0.5, mask="wanda", update=name, k=2, progress=False)
        pruned = result.report[result.report["status"] == "pruned"]
        assert result.complete and (pruned["loss_end"] <= pruned["loss_start"]).all()
        auto = snows.prune(make(), images, 0.5, update=name, k="auto", progress=False)
        assert auto.complete and result.manifest["update"] == name
