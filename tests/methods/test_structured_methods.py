"""Methods that choose units, each against what its paper computes; and prune with OSSCAR, UP-ViTs, EigenDamage."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.loss.kronecker_factors import KroneckerFactors, kronecker_factors
from snows_core.masks.structured import Slices, Structured
from snows_core.methods import NETWORK_METHODS, NetworkProblem
from snows_core.methods.eigendamage import unit_costs
from snows_core.methods.osscar import RIDGE
from snows_core.network.geometry import geometry_of, patches
from snows_core.network.graph import Network
from snows_core.sweep.select import select_layers
from snows_core.sweep.select_units import with_units

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
UNITS = [name for name, method in NETWORK_METHODS.items() if method.chooses_units]


def problem_of(model, images, sparsity=0.5, before=None):
    network = Network(model, example=images[:2])
    selection = select_layers(network, model, images[:2])
    selection, (pattern,) = with_units(network, model, images[:2], selection, [Structured(sparsity)])
    names = {entry.name: entry.layer.weight_name for entry in selection.prunable}
    return NetworkProblem(network, names, images, pattern, 0, None, before or {}, 1e9)


def group_named(problem, name):
    return next(group for group in problem.structured.groups if group.name == name)


def inputs_of(model, name, images):
    """Return what a layer reads."""
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("model", "group", "reader", "size"),
    [
        (small_resnet, "layer1.conv1", "layer1.conv2", 8),
        (small_vit, "blocks.0.attn", "blocks.0.attn.proj", 4),
    ],
)
def test_osscar_keeps_the_units_whose_refit_errs_least(model, group, reader, size):
    """Four channels or two heads: all choices are tried, each re-fitted by ridge regression."""
    model, images = model(), random_images(6, size=size)
    problem = problem_of(model, images)
    masks, units = NETWORK_METHODS["osscar"]().choose(problem), group_named(problem, group)
    weight = model.get_submodule(reader).weight.detach()
    layer = next(layer for layer in problem.network.layers if layer.name == reader)
    x = patches(inputs_of(model, reader, images), geometry_of(layer.node, weight))[0]
    gram = x.T @ x
    gram += RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    rows = weight.flatten(1)

    def error(kept):
        mask = torch.ones(weight.shape, dtype=torch.bool)
        units.readers[0].cut(mask, torch.tensor([unit in kept for unit in range(units.count)]))
        at = mask.flatten(1)[0]
        fitted = torch.zeros_like(rows)
        fitted[:, at] = torch.linalg.solve(gram[at][:, at], (rows @ gram)[:, at].T).T
        return float(((fitted - rows) @ gram * (fitted - rows)).sum()), mask

    choices = [error(kept) for kept in itertools.combinations(range(units.count), units.count // 2)]
    assert torch.equal(masks[reader], min(choices, key=lambda one: one[0])[1] & masks[reader].any(1, keepdim=True))


def test_upvit_takes_each_unit_away_and_compares_the_answers():
    model, images = small_vit(), random_images(5, size=4)
    problem = problem_of(model, images)
    found = NETWORK_METHODS["upvit"]().divergences(problem)
    assert {"blocks.0.attn", "blocks.1.attn", "blocks.0.mlp.fc1", "blocks.1.mlp.fc1"} == found.keys()
    with torch.no_grad():
        whole = F.log_softmax(model(images), 1)
        for name, scores in found.items():
            (part,) = group_named(problem, name).readers
            weight = model.get_submodule(part.layer).weight
            before = weight.clone()
            for unit in (0, len(scores) - 1):
                weight[:, part.places[unit]] = 0.0
                wanted = F.kl_div(F.log_softmax(model(images), 1), whole, reduction="batchmean", log_target=True)
                weight.copy_(before)
                assert float(scores[unit]) == pytest.approx(float(wanted), rel=1e-6, abs=1e-12)  # float64
    masks = NETWORK_METHODS["upvit"]().choose(problem)
    for name, scores in found.items():
        (part,) = group_named(problem, name).readers
        kept = masks[part.layer].any(0)[part.places].all(1)
        assert scores[kept].min() >= scores[~kept].max()


def test_costs_of_units_are_those_of_the_dense_kronecker_product():
    generator = torch.Generator().manual_seed(0)
    half = [torch.randn(9, n, generator=generator, dtype=torch.float64) for n in (12, 3)]
    factors = KroneckerFactors(half[0].T @ half[0], half[1].T @ half[1])
    weight = torch.randn(3, 6, 2, 1, generator=generator, dtype=torch.float64)
    part = Slices("layer", 1, torch.tensor([[0, 3], [1, 4], [2, 5]]))
    fisher = torch.kron(factors.outputs, factors.inputs)  # of rows of W, one behind the other
    for unit, cost in enumerate(unit_costs(weight, part, factors)):
        gone = torch.zeros_like(weight)
        gone[:, part.places[unit]] = weight[:, part.places[unit]]
        vector = gone.flatten()
        assert float(cost) == pytest.approx(float(vector @ fisher @ vector) / 2, rel=1e-9)  # float64, 36 x 36


def test_factors_are_the_moments_of_inputs_and_returning_gradients():
    model, images = small_resnet(), random_images(11)  # more than are run together
    network, labels = Network(model, example=images[:2]), torch.arange(11) % 3
    layer = next(layer for layer in network.layers if layer.name == "layer2.conv2")
    found = kronecker_factors(network, [layer], {}, images, labels)["layer2.conv2"]
    seen = []
    hook = model.layer2.conv2.register_forward_hook(
        lambda _, given, output: seen.append(output) or output.retain_grad()
    )
    F.cross_entropy(model(images), labels, reduction="sum").backward()
    hook.remove()
    back = seen[0].grad.movedim(1, -1).flatten(0, -2)
    x = patches(inputs_of(model, "layer2.conv2", images), geometry_of(layer.node, model.layer2.conv2.weight))[0]
    assert torch.allclose(found.inputs, x.T @ x / 11, rtol=1e-9)
    positions = len(x) // 11
    assert torch.allclose(found.outputs, back.T @ back / positions / 11, rtol=1e-9, atol=1e-12)


def test_factors_of_one_position_and_one_image_are_the_fisher_itself():
    """The gradient of one image is one outer product, so that the Kronecker product is exact."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    images, labels = random_images(1, size=2), torch.tensor([1])
    network = Network(model, example=images)
    found = kronecker_factors(network, network.layers[:1], {}, images, labels)["1"]
    F.cross_entropy(model(images), labels).backward()
    gradient = model[1].weight.grad.flatten()
    assert torch.allclose(torch.kron(found.outputs, found.inputs), torch.outer(gradient, gradient), atol=1e-12)


