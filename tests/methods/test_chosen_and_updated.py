"""Methods that choose a mask and update its weights: patterns, given masks, stages, and what they owe the sweep."""

import numpy as np
import pytest
import torch
from numpy_layers import RIDGE, patch_rows
from problems import PROBLEMS, problem_of
from torch import nn
from toys import awake, random_images, small_vit

import snows_core as snows
from snows_core.masks import NM, Unstructured
from snows_core.masks.patterns import PerLayer
from snows_core.methods import METHODS, Budget
from snows_core.settings import RECIPES, PruneSettings
from snows_core.sweep.prepare import layer_steps

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
BOTH = [name for name, method in METHODS.items() if method.chooses_masks and method.updates_weights]
REFITTED = ["alps", "obc", "obs"]  # whose weights are the minimum on the mask
SEARCHING = ["obc"]  # who see what every removal does to the others
PATTERNS = [NM(2, 4), NM(1, 2), Unstructured(0.6), PerLayer({"layer": 0.7})]


def choosing(name, case, pattern, barred=3):
    """A problem whose mask a method chooses among all weights but a few that are zero already."""
    problem = problem_of(case)
    if isinstance(pattern, NM) and not METHODS[name].chooses_groups:
        pytest.skip("it knows no groups")
    if isinstance(pattern, NM) and pattern.misfit(problem.weight, problem.geometry.groups):
        pytest.skip("its inputs do not divide into groups")
    problem.pattern, problem.mask = pattern, torch.ones_like(problem.mask)
    problem.mask.view(-1)[:barred] = False
    return problem


def counts(mask, pattern):
    """Kept weights of each group of N:M, or of the layer."""
    return mask.movedim(1, -1).unflatten(-1, (-1, pattern.m)).sum(-1) if isinstance(pattern, NM) else mask.sum()


def loss_of(problem, weight):
    """The loss that all of them minimise, up to a constant, with the ridge of the recipe."""
    gram, response = problem.normal_equations()
    damping = RIDGE * float(gram.diagonal(dim1=1, dim2=2).mean())
    w, dense = weight.flatten(1), problem.weight.flatten(1)
    grouped = w.view(len(gram), -1, w.shape[1])
    return float((grouped @ gram * grouped).sum() - 2 * (w * response).sum() + damping * (w - dense).square().sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", BOTH)
def test_the_pattern_holds_and_weights_stand_on_it(name, case, pattern):
    problem = choosing(name, case, pattern)
    before, method = problem.mask.clone(), METHODS[name](RECIPES["fast"], 0)
    solution = method.solve(problem)
    mask, weight = solution.mask, solution.weight
    assert mask.dtype == torch.bool and mask.shape == problem.weight.shape and weight.dtype == problem.weight.dtype
    assert not mask[~before].any() and not weight[~mask].any() and bool(torch.isfinite(weight).all())
    assert torch.equal(problem.mask, before)  # the problem stays what it was
    if isinstance(pattern, NM):
        rest = problem.mask.movedim(1, -1).unflatten(-1, (-1, pattern.m)).sum(-1)
        assert torch.equal(counts(mask, pattern), rest.clamp(max=pattern.n))
    else:
        share = pattern.sparsity if isinstance(pattern, Unstructured) else 0.7
        assert int(mask.sum()) == mask.numel() - round(share * mask.numel())
    assert torch.equal(method.choose(problem), mask)  # for another method to update


@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.6)], ids=str)
@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", BOTH)
def test_masks_are_no_worse_than_those_of_magnitude_and_weights_no_better_than_least_squares(name, case, pattern):
    problem = choosing(name, case, pattern, barred=0)
    solution = METHODS[name](RECIPES["fast"], 0).solve(problem)
    own, kept = loss_of(problem, solution.weight), pattern.mask(problem.weight.abs())
    problem.mask, problem.pattern = kept, None
    fitted = METHODS["layerwise"](RECIPES["fast"], 0).solve(problem).weight
    problem.mask = solution.mask
    again = METHODS["layerwise"](RECIPES["fast"], 0).solve(problem).weight
    if name in SEARCHING:
        assert loss_of(problem, again) <= loss_of(problem, fitted) + 1e-9 * abs(own)
    assert loss_of(problem, again) <= own + 1e-9 * abs(own)
    if name in REFITTED:
        assert own == pytest.approx(loss_of(problem, again), rel=1e-9)


@pytest.mark.parametrize("name", [*REFITTED, "nettrim"])
@pytest.mark.parametrize("case", PROBLEMS)
def test_on_a_given_mask_these_are_least_squares(name, case):
    problem = problem_of(case)
    expected = METHODS["layerwise"](RECIPES["fast"], 0).solve(problem).weight
    assert torch.allclose(METHODS[name](RECIPES["fast"], 0).solve(problem).weight, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", BOTH)
def test_a_small_budget_changes_nothing(name):
    problem = choosing(name, "transformer", Unstructured(0.5))
    expected = METHODS[name](RECIPES["fast"], 0).choose(problem)
    problem.budget = Budget(factor_bytes=1.0)
    assert torch.equal(METHODS[name](RECIPES["fast"], 0).choose(problem), expected)


def network():
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)
    return awake(nn.Sequential(*layers))


def pruned(pattern="2:4", model=None, **options):
    options = {"layers": ["2"], "k": 0, "progress": False, "effort": "quick", **options}
    return snows.prune(network() if model is None else model, random_images(8), pattern, **options)


