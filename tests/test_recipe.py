"""recipe.py: the two lanes, single options changed, and what cannot be meant refused."""

import pytest

from snows_core.errors import SnowsError
from snows_core.newton_cg import NewtonOptions
from snows_core.recipe import RECIPES, Recipe, get_recipe


def test_the_two_lanes_are_what_design_says_they_are():
    paper, fast = get_recipe("paper"), get_recipe("fast")
    # DESIGN section 1 and FACTS section 2: the published procedure.
    assert (paper.targets, paper.warm_start, paper.precondition, paper.mini_batches) == ("pruned", False, False, True)
    assert (paper.passes, paper.taps, paper.curvature, paper.newton.steps) == (3, "published", "hessian", 1)
    assert (paper.newton.damping, paper.newton.armijo, paper.newton.shrink) == (1e-4, 1e-5, 0.9)
    assert paper.newton.cg_absolute > 0 and paper.newton.cg_progress == 0
    # And what measurement showed to be worth it.
    assert (fast.targets, fast.warm_start, fast.precondition, fast.mini_batches) == ("dense", True, True, False)
    assert fast.newton.cg_progress > 0 and fast.newton.cg_absolute == 0


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_known_by_their_names_and_never_changed(name):
    assert get_recipe(name) is not None and get_recipe(name).name == name
    changed = get_recipe(name, ridge=0.5, steps=7)
    assert (changed.ridge, changed.newton.steps, changed.name) == (0.5, 7, name)
    assert get_recipe(name).ridge != 0.5 and get_recipe(name).newton.steps != 7


def test_a_recipe_of_ones_own_is_taken_and_may_be_changed():
    own = Recipe("mine", warm_start=False, newton=NewtonOptions(steps=1))
    assert get_recipe(own) == own
    assert get_recipe(own, curvature="gauss-newton").curvature == "gauss-newton"


@pytest.mark.parametrize(
    "recipe, options, message",
    [
        ("fats", {}, r"recipe: got 'fats'; expected one of \['fast', 'paper'\] or a Recipe\. Nearest: fast"),
        ("fast", {"stpes": 2}, r"option: got 'stpes'; expected one of .*Nearest: steps"),
        ("fast", {"name": "x"}, r"option: got 'name'"),
        ("fast", {"newton": None}, r"option: got 'newton'"),
        ("fast", {"steps": -1}, r"steps, cg_iterations: got \(-1, "),
        ("fast", {"shrink": 2}, r"shrink, armijo: got \(2, "),
    ],
)
def test_unknown_recipes_and_options_are_refused(recipe, options, message):
    with pytest.raises(SnowsError, match=message):
        get_recipe(recipe, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "densely"}, {"curvature": "gauss_newton"}, {"taps": "paper"}, {"passes": 0}, {"ridge": -1.0},
        {"batch_size": 2.5}, {"batch_size": 0}, {"steps": "2"}, {"warm_start": "no"},
    ],
)  # fmt: skip
def test_values_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(SnowsError, match=rf"{name}.*: got .*; expected "):
        get_recipe("fast", **options)


@pytest.mark.parametrize("recipe", [None, 3])
def test_a_recipe_of_another_type_is_refused(recipe):
    with pytest.raises(SnowsError, match=r"recipe: got"):
        get_recipe(recipe)
