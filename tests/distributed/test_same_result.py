"""Two and three processes prune as one does: the same masks, weights to within rounding, the same steps.

Image counts do not divide by the number of processes, and small batches leave some of them without an image.
"""

import importlib

import groups
import pytest
import torch
from toys import random_images, small_resnet, small_vit, torch_attention

import snows_core as snows

QUICK = {"effort": "quick", "batch_size": 5}
TWO = {"layers": ["layer1.conv1", "layer2.conv1"]}
JOINT = {**QUICK, **TWO, "pattern": 0.5, "update": "none"}  # so that every solver finds something better
MODELS = {"resnet": small_resnet, "vit": small_vit, "tokens first": lambda: torch_attention(batch_first=False)}
# Name to network, images, and options; "wide" is where row factors begin to be shared out, in bytes.
CASES = {
    "fast": ("resnet", 11, {"pattern": "2:4", "k": 2, **QUICK}),
    "layer-wise": ("resnet", 23, {"pattern": 0.5, "update": "layerwise", **QUICK, **TWO}),
    # Long runs of CG without a preconditioner make much of rounding in one process, too: few products a step here.
    "paper": ("resnet", 11, {"pattern": 0.5, "recipe": "paper", "batch_size": 5, "k": 2, "cg_iterations": 4, **TWO}),
    "stages": ("vit", 11, {"pattern": 0.6, "stages": 2, "k": 2, "layers": ["blocks.0.*"], **QUICK}),
    "K chosen": ("resnet", 11, {"pattern": 0.5, "k": "auto", "effort": "quick", "batch_size": 2, **TWO}),
    "adam": ("resnet", 67, {"refine": 3, "refine_solver": "adam", "augment": snows.flip_and_shift, **JOINT}),
    "natural": ("resnet", 67, {"refine": 2, "refine_solver": "natural", "wide": 0.0, **JOINT}),
    "newton": ("resnet", 67, {"refine": 1, "refine_solver": "newton", **JOINT}),
    "rows shared": ("resnet", 11, {"pattern": 0.5, "k": 2, "wide": 0.0, **QUICK, **TWO}),
    "scores": (
        "resnet",
        11,
        {"pattern": 0.5, "k": 1, "saliency": "obs+fisher", "effort": "quick", "batch_size": 2, **TWO},
    ),
    "diagonal": (
        "resnet",
        11,
        {"pattern": 0.5, "k": 1, "saliency": "curvature", "effort": "quick", "batch_size": 2, **TWO},
    ),
    "gradients": (
        "resnet",
        11,
        {"pattern": "global:0.5", "mask": "woodfisher", "update": "woodfisher", **QUICK, **TWO},
    ),
    "tokens first": ("tokens first", 11, {"pattern": 0.5, "k": 2, "layers": ["mlp.*"], **QUICK}),
}
OF_THREE = (
    "fast",
    "K chosen",
    "adam",
    "natural",
    "scores",
    "diagonal",
    "tokens first",
)  # some of them without an image
SLOW = {
    "defaults": ("resnet", 71, {"pattern": "2:4", "k": 3, "batch_size": 8}),
    # As above: an indefinite matrix amplifies rounding.
    "hessian": ("vit", 23, {"pattern": 0.5, "k": 4, "curvature": "hessian", "cg_iterations": 3, "steps": 1, **QUICK}),
    "snows-adam": ("resnet", 23, {"pattern": 0.5, "update": "snows-adam", "k": 3, **QUICK}),
    "snows-fisher": ("resnet", 23, {"pattern": 0.5, "update": "snows-fisher", "k": 3, **QUICK}),
    "sparsegpt": ("vit", 23, {"pattern": "2:4", "mask": "sparsegpt", "update": "sparsegpt", **QUICK}),
    "measured": ("resnet", 23, {"pattern": 0.5, "allocation": "measured", "k": 0, **QUICK}),
    "obd": ("resnet", 23, {"pattern": 0.5, "mask": "obd", "k": 1, **QUICK}),
    "structured": ("resnet", 23, {"pattern": "structured:0.5", "mask": "osscar", "update": "layerwise", **QUICK}),
    "moving": ("resnet", 71, {"refine": 40, "refine_solver": "natural", "moving_masks": True, **JOINT}),
    "targets": ("resnet", 23, {"pattern": 0.5, "k": 3, "targets": "pruned", "warm_start": False, **QUICK}),
    "one image a batch": ("resnet", 7, {"pattern": 0.5, "k": 3, "effort": "quick", "batch_size": 1}),
}


def pruned(rank, cases):
    """Return what each of some cases gives in this process."""
    found = {}
    for name, (model, count, options) in cases.items():
        options = dict(options)
        wide = options.pop("wide", 4e6)
        for module in ("snows_core.methods.problem", "snows_core.loss.joint_preconditioner"):
            importlib.import_module(module).WIDE = wide
        images = random_images(count, 8 if model == "resnet" else 4)
        result = snows.prune(MODELS[model](), images, progress=False, **options)
        found[name] = result.masks, result.state, result.report, result.manifest.get("refinement", {}).get("loss")
    return found


def check(found, one, name):
    """Compare what a process gives with what one alone gives."""
    (masks, state, report, loss), (masks1, state1, report1, loss1) = found[name], one[name]
    assert masks.keys() == masks1.keys() and all(torch.equal(mask, masks1[layer]) for layer, mask in masks.items())
    for key, value in state.items():
        torch.testing.assert_close(value, state1[key], rtol=0, atol=1e-10)
    for column in ("k", "newton_steps", "products", "image_products", "stop", "kept", "status"):
        assert report[column].equals(report1[column]), column
    for column in ("loss_masked", "loss_start", "loss_end"):
        assert report[column].tolist() == pytest.approx(report1[column].tolist(), rel=1e-8, nan_ok=True), column
    assert loss is None or loss[1] < loss[0]
    assert loss == (None if loss1 is None else pytest.approx(loss1, rel=1e-8))


@pytest.fixture(scope="module")
def one():
    return groups.run(1, pruned, CASES)[0]


@pytest.fixture(scope="module")
def two():
    return groups.run(2, pruned, CASES)


@pytest.fixture(scope="module")
def three():
    return groups.run(3, pruned, {name: CASES[name] for name in OF_THREE})


@pytest.mark.parametrize("name", CASES)
def test_two_processes_prune_as_one_does(name, one, two):
    for found in two:
        check(found, one, name)


@pytest.mark.parametrize("name", OF_THREE)
def test_three_processes_prune_as_one_does(name, one, three):
    for found in three:
        check(found, one, name)


def test_all_processes_have_the_same_bits(two, three):
    for first, *others in (two, three):
        for found in others:
            for name, (masks, state, *_) in found.items():
                assert all(torch.equal(mask, first[name][0][layer]) for layer, mask in masks.items()), name
                assert all(torch.equal(value, first[name][1][key]) for key, value in state.items()), name


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_prune_as_one_does_by_every_other_method(world):
    one = groups.run(1, pruned, SLOW)[0]
    for found in groups.run(world, pruned, SLOW):
        for name in SLOW:
            check(found, one, name)