@pytest.mark.parametrize("pattern", ["2:4", 0.6])
@pytest.mark.parametrize("name", BOTH)
def test_one_call_of_solve_gives_mask_and_weights(monkeypatch, name, pattern):
    asked, method = [], METHODS[name]
    if isinstance(pattern, str) and not method.chooses_groups:
        pytest.skip("it knows no groups")
    solve = method.solve
    monkeypatch.setattr(method, "solve", lambda self, problem: asked.append(problem.pattern) or solve(self, problem))
    both = pruned(pattern, mask=name, update=name)
    assert len(asked) == 1 and asked[0] is not None
    for update in ("snows", "none"):
        other = pruned(pattern, mask=name, update=update)
        assert torch.equal(both.masks["2"], other.masks["2"])
    assert torch.equal(other.state["2.weight"], torch.where(both.masks["2"], network()[2].weight, 0.0))


@pytest.mark.parametrize("name", BOTH)
def test_a_mask_of_another_method_or_of_the_caller_stays_as_it_is(name):
    mask = torch.rand(6, 8, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.9  # more than the pattern keeps
    given = pruned(masks={"2": mask}, update=name)
    assert torch.equal(given.masks["2"], mask)
    # Wanda takes 22 of 72 weights from each row here, which is fewer than the share of the layer.
    wanda = pruned(0.312, mask="wanda", update="none").masks["2"]
    assert torch.equal(pruned(0.312, mask="wanda", update=name).masks["2"], wanda)
    magnitude = pruned(0.7, update="none").masks["2"]
    assert torch.equal(pruned(0.7, update=name).masks["2"], magnitude)


def minimum(x, x0, module, mask):
    """The masked ridge solution on inputs x for the dense outputs of x0, row by row, by NumPy."""
    rows, rows0 = patch_rows(x.detach().numpy(), module)[0][0], patch_rows(x0.detach().numpy(), module)[0][0]
    gram, dense = rows.T @ rows, module.weight.detach().flatten(1).numpy()
    damping = RIDGE * np.mean(np.diag(gram))
    weight = np.zeros(dense.shape)
    for i, kept in enumerate(mask.flatten(1).numpy()):
        right = rows.T @ (rows0 @ dense[i]) + damping * dense[i]
        weight[i, kept] = np.linalg.solve((gram + damping * np.eye(len(gram)))[np.ix_(kept, kept)], right[kept])
    return weight


@pytest.mark.parametrize("name", REFITTED)
def test_weights_are_the_minimum_on_the_chosen_mask_for_the_inputs_that_earlier_layers_left(name):
    model, images = network(), random_images(8)
    result = pruned(0.6, layers=["0", "2"], mask=name, update=name)
    x0 = model[:2](images)
    x = nn.functional.conv2d(images, result.state["0.weight"], model[0].bias, padding=1).relu()
    for layer, (own, other) in {"0": (images, images), "2": (x, x0)}.items():
        expected = minimum(own, other, model[int(layer)], result.masks[layer])
        assert np.allclose(result.state[f"{layer}.weight"].flatten(1), expected, atol=1e-7)


@pytest.mark.parametrize("name", BOTH)
def test_stages_let_one_object_choose_and_update(monkeypatch, name):
    method, asked = METHODS[name], []
    solve = method.solve
    monkeypatch.setattr(method, "solve", lambda self, problem: asked.append(problem.pattern) or solve(self, problem))
    result = pruned(0.8, mask=name, update=name, stages=3)
    assert len(asked) == 3 and None not in asked and asked[-1] == Unstructured(0.8)
    assert int((~result.masks["2"]).sum()) == round(0.8 * 432)
    steps = layer_steps(PruneSettings(0.8, mask=name, update=name, stage_k=2))
    between, last = (steps.of_stage(Unstructured(0.5), is_last) for is_last in (False, True))
    assert between.choose is between.update is steps.between and last.choose is last.update is steps.update
    other = layer_steps(PruneSettings(0.8, mask=name, update="layerwise"))
    assert other.of_stage(Unstructured(0.5), False).choose is other.choose


@pytest.mark.parametrize("name", BOTH)
def test_a_transformer_and_sparsities_by_layer(name):
    images = random_images(6, 4)
    options = {"k": 0, "progress": False, "effort": "quick", "mask": name, "update": name}
    result = snows.prune(small_vit(), images, {"blocks.0.mlp.*": 0.5, "blocks.1.mlp.fc2": 0.75}, **options)
    zeros = {layer: float((~mask).double().mean()) for layer, mask in result.masks.items()}
    assert zeros == {"blocks.0.mlp.fc1": 0.5, "blocks.0.mlp.fc2": 0.5, "blocks.1.mlp.fc2": 0.75}


@pytest.mark.parametrize("name", BOTH)
def test_inputs_that_are_always_zero_and_numbers_that_overflow(name):
    model = network()
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0.0, -1.0  # dead behind the ReLU
    for ridge in (1e-3, 0.0):
        result = pruned(0.5, model, mask=name, update=name, ridge=ridge)
        assert bool(torch.isfinite(result.state["2.weight"]).all()) and int(result.masks["2"].sum()) == 216
    problem = choosing(name, "residual unit", Unstructured(0.5))
    problem.normal_equations()[0].fill_(torch.inf)
    with pytest.raises(snows.SnowsError, match="Gram matrix overflows"):
        METHODS[name](RECIPES["fast"], 0).solve(problem)
