"""FALCON: both budgets kept and used, in one stage and in several; what nothing would keep is refused."""

import pytest
import torch
from toys import layer_named, random_images, same, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks.patterns import parse_pattern
from snows_core.methods import NETWORK_METHODS, NetworkProblem
from snows_core.methods.falcon import TwoBudgets
from snows_core.network.graph import Network
from snows_core.network.positions import output_positions

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
INNER = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.conv2", "layer2.downsample.0"]
IMAGES = random_images(10)
# Output positions of 8 x 8 images by hand: the second unit halves them.
POSITIONS = {"layer1.conv1": 64, "layer1.conv2": 64, "layer2.conv1": 16, "layer2.conv2": 16, "layer2.downsample.0": 16}


def problem(pattern="global:0.6", flops=0.2):
    network = Network(small_resnet(), example=IMAGES[:2])
    names = {name: layer_named(network, name).weight_name for name in INNER}
    return NetworkProblem(network, names, IMAGES, parse_pattern(pattern), 5, None, {}, 1e9, flops)


def run(flops, pattern="global:0.6", update="falcon", **options):
    options = {"mask": "falcon", "update": update, "k": 0, "progress": False, "layers": INNER, **options}
    return snows.prune(small_resnet(), IMAGES, pattern, flops=flops, **options)


def share_of(masks):
    dense = sum(POSITIONS[name] * mask.numel() for name, mask in masks.items())
    return sum(POSITIONS[name] * int(mask.sum()) for name, mask in masks.items()) / dense


def test_output_positions_are_those_of_the_layers():
    assert problem().positions == POSITIONS
    of = problem()
    sizes = {name: weight.numel() for name, weight in of.weights.items()}
    assert of.operations() == sum(POSITIONS[name] * size for name, size in sizes.items())
    assert of.operations(dict.fromkeys(INNER, 2)) == 2 * sum(POSITIONS.values())
    network = Network(small_vit())
    tokens = output_positions(network, network.layers, random_images(1, 4))
    assert tokens["blocks.0.attn.qkv"] == tokens["blocks.1.mlp.fc2"] == 5 and tokens["head"] == 1  # class token, 2 x 2


@pytest.mark.parametrize("flops", [0.1, 0.2, 0.3])
def test_both_budgets_hold_and_one_is_used_up(flops):
    of = problem(flops=flops)
    kept = TwoBudgets(of)(of.vector(of.weights).abs())
    masks = {name: part.view(of.weights[name].shape) for name, part in zip(INNER, kept.split(of.sizes), strict=True)}
    total, left = sum(of.sizes), (1 - 0.6) * sum(of.sizes)
    assert int(kept.sum()) <= round(left) and share_of(masks) <= flops
    assert all(mask.any() for mask in masks.values())
    spare = flops * of.operations() - sum(POSITIONS[name] * int(mask.sum()) for name, mask in masks.items())
    assert int(kept.sum()) == total - round(0.6 * total) or spare < max(POSITIONS.values())
    for name, mask in masks.items():  # in a layer always the largest
        weight = of.weights[name].abs()
        assert mask.all() or float(weight[mask].min()) >= float(weight[~mask].max())


def test_a_bound_that_does_not_bind_leaves_the_masks_of_the_pattern():
    of = problem(flops=0.9999)
    scores = of.vector(of.weights).abs()
    assert torch.equal(TwoBudgets(of)(scores), of.vector(of.masks(scores)))
    free, chita = (NETWORK_METHODS[name]().solve(problem(flops=None)) for name in ("falcon", "chita"))
    assert same(free.masks, chita.masks) and same(free.weights, chita.weights)


def test_a_cap_and_zeros_of_the_dense_network_are_respected():
    of = problem("global:0.6:0.9", flops=0.15)
    of.network.module.get_parameter("layer2.conv2.weight").data.view(-1)[:500] = 0.0
    kept = dict(zip(INNER, TwoBudgets(of)(of.vector(of.weights).abs()).split(of.sizes), strict=True))
    assert not kept["layer2.conv2"][:500].any()
    assert all(int(part.sum()) >= min(len(part) - int(0.9 * len(part)), 76) for part in kept.values())
    with pytest.raises(SnowsError, match=r"^flops: got 0\.01; expected room for .*cap says\. They alone take 0\.1"):
        TwoBudgets(problem("global:0.6:0.9", flops=0.01))(of.vector(of.weights).abs())


@pytest.mark.parametrize("stages", [1, 3])
def test_prune_keeps_both_and_says_so(stages):
    result = run(0.2, stages=stages)
    assert share_of(result.masks) <= 0.2 and result.sparsity >= 0.6 - 1e-3
    flops = result.manifest["flops"]
    assert flops["at most"] == 0.2 and flops["kept"] / flops["dense"] == pytest.approx(
        share_of(result.masks), rel=1e-12
    )
    assert share_of(run(None, stages=stages).masks) > 0.2 and run(None).manifest["flops"] is None
    shares = [record["sparsity"] for record in result.manifest["stage_records"]]
    assert len(shares) == stages and shares == sorted(shares)
    for name, mask in result.masks.items():
        assert not result.state[result.weight_names[name]][~mask].any()


def test_its_weights_are_nearer_in_the_quadratic_than_the_largest_under_the_same_budgets():
    of = problem()
    scores = of.vector(of.weights).abs()
    matrix = of.gradients.T @ of.gradients / len(of.gradients) + of.damping * torch.eye(len(scores))
    largest = {
        n: p.view(of.weights[n].shape) for n, p in zip(INNER, TwoBudgets(of)(scores).split(of.sizes), strict=True)
    }
    method, ends = NETWORK_METHODS["falcon"](), []
    for masks in (method.choose(of), largest):
        away = of.vector(method.update(of, masks)) - of.vector(of.weights)
        ends.append(float(away @ matrix @ away))
    assert ends[0] <= ends[1] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flops": 1.5}, r"^flops: got 1\.5; expected a finite number above 0 and below 1"),
        ({"flops": 0}, r"^flops: got 0; expected a finite number above 0"),
        ({"flops": 0.3, "mask": "chita"}, r"^flops: got 0\.3 with mask='chita'; expected a mask .*\['falcon'\]"),
        ({"flops": 0.3, "pattern": 0.6}, r"^flops: got 0\.3 with the pattern unstructured 0\.6; expected a global"),
        ({"flops": 0.3, "pattern": "2:4"}, r"^flops: got 0\.3 with the pattern 2:4; expected a global"),
        ({"flops": 0.3, "allocation": "erk"}, r"^flops: got 0\.3 with the pattern .* and allocation='erk'"),
        ({"flops": 0.3, "refine": 5, "moving_masks": True}, r"^flops: got 0\.3 beside moving_masks"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    with pytest.raises(SnowsError, match=message):
        run(**options)


def test_an_interrupted_run_goes_on_under_the_same_bound_alone():
    result = run(0.2)
    with pytest.raises(SnowsError, match="resume: got a result with another flops"):
        run(0.3, resume=result)
