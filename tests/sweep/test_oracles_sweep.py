"""Oracles of a whole sweep: least squares layer after layer by NumPy, the climb of K, what a run promises."""

import math

import pytest
import torch
from numpy_layers import RIDGE, applied, refitted
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from toys import awake, layer_named, loss_of, random_images, random_mask, relative, small_resnet, streams

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.methods import choose_k
from snows_core.methods.choose_k import choose_segment, ladder
from snows_core.network.graph import Network
from snows_core.settings import NewtonOptions, get_recipe
from snows_core.solvers.newton_cg import newton

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


class Pictures(nn.Sequential):
    """Strides, paddings, a rectangular kernel and groups; biases everywhere."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.LazyLinear(3),
        )
        self(torch.zeros(1, 3, 8, 8))


class Vectors(nn.Sequential):
    """Linear layers on vectors."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(48, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 6))


class Tokens(nn.Sequential):
    """Linear layers on tokens: as many positions as rows of the picture."""

    def __init__(self):
        super().__init__(nn.Flatten(2), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.mark.parametrize(("make", "size", "images"), [(Pictures, 8, 11), (Vectors, 4, 90), (Tokens, 8, 50)])
def test_layer_after_layer_at_k_zero_against_numpy_alone(make, size, images):
    # The second layer reads what the pruned first one gives and is held to what the dense one gave: the cross term.
    model, x = awake(make()), random_images(images, size)
    layers = {name: module for name, module in model.named_children() if hasattr(module, "weight")}
    masks = {name: random_mask(module.weight.shape, 0.6, int(name)) for name, module in layers.items()}
    result = snows.prune(
        model, x, masks=masks, k=0, ridge=RIDGE, batch_size=7, normalise=False, progress=False, effort="quick"
    )
    report = result.report.set_index("layer")
    pruned = dense = x.numpy()
    for name, module in model.named_children():
        if name in layers:
            expected, error = refitted(pruned, dense, module, masks[name].flatten(1).numpy())
            got = result.state[f"{name}.weight"].flatten(1)
            assert relative(got, torch.from_numpy(expected)) < 1e-8, name
            assert report["loss_end"][name] == pytest.approx(error, rel=1e-8)
            pruned = applied(pruned, module, expected)
            dense = applied(dense, module, module.weight.detach().flatten(1).numpy())
        else:
            pruned, dense = (module(torch.from_numpy(value)).numpy() for value in (pruned, dense))
    assert relative(result.model(x).detach(), torch.from_numpy(pruned)) < 1e-8


@pytest.mark.parametrize("batch_size", [8, 30])
def test_losses_of_a_sweep_are_normalised_mean_squared_errors_against_the_dense_network(batch_size):
    model, x = awake(Vectors()), random_images(30, 4)
    result = snows.prune(
        model, x, 0.5, k=2, layers=["1", "3"], progress=False, batch_size=batch_size, steps=0, effort="quick"
    )
    x = x[result.manifest["calibration"]["order"]]
    row, weight = result.report.set_index("layer").loc["3"], result.state["3.weight"]
    with torch.no_grad():
        before, before0 = (nn.functional.relu(network[1](x.flatten(1))) for network in (result.model, model))
        expected = {"loss_end": 0.0, "loss_masked": 0.0}
        for which, own in (("loss_end", weight), ("loss_masked", model[3].weight * result.masks["3"])):
            value, target = before, before0
            value, target = nn.functional.linear(value, own, model[3].bias), model[3](target)
            for module in (None, model[4], model[5]):
                value, target = (value, target) if module is None else (module(value), module(target))
                seen = slice(batch_size if which == "loss_masked" else None)  # one batch stands for all
                expected[which] += float((value - target)[seen].square().mean() / target.var(correction=0))
    for which, loss in expected.items():
        assert row[which] == pytest.approx(loss, rel=1e-9), which


class Gains(nn.Module):
    """A layer whose output channels count very differently in the operation behind it."""

    def __init__(self, spread):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 24, 1, bias=False)
        self.gain, self.head = nn.Conv2d(24, 24, 1, groups=24, bias=False), nn.Linear(24, 3)
        awake(self)
        with torch.no_grad():
            self.gain.weight.copy_(torch.logspace(-spread, spread, 24, dtype=torch.float64).view(24, 1, 1, 1))

    def forward(self, x):
        return self.head(self.gain(self.layer(self.stem(x))).mean((2, 3)))


def test_the_preconditioner_knows_how_strongly_each_row_curves():
    products = {}
    for spread in (0, 2):
        row = (
            snows.prune(
                Gains(spread),
                random_images(24),
                0.5,
                k=1,
                layers=["layer"],
                warm_start=False,
                progress=False,
                steps=1,
                cg_progress=0.0,
                cg_relative=1e-6,
                cg_iterations=400,
                normalise=False,
                effort="quick",
            )
            .report.set_index("layer")
            .loc["layer"]
        )
        products[spread] = row["products"]
    assert products[2] <= products[0] + 3, "gains of 0.01 to 100 cost no more than equal ones"


CLOSE = NewtonOptions(cg_progress=5e-3)


def ladder_problem(seed, network):
    layer = layer_named(network, "layer1.conv1")
    batches = list(random_images(24, 8, seed=seed).split([8, 8, 8]))
    batches[0], batches[2] = 3 * batches[0], 0 * batches[2]  # one tells much, one little, of the one that judges
    damaged = {"conv1.weight": network.weight(layer_named(network, "conv1"))}
    pruned, dense = streams(network, batches, layer, damaged)
    segments = ladder(network, layer, "auto")
    dense.needed_until = {node: 10**9 for node in (*segments[-1].taps, layer.node.all_input_nodes[0])}
    dense.advance(len(network.nodes))
    mask = random_mask(network.weight(layer).shape, 0.3, seed)
    recipe = get_recipe("fast", normalise=False)
    return segments, lambda s: loss_of(network, s, mask, (pruned, dense), recipe), network.weight(layer) * mask


