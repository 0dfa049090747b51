"""settings: the two recipes, every option of a run in one place, and what cannot be meant refused."""

import inspect
import json
import re
from dataclasses import asdict, fields
from typing import get_args

import numpy as np
import pytest
import torch
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.cli import app as cli
from snows_core.errors import SnowsError
from snows_core.settings import (
    RECIPES,
    NewtonOptions,
    PruneSettings,
    Recipe,
    changeable,
    get_recipe,
    settings_of,
    takes_settings,
)
from snows_core.solvers import newton_cg
from snows_core.sweep.prepare import checked_settings

# Every field of the two lanes, written out: a default that changes must not change a recipe by the way.
FAST = {
    "name": "fast",
    "targets": "dense",
    "warm_start": True,
    "precondition": True,
    "mini_batches": False,
    "passes": 1,
    "tap_rule": "all",
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
    "tap_rule": "published",
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
    assert (paper.passes, paper.tap_rule, paper.curvature, paper.newton.steps) == (3, "published", "hessian", 1)
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
    with pytest.raises(SnowsError, match=r"^ridge: got 1000+ \.\.\. 0+; expected a finite number"):
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
        {"tap_rule": "paper"},
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
    for kind in (Recipe, NewtonOptions, PruneSettings):
        assert all(f"\n    {f.name}: " in inspect.cleandoc(kind.__doc__) for f in fields(kind))


@pytest.mark.parametrize("recipe", [None, 3])
def test_a_recipe_of_another_type_is_refused(recipe):
    with pytest.raises(SnowsError, match=r"recipe: got"):
        get_recipe(recipe)


SETTINGS = {f.name: f for f in fields(PruneSettings)}
DEFAULTS = {
    "pattern": "2:4",
    "allocation": None,
    "flops": None,
    "k": 5,
    "recipe": "fast",
    "masks": None,
    "saliency": "magnitude",
    "effort": "standard",
    "stages": None,
    "sweep_images": None,
    "stage_k": None,
    "mask": None,
    "update": "snows",
    "labels": None,
    "permute": None,
    "layers": None,
    "exclude": None,
    "leaf_modules": (),
    "device": None,
    "max_images": None,
    "max_memory": None,
    "refine": None,
    "refine_solver": "adam",
    "moving_masks": False,
    "augment": None,
    "seed": 0,
    "deterministic": False,
    "progress": True,
}


def test_every_setting_has_the_default_that_it_had():
    assert {name: f.default for name, f in SETTINGS.items()} == DEFAULTS
    assert vars(PruneSettings()) == DEFAULTS | {"recipe": RECIPES["fast"]}


@pytest.mark.parametrize("function", [snows.prune, snows.estimate, snows.make_masks])
def test_every_setting_is_shown_by_the_functions_that_take_it(function):
    shown = inspect.signature(function).parameters
    assert {name: shown[name].default for name in SETTINGS} == DEFAULTS
    assert all(shown[name].annotation == f.type for name, f in SETTINGS.items())
    text = " ".join(function.__doc__.split())
    assert all(f" {name}: {f.metadata['help']} {f.metadata['python']}".rstrip() in text for name, f in SETTINGS.items())
    entries = re.findall(r"^    (\S+): ", inspect.cleandoc(function.__doc__), flags=re.MULTILINE)
    assert entries[: len(shown)] == [
        str(p).split(":")[0] if p.kind is p.VAR_KEYWORD else p.name for p in shown.values()
    ]


def test_estimate_takes_what_prune_takes():
    pruned, estimated = (dict(inspect.signature(function).parameters) for function in (snows.prune, snows.estimate))
    assert estimated.pop("count").default is None
    assert pruned.pop("checkpoint_dir").default is None  # nothing is kept of an estimate
    assert {**pruned, "return": None} == {**estimated, "return": None}


@pytest.mark.parametrize("command", [cli.prune_command, cli.estimate_command])
def test_every_setting_but_labels_is_an_option_of_the_commands(command):
    names = {"max_images": "images", "progress": "quiet"}
    shown = inspect.signature(command).parameters
    for name, setting in SETTINGS.items():
        if name == "labels":
            assert name not in shown
            continue
        parameter = shown[names.get(name, name)]
        assert parameter.default in (setting.default, None, False)
        if name != "progress":
            assert get_args(parameter.annotation)[1].help.startswith(setting.metadata["help"])
    written = {"model", "out", "data", "data_root", "weights", "num_classes", "overwrite", "settings"}
    written |= {"test_images", "workers", "checkpoint_dir"}
    assert set(shown) - written == {names.get(name, name) for name in SETTINGS} - {"labels"}


def test_settings_run_as_keywords_and_may_be_read_twice():
    given = {"layers": (name for name in ("a", "b")), "leaf_modules": iter(["c"]), "exclude": {"d"}, "k": np.int64(2)}
    made = settings_of(snows.prune, **given, recipe="paper", steps=3, max_memory=np.float32(0.5))
    assert (made.layers, made.leaf_modules, made.exclude) == (("a", "b"), ("c",), ("d",))
    assert type(made.k) is int and made.max_memory == 0.5 and made.recipe == get_recipe("paper", steps=3)
    assert PruneSettings(**vars(made)) == settings_of(snows.estimate, **vars(made)) == made
    block = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert PruneSettings(layers=block).layers is block, "a module can be iterated over and means itself"
    assert PruneSettings(layers=torch.nn.Linear, exclude="fc*").exclude == "fc*"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k": -1}, r'^k: got -1; expected an integer >= 0, or "auto"\. k=0 is layer-wise least squares\.$'),
        ({"recipe": "quick"}, r"^recipe: got 'quick'; expected one of"),
        ({"mask": 3}, r"^mask: got 3; expected the name of a method"),
        ({"update": " "}, r"^update: got ' '; expected the name of a method"),
        ({"labels": 3}, r"^labels: got int; expected one class index >= 0 for each calibration image\.$"),
        ({"labels": "012"}, r"^labels: got str; expected one class index"),
        ({"labels": [0, -1]}, r"^labels: got -1 among them; expected one class index >= 0 for each calibration image"),
        ({"labels": torch.eye(2)}, r"^labels: got \[1\.0, 0\.0\] among them; .*argmax\(1\)"),
        ({"labels": [True]}, r"^labels: got True among them"),
        ({"max_images": 0}, r"^max_images: got 0; expected an integer >= 1 or None\.$"),
        ({"max_images": 2.5}, r"^max_images: got 2\.5; expected an integer >= 1 or None\.$"),
        ({"max_memory": 1e3}, r"^max_memory: got 1000\.0; expected bytes .*Bytes below 1e6 cannot be meant\."),
        ({"max_memory": True}, r"^max_memory: got True; expected bytes"),
        ({"refine": -1}, r"^refine: got -1; expected a number of steps >= 0\.$"),
        ({"refine": True}, r"^refine: got True; expected a number of steps >= 0\.$"),
        ({"augment": "flip"}, r"^augment: got str; expected a function of \(images, generator\)\.$"),
        ({"seed": "0"}, r"^seed: got '0'; expected an integer"),
        ({"progress": 1}, r"^progress: got 1; expected True or False"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(SnowsError, match=message):
        PruneSettings(**options)
    for function in (snows.prune, snows.estimate, snows.make_masks):
        with pytest.raises(SnowsError, match=message):
            function(None, None, **options)


@pytest.mark.parametrize(("name", "known"), [("mask", "magnitude"), ("update", "snows")])
@pytest.mark.parametrize("function", [snows.prune, snows.estimate, snows.make_masks])
def test_methods_that_are_not_there_are_refused(function, name, known):
    with pytest.raises(SnowsError, match=rf"^{name}: got 'snow'; expected one of \[.*'{known}'"):
        function(None, None, **{name: "snow"})
    with pytest.raises(SnowsError, match=r"^option: got 'leaf_module'; expected one of .*Nearest: leaf_modules"):
        function(None, None, leaf_module=["a"])


def test_a_record_holds_every_setting_and_nothing_that_json_does_not():
    made = PruneSettings(
        0.5,
        masks={"a": torch.ones(2)},
        layers=[torch.nn.Linear, torch.nn.Sequential(), "conv*"],
        exclude=lambda name, module: False,
        device=torch.device("cpu"),
        augment=snows.flip_and_shift,
        saliency=torch.abs,
    )
    record = made.record()
    assert list(record) == list(SETTINGS) and json.loads(json.dumps(record)) == record
    assert (record["pattern"], record["masks"], record["device"]) == ("given masks", "given", "cpu")
    assert record["layers"] == ["Linear", "Sequential", "conv*"] and "lambda" in record["exclude"]
    assert record["augment"] == "flip_and_shift" and record["recipe"] == asdict(RECIPES["fast"])
    assert PruneSettings(snows.NM(1, 4)).record()["pattern"] == "1:4"


def test_a_function_without_a_docstring_takes_settings_too():
    @takes_settings
    def run(model, **options):
        return options

    assert run.__doc__ is None and run(1, k=2) == {"k": 2}
    assert list(inspect.signature(run).parameters) == ["model", *SETTINGS, "options"]


@pytest.mark.usefixtures("few_images_are_fine")
def test_the_manifest_holds_the_settings_of_the_run():
    options = {"k": 0, "layers": ["layer1.conv1"], "max_memory": 1e9, "progress": False, "ridge": 1e-2}
    manifest = snows.prune(small_resnet(), random_images(4), "1:4", **options, effort="quick").manifest
    record = checked_settings(snows.prune, pattern="1:4", **options, effort="quick").record()
    assert (record["stages"], record["stage_k"], record["refine"]) == (1, 0, 0)
    names = ("pattern", "k", "recipe", "saliency", "mask", "update", "stages", "stage_k", "sweep_images")
    own = {name: manifest[name] for name in names}
    assert own | manifest["settings"] == record
    assert manifest["settings"]["max_memory"] == 1e9 and manifest["recipe"]["ridge"] == 1e-2
