"""METHODS: every layer-wise method through the same problems, against what its paper says it minimises or keeps."""

import math

import pytest
import torch
from problems import PROBLEMS, problem_of
from toys import random_images, relative, small_resnet

from snows_core.activations import DiskTensor
from snows_core.errors import SnowsError
from snows_core.loss.options import LossOptions
from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS, Budget, LayerMethod, LayerStatistics, Needs
from snows_core.network import Network, patches
from snows_core.settings import RECIPES, PruneSettings
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.steps import LayerSteps
from snows_core.sweep.sweep import Sweep

UPDATES = [name for name, method in METHODS.items() if method.updates_weights]


def squared_error(problem, weight):
    """Sum over images, positions and outputs of the squared error of the layer's own output, from its definition."""
    source, total = problem.layer.node.all_input_nodes[0], 0.0
    for batch in range(len(problem.sizes)):
        x, x0 = (values.read(source, batch) for values in (problem.values.pruned, problem.values.dense))
        got, wanted = problem.network.apply(problem.layer, x, weight), problem.network.apply(problem.layer, x0)
        total += float((got - wanted).square().sum())
    return total


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("name", UPDATES)
def test_every_update_keeps_the_mask_and_reports_its_k_step_loss(name, case):
    problem = problem_of(case)
    solution = METHODS[name](RECIPES["fast"], 2).solve(problem)
    assert solution.weight.shape == problem.weight.shape and solution.mask is problem.mask
    assert bool(torch.isfinite(solution.weight).all()) and not solution.weight[~problem.mask].any()
    method, segment = METHODS[name](RECIPES["fast"], 2), problem.segments[-1]
    loss = problem.reconstruction(segment, method.needs.loss, 2)
    got = solution.statistics
    assert got.loss_end == pytest.approx(loss.value(solution.weight), rel=1e-9)
    if name != "sparsegpt":  # its last columns have none behind them that could make up for what they lose
        assert got.loss_end <= got.loss_masked * (1 + 1e-9)
    assert got.k == segment.k and got.stop
    if name == "none":
        assert torch.equal(solution.weight, problem.masked) and got.loss_masked == got.loss_end
    if not name.startswith("snows"):
        assert got.loss_masked == pytest.approx(loss.value(problem.masked), rel=1e-9) and got.products == 0


@pytest.mark.parametrize("case", PROBLEMS)
def test_layerwise_and_adaprune_minimise_the_error_of_the_layers_own_output(case):
    problem = problem_of(case)
    errors = {name: squared_error(problem, METHODS[name](RECIPES["fast"], 2).solve(problem).weight) for name in UPDATES}
    assert errors["layerwise"] <= min(errors.values()) * (1 + 1e-3)  # up to its ridge
    gained = (errors["none"] - errors["adaprune"]) / (errors["none"] - errors["layerwise"])
    assert 0.8 < gained <= 1 + 1e-3
    told = METHODS["adaprune"](RECIPES["fast"], 2).solve(problem).statistics.stop
    assert told == "the 300 steps of Adam were taken"


@pytest.mark.parametrize("case", PROBLEMS)
def test_snows_ends_nearest_on_the_k_step_loss(case):
    problem = problem_of(case)
    ends = {name: METHODS[name](RECIPES["fast"], 2).solve(problem).statistics.loss_end for name in UPDATES}
    others = [end for name, end in ends.items() if not name.startswith("snows")]
    assert ends["snows"] <= min(others) and ends["snows"] < ends["none"]
    assert ends["snows"] < 1.01 * min(ends.values())  # by rivals on the same loss: its stop leaves 1 % at most