def climbed(segments, loss_of, start, share, judge):
    """The rule as the module's head states it; ``judge`` is the batch on which a trial is judged."""
    far, chosen, before, cost, products = loss_of(segments[-1]).on([judge]), segments[0], math.inf, math.inf, 0
    for segment in segments:
        trial = loss_of(segment).on([0])
        solution = newton(trial, start, NewtonOptions(steps=1, cg_progress=5e-3))
        products += trial.products
        error = far.per_tap(solution.weight)[-1]
        with FlopCounterMode(display=False) as counter:
            trial.value(start)
        price = counter.get_total_flops()
        if before < math.inf and before - error < share * before * math.log2(price / cost):
            break
        chosen, before, cost = segment, error, price
    return chosen.k, products


def test_a_trial_of_auto_k_is_judged_on_images_that_it_did_not_see(monkeypatch):
    network, same = Network(small_resnet()), {0: set(), 2: set()}
    for share in (0.02, 0.08, 0.2):
        monkeypatch.setattr(choose_k, "SHARE_PER_DOUBLING", share)
        for seed in range(5):
            segments, loss_of, start = ladder_problem(seed, network)
            segment, products, image_products = choose_segment(
                segments, loss_of, start, NewtonOptions(steps=4, cg_progress=5e-3), lambda objective: None
            )
            assert (segment.k, products) == climbed(segments, loss_of, start, share, judge=1)
            assert image_products == 8 * products, "a trial takes one batch"
            for judge, found in same.items():
                found.add(climbed(segments, loss_of, start, share, judge)[0] == segment.k)
    assert all(False in found for found in same.values()), "the cases have to tell the batches apart"


def test_one_segment_needs_no_trial_and_two_are_climbed(monkeypatch):
    segments, loss_of, start = ladder_problem(0, Network(small_resnet()))
    assert choose_segment(segments[1:2], None, start, NewtonOptions(), None) == (segments[1], 0, 0)
    for share in (1e9, -1e9):
        monkeypatch.setattr(choose_k, "SHARE_PER_DOUBLING", share)
        segment, products, _ = choose_segment(segments[:2], loss_of, start, CLOSE, lambda objective: None)
        assert (segment.k, products) == climbed(segments[:2], loss_of, start, share, judge=1)
        assert segment is segments[0 if share > 0 else 1]


def test_trials_use_the_preconditioner_of_their_own_loss(monkeypatch):
    monkeypatch.setattr(choose_k, "SHARE_PER_DOUBLING", -1e9)
    segments, loss_of, start = ladder_problem(0, Network(small_resnet()))
    asked = []
    choose_segment(segments, loss_of, start, CLOSE, lambda loss: asked.append((loss.segment.k, loss.images)))
    assert asked == [(segment.k, 8) for segment in segments]


@pytest.mark.parametrize(("count", "sizes"), [(12, 6), (13, 7)])
def test_auto_k_has_a_second_batch_to_judge_on_however_few_images_there_are(count, sizes):
    for k, batch in (("auto", sizes), (2, count)):
        result = snows.prune(
            small_resnet(), random_images(count), "2:4", k=k, layers=["layer1.conv1"], progress=False, effort="quick"
        )
        assert result.manifest["memory"]["batch_size"] == batch


def test_a_single_image_is_enough_for_auto_k():
    result = snows.prune(
        small_resnet(), random_images(1), "2:4", k="auto", layers=["layer1.conv1"], progress=False, effort="quick"
    )
    assert result.report.set_index("layer").loc["layer1.conv1", "status"] == "pruned"


def test_given_masks_reach_the_ends_of_a_network_and_a_pattern_does_not():
    model, x = small_resnet(), random_images(12)
    ends = ["conv1", "fc"]
    masks = {name: random_mask(model.get_submodule(name).weight.shape) for name in [*ends, "layer1.conv2"]}
    given = snows.prune(model, x, masks=masks, k=1, progress=False, effort="quick")
    assert set(given.report.query("status == 'pruned'")["layer"]) == set(masks)
    for name, mask in masks.items():
        assert torch.equal(given.masks[name], mask)
        assert (given.state[f"{name}.weight"][~mask] == 0).all()
    by_pattern = snows.prune(model, x, 0.5, k=0, progress=False, effort="quick")
    assert not set(ends) & set(by_pattern.report.query("status == 'pruned'")["layer"])


def test_a_sweep_holds_no_values_of_layers_that_are_done(monkeypatch):
    # The dense values that were targets of one layer are gone when no later layer reads them.
    held, advance = [], ActivationCache.advance

    def counted(self, stop):
        advance(self, stop)
        held.append((stop, set(self.values[0]), dict(self.needed_until), self.network))

    monkeypatch.setattr(ActivationCache, "advance", counted)
    snows.prune(small_resnet(), random_images(6), "2:4", k=2, progress=False, effort="quick")
    sizes = []
    for stop, values, needed, network in held:
        ahead = {node for node in values if network.liveness.is_read_from(stop, node)}
        assert values - ahead <= set(needed), "what nobody reads any more is dropped"
        sizes.append(len(values - ahead))
    assert max(sizes) <= 6, "three taps and an input a layer, of two layers at most"