@pytest.mark.parametrize("name", ["magnitude", *UNITS])
@pytest.mark.parametrize("model", [small_resnet, small_vit])
def test_every_method_prunes_whole_units_that_compact_takes_out(name, model):
    images = random_images(8, size=8 if model is small_resnet else 4)
    options = {"mask": name, "update": "layerwise", "effort": "quick", "progress": False, "k": 1}
    result, again = (snows.prune(model(), images, "structured:0.5", **options) for _ in range(2))
    assert all(torch.equal(result.state[key], again.state[key]) for key in result.state)
    problem = problem_of(model(), images)
    assert {part.layer for group in problem.structured.groups for part in group.slices} == set(result.masks)
    small = snows.compact(result, images)
    table = small.table.set_index("group")
    for group in problem.structured.groups:
        assert table.loc[group.name, "removed"] == group.count // 2
    with torch.no_grad():
        gap = (small.model(images) - result.module(images)).abs().max()
    assert float(gap) < 1e-10  # float64


@pytest.mark.parametrize("update", ["osscar", "snows", "none"])
def test_osscar_masks_with_its_own_update_and_others(update):
    options = {"mask": "osscar", "progress": False, "k": 2, "refine": 0}
    images = random_images(8)
    result = snows.prune(small_resnet(), images, "structured:0.5", update=update, **options)
    plain = snows.prune(small_resnet(), images, "structured:0.5", update="layerwise", **options)
    assert all(torch.equal(result.masks[name], plain.masks[name]) for name in plain.masks)
    same = all(torch.equal(result.state[key], plain.state[key]) for key in plain.state)
    assert same == (update == "osscar")
    assert result.manifest["update"] == update and result.manifest["pattern"] == "structured 0.5"


def test_stages_and_refinement_end_at_the_same_share():
    result = snows.prune(small_resnet(), random_images(32), "structured:0.5", progress=False, k=1, stages=2, refine=4)
    shares = [record["sparsity"] for record in result.manifest["stage_records"]]
    assert len(shares) == 2 and shares[0] <= shares[1] == pytest.approx(0.5, abs=0.01)
    assert all(not result.state[key][~result.masks[name]].any() for name, key in result.weight_names.items())
    assert snows.compact(result, random_images(2)).table["removed"].sum() == 6  # 2 of 4 and 4 of 8


def test_layers_outside_of_groups_say_why_they_stay():
    result = snows.prune(small_resnet(), random_images(8), "structured:0.5", effort="quick", k=0, progress=False)
    reasons = result.report.set_index("layer")["reason"]
    assert "residual stream" in reasons["layer2.downsample.0"]
    options = {"effort": "quick", "k": 0, "progress": False, "exclude": "layer1.conv2"}
    less = snows.prune(small_resnet(), random_images(8), "structured:0.5", **options)
    assert "'layer1.conv2'" in less.report.set_index("layer").loc["layer1.conv1", "reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": "wanda"}, r"mask: got 'wanda' with the pattern structured 0.5.*'osscar'"),
        ({"mask": "chita"}, r"mask: got 'chita' with the pattern structured 0.5"),
        ({"mask": "osscar", "pattern": 0.5}, r"mask: got 'osscar' with the pattern unstructured 0.5.*structured:0.5"),
        ({"mask": "upvit", "pattern": "2:4"}, r"mask: got 'upvit' with the pattern 2:4"),
        ({"update": "upvit"}, r"update: got 'upvit'"),
        ({"moving_masks": True, "refine": 4}, r"moving_masks: got True with the pattern structured"),
        ({"allocation": "erk"}, r"allocation: got 'erk' with the pattern structured"),
        ({"permute": True}, r"permute"),
        ({"layers": ["fc"]}, r"pattern: got structured 0.5.*"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    options = {"pattern": "structured:0.5", "progress": False, "k": 0, **options}
    with pytest.raises(SnowsError, match=message):
        snows.prune(small_resnet(), random_images(8), **options)