@pytest.mark.parametrize("case", PROBLEMS)
@pytest.mark.parametrize("pattern", [NM(2, 4), Unstructured(0.75)])
def test_wanda_keeps_the_largest_weight_times_input_norm(case, pattern):
    problem = problem_of(case)
    if isinstance(pattern, NM) and pattern.misfit(problem.weight):
        pytest.skip("its inputs do not divide into groups")
    problem.pattern, problem.mask = pattern, torch.ones_like(problem.mask)
    problem.mask.view(-1)[:3] = False
    source = problem.layer.node.all_input_nodes[0]
    x = torch.cat([problem.values.pruned.read(source, batch) for batch in range(2)])
    norms = patches(x, problem.geometry).square().sum(1).sqrt()  # (groups, d)
    weight = problem.weight
    scores = weight.flatten(1).abs() * norms.repeat_interleave(len(weight) // len(norms), 0)
    scores = torch.where(problem.mask.flatten(1), scores, -1.0).view_as(weight)
    solution = METHODS["wanda"](RECIPES["fast"], 2).solve(problem)
    mask = solution.mask
    assert not mask[~problem.mask].any()
    assert torch.equal(solution.weight, weight * mask)  # masked, not re-fitted
    if isinstance(pattern, NM):
        kept = scores.movedim(1, -1).unflatten(-1, (-1, 4)), mask.movedim(1, -1).unflatten(-1, (-1, 4))
        for group, flags in zip(kept[0].reshape(-1, 4), kept[1].reshape(-1, 4), strict=True):
            wanted = {int(i) for i in group.argsort(descending=True)[:2] if group[i] >= 0}
            assert {int(i) for i in flags.nonzero()} == wanted
    else:
        for row, flags in zip(scores.flatten(1), mask.flatten(1), strict=True):
            count = row.numel() - min(round(0.75 * row.numel()), row.numel() - 1)
            assert {int(i) for i in flags.nonzero()} == {int(i) for i in row.argsort(descending=True)[:count]}


def test_the_sweep_lets_one_method_choose_and_another_update():
    model, images = small_resnet(), random_images(12)
    network = Network(model)
    from snows_core.sweep.choose_masks import choose_masks
    from snows_core.sweep.select import select_layers

    selection, masks = choose_masks(network, select_layers(network, model, images[:2]), NM(2, 4))
    made = []

    class Noting(METHODS["wanda"]):
        def choose(self, problem):
            made.append(super().choose(problem))
            return made[-1]

    steps = LayerSteps(METHODS["layerwise"](RECIPES["fast"], 2), Noting(RECIPES["fast"], 2), NM(2, 4))
    sweep = Sweep(network, selection.prunable, masks, steps, images)
    sweep.run(False, {})
    assert len(made) == len(selection.prunable) == len(sweep.solutions)
    for mask, solution in zip(made, sweep.solutions.values(), strict=True):
        assert torch.equal(mask, solution.mask) and not solution.weight[~mask].any()
        assert solution.statistics.stop == "least squares in closed form" and solution.statistics.seconds > 0
    assert any(not torch.equal(masks[name], solution.mask) for name, solution in sweep.solutions.items())


def test_a_method_that_does_both_is_asked_once():
    model, images = small_resnet(), random_images(8)
    network = Network(model)
    from snows_core.sweep.choose_masks import choose_masks
    from snows_core.sweep.select import select_layers

    selection, masks = choose_masks(network, select_layers(network, model, images[:2]), NM(2, 4))
    asked = []

    class Both(METHODS["none"]):
        chooses_masks = True

        def choose(self, problem):
            raise AssertionError("solve chooses and updates at once")

        def solve(self, problem):
            asked.append((problem.mask.clone(), problem.pattern))
            mask = problem.pattern.mask(problem.weight.abs())
            return self.solution(problem, torch.where(mask, problem.weight, 0.0), mask, "both")

    both = Both(RECIPES["fast"], 2)
    sweep = Sweep(network, selection.prunable, masks, LayerSteps(both, both, NM(2, 4)), images)
    sweep.run(False, {})
    assert len(asked) == len(masks) and all(bool(mask.all()) and pattern == NM(2, 4) for mask, pattern in asked)
    assert all(torch.equal(masks[name], solution.mask) for name, solution in sweep.solutions.items())


def test_methods_by_name():
    steps = layer_steps(PruneSettings(update="layerwise", k=3))
    assert type(steps.update) is METHODS["layerwise"] and steps.choose is None and steps.update.k == 3
    steps = layer_steps(PruneSettings(mask="wanda", update="adaprune", recipe="paper", k=4))
    assert type(steps.choose) is METHODS["wanda"] and steps.pattern == NM(2, 4)
    assert steps.choose.k == steps.update.k == 4 and steps.choose.recipe == steps.update.recipe == RECIPES["paper"]
    assert all(issubclass(method, LayerMethod) and method.__doc__ for method in METHODS.values())


@pytest.mark.parametrize(
    "mask, update, choice, message",
    [
        (
            "magnitude",
            "wanda",
            {},
            r"update: got 'wanda'; expected one of \['adaprune', .*'layerwise', .*'snows', .*\]",
        ),
        ("magnitude", "snow", {}, r"update: got 'snow'.*Nearest: snows"),
        ("wand", "snows", {}, r"mask: got 'wand'; expected one of \['magnitude', .*'obc', .*'wanda'\].*Nearest: wanda"),
        ("snows", "snows", {}, r"mask: got 'snows'"),
        ("wanda", "snows", {"masks": {}}, r"mask: got 'wanda'; expected no masks= beside it"),
        (
            "nettrim",
            "snows",
            {"pattern": "2:4"},
            r"mask: got 'nettrim' with the pattern 2:4; expected a pattern without groups\. "
            r".*\['magnitude', 'alps', 'obc', 'obs', 'sparsegpt', 'swaps', 'wanda', .*'woodfisher'\] know N:M",
        ),
        (
            "wanda",
            "snows",
            {"pattern": "global:0.8"},
            r"mask: got 'wanda' with the pattern .*a pattern of one layer.*0\.8",
        ),
    ],
)
def test_names_that_cannot_be_meant(mask, update, choice, message):
    with pytest.raises(SnowsError, match=message):
        layer_steps(PruneSettings(mask=mask, update=update, **choice))


def test_what_is_asked_for_twice_is_computed_once(monkeypatch):
    from snows_core.methods import problem as module

    problem, calls, original = problem_of("residual unit"), [], module.normal_equations
    monkeypatch.setattr(module, "normal_equations", lambda *a: calls.append(1) or original(*a))
    first, again = problem.normal_equations(), problem.normal_equations(11)
    assert (
        first[0] is again[0] and len(calls) == 1 and problem.normal_equations(8)[0] is not first[0] and len(calls) == 2
    )
    gram = problem.normal_equations()[0]
    assert relative(gram, gram.mT) < 1e-12 and problem.images == 11 and math.isclose(problem.positions, 64.0)


def test_row_factors_rest_in_files_where_the_budget_says_so():
    problem = problem_of("residual unit")
    assert all(isinstance(factor, torch.Tensor) for *_, factor in problem.row_factors(1e-3).parts)
    problem.budget = Budget(factors_on_disk=True)
    assert all(isinstance(factor, DiskTensor) for *_, factor in problem.row_factors(1e-3).parts)


def test_the_steps_of_adaprune_end_small(monkeypatch):
    made, adam = [], torch.optim.Adam
    monkeypatch.setattr(torch.optim, "Adam", lambda *a, **options: made.append(adam(*a, **options)) or made[-1])
    problem = problem_of("residual unit")
    METHODS["adaprune"](RECIPES["fast"], 2).solve(problem)
    (optimiser,) = made
    first, last = optimiser.param_groups[0]["initial_lr"], optimiser.param_groups[0]["lr"]
    kept = problem.weight[problem.mask]
    assert first == pytest.approx(0.02 * float(kept.square().mean().sqrt()), rel=1e-9) and last < 1e-6 * first


def test_what_a_solve_did_not_count_is_nothing():
    statistics = LayerStatistics(0, 1.0, 1.0, 0.5)
    counted = (statistics.newton_steps, statistics.products, statistics.image_products, statistics.seconds)
    assert counted == (0, 0, 0, 0.0) and statistics.stop == ""


def test_only_what_factors_gram_matrices_asks_for_them():
    recipe = RECIPES["fast"]
    assert {name for name, method in METHODS.items() if method(recipe, 2).needs.row_factors} == {
        *(name for name in METHODS if name.startswith("snows")),
        "layerwise",
        "nettrim",
        "obc",
        "obs",
        "swaps",
    }


def test_losses_count_operations_as_the_recipe_says():
    for name in ("layerwise", "none", "wanda"):
        needs = [METHODS[name](RECIPES[recipe], 2).needs for recipe in ("fast", "paper")]
        assert [of.loss.tap_rule for of in needs] == ["all", "published"]


def test_a_method_that_asks_for_nothing_gets_what_its_description_says():
    usual = LossOptions("gauss-newton", normalise=True)
    assert Needs() == Needs(targets="dense", batch_size=64, mini_batches=False, row_factors=False, loss=usual)
