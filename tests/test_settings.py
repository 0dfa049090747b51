"""settings.py: the two lanes, single options changed, and what cannot be meant refused."""

from dataclasses import asdict, fields

import numpy as np
import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.settings import RECIPES, NewtonOptions, Recipe, changeable, get_recipe
from snows_core.solvers import newton_cg

# Every field of the two lanes, written out: a default that changes must not change a recipe by the way.
FAST = {
    "name": "fast",
    "targets": "dense",
    "warm_start": True,
    "precondition": True,
    "mini_batches": False,
    "passes": 1,
    "taps": "all",
    "normalise": True,
    "curvature": "gauss-newton",
    "precision": "float32",
    "sampled": True,
    "ridge": 1e-3,
    "batch_size": 64,
    "newton": {
        "steps": 5,
        "tolerance": 1e-2,
        "cg_iterations": 50,
        "cg_relative": 0.0,
        "cg_absolute": 0.0,
        "cg_progress": 2e-2,
        "cg_window": 3,
        "damping": 0.0,
        "armijo": 1e-5,
        "shrink": 0.9,
        "backtracks": 50,
        "curvature_images": 256,
    },
}
PAPER = {
    "name": "paper",
    "targets": "pruned",
    "warm_start": False,
    "precondition": False,
    "mini_batches": True,
    "passes": 3,
    "taps": "published",
    "normalise": False,
    "curvature": "hessian",
    "precision": "float32",
    "sampled": False,
    "ridge": 1e-3,
    "batch_size": 512,
    "newton": {
        "steps": 1,
        "tolerance": 0.0,
        "cg_iterations": 500,
        "cg_relative": 0.0,
        "cg_absolute": 1e-3,
        "cg_progress": 0.0,
        "cg_window": 10,
        "damping": 1e-4,
        "armijo": 1e-5,
        "shrink": 0.9,
        "backtracks": 50,
        "curvature_images": None,
    },
}


def test_every_field_of_the_two_lanes_is_what_it_was():
    assert asdict(RECIPES["fast"]) == FAST and asdict(RECIPES["paper"]) == PAPER


def test_a_recipe_of_ones_own_starts_from_fast():
    assert asdict(Recipe("mine")) == {**FAST, "name": "mine"} and Recipe("fast") == RECIPES["fast"]
    assert asdict(NewtonOptions()) == FAST["newton"] and newton_cg.NewtonOptions is NewtonOptions
    assert set(changeable()) == (set(FAST) | set(FAST["newton"])) - {"name", "newton"}


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
        ("fast", {"steps": -1}, r"^steps: got -1; expected an integer >= 0"),
        ("fast", {"shrink": 2}, r"^shrink: got 2; expected a finite number above 0 and below 1"),
        ("fast", {"curvature": "hessain"}, r"^curvature: got 'hessain'.*Nearest: hessian"),
    ],
)
def test_unknown_recipes_and_options_are_refused(recipe, options, message):
    with pytest.raises(SnowsError, match=message):
        get_recipe(recipe, **options)


NUMBERS = [f for f in changeable() if type(changeable()[f]) in (int, float)]
INTEGERS = {"steps", "cg_iterations", "cg_window", "backtracks", "curvature_images", "passes", "batch_size"}
NO_NUMBERS = [
    float("nan"),
    float("inf"),
    -float("inf"),
    -1,
    -1e-9,
    True,
    np.bool_(True),
    torch.tensor(True),
    "2",
    None,
    1j,
    [1],
    np.array([1, 2]),
    torch.tensor([1.0]),
    torch.tensor(float("nan")),
    np.float32("inf"),
]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_refused_in_every_field(name, value):
    if name == "curvature_images" and value is None:
        return  # it stands for all images
    with pytest.raises(SnowsError, match=rf"^{name}: got .*; expected an? "):
        get_recipe("fast", **{name: value})
    owner = NewtonOptions if name in FAST["newton"] else Recipe
    with pytest.raises(SnowsError, match=rf"^{name}: got .*; expected an? "):
        owner(**{name: value} | ({"name": "mine"} if owner is Recipe else {}))


def test_an_integer_beyond_all_floats_is_refused():
    with pytest.raises(SnowsError, match=r"^ridge: got 1000+; expected a finite number"):
        get_recipe("fast", ridge=10**400)
    with pytest.raises(SnowsError, match=r"^batch_size: got 9223372036854775808; expected an integer below 2 \*\* 63"):
        get_recipe("fast", batch_size=2**63)
    assert get_recipe("fast", batch_size=2**63 - 1).batch_size == 2**63 - 1


@pytest.mark.parametrize("name", NUMBERS)
def test_numpy_and_torch_scalars_become_plain_numbers(name):
    good = 2 if name in INTEGERS else 0.5
    kinds = (np.int64, np.array, torch.tensor) if name in INTEGERS else (np.float64, np.float32, np.array, torch.tensor)
    for kind in kinds:
        changed = get_recipe("fast", **{name: kind(good)})
        kept = getattr(changed.newton, name) if name in FAST["newton"] else getattr(changed, name)
        assert type(kept) is type(good) and kept == good
        assert changed == get_recipe("fast", **{name: good})


@pytest.mark.parametrize("name", [f for f in changeable() if isinstance(changeable()[f], bool)])
def test_switches_are_true_or_false(name):
    for value in (np.bool_(False), torch.tensor(False), False):
        assert getattr(get_recipe("fast", **{name: value}), name) is False
    for value in (0, 1, "no", None, np.int64(1)):
        with pytest.raises(SnowsError, match=rf"^{name}: got .*; expected True or False"):
            get_recipe("fast", **{name: value})


@pytest.mark.parametrize(
    "options",
    [
        {"targets": "densely"},
        {"curvature": "gauss_newton"},
        {"taps": "paper"},
        {"passes": 0},
        {"batch_size": 2.5},
        {"batch_size": 0},
        {"batch_size": 64.0},
        {"steps": np.float64(2)},
        {"cg_iterations": 0},
        {"cg_window": 0},
        {"curvature_images": 0},
        {"shrink": 1},
        {"shrink": 0},
        {"armijo": 1.0},
        {"precision": None},
        {"targets": ["dense"]},
    ],
)
def test_values_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(SnowsError, match=rf"^{name}: got .*; expected "):
        get_recipe("fast", **options)


@pytest.mark.parametrize("options", [{"name": ""}, {"name": 3}, {"name": "mine", "newton": None}])
def test_a_recipe_has_a_name_and_newton_options(options):
    with pytest.raises(SnowsError, match=rf"^{list(options)[-1]}: got "):
        Recipe(**options)


def test_a_misspelt_argument_of_the_caller_is_suggested():
    with pytest.raises(SnowsError, match=r"^option: got 'max_mem'; expected .*'max_memory'.*Nearest: max_memory"):
        get_recipe("fast", ("max_memory", "layers"), max_mem=1e9)
    for name in ("arguments", "recipe"):  # names of its own parameters are options like any other
        with pytest.raises(SnowsError, match=f"^option: got '{name}'"):
            get_recipe("fast", (), **{name: 1})


def test_every_field_is_documented():
    for kind in (Recipe, NewtonOptions):
        assert all(f"        {f.name}: " in kind.__doc__ for f in fields(kind))


@pytest.mark.parametrize("recipe", [None, 3])
def test_a_recipe_of_another_type_is_refused(recipe):
    with pytest.raises(SnowsError, match=r"recipe: got"):
        get_recipe(recipe)
