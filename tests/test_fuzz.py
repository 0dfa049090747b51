"""Random networks and random calls: what must hold whatever is asked. A few of each run always, the others are slow."""

import copy
import random
import warnings

import pandas as pd
import pytest
import torch
from fuzz import SIZE, random_network
from fuzz_calls import random_call
from torch import fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from toys import make_problem, nudged, random_images, random_mask, relative

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.errors import SnowsError
from snows_core.masks.patterns import parse_pattern
from snows_core.network.graph import Network

NETWORKS, CALLS = 40, 150
EXACT = 1e-10


def seeds(count, always):
    """Return all seeds below ``count``, those that are not among ``always`` marked as slow."""
    return [seed if seed in always else pytest.param(seed, marks=pytest.mark.slow) for seed in range(count)]


class Recorder(fx.Interpreter):
    """Runs a whole traced network with some weights replaced, and keeps what was asked for."""

    def __init__(self, module, weights, wanted):
        super().__init__(module, garbage_collect_values=False)
        self.weights, self.wanted, self.seen = weights, wanted, {}

    def run_node(self, node):
        value = super().run_node(node)
        if node in self.wanted:
            self.seen[node] = value
        return value

    def fetch_attr(self, target):
        return self.weights[target] if target in self.weights else super().fetch_attr(target)

    def call_module(self, target, args, kwargs):
        if f"{target}.weight" not in self.weights:
            return super().call_module(target, args, kwargs)
        own = {"weight": self.weights[f"{target}.weight"]}
        return torch.func.functional_call(self.submodules[target], own, args, kwargs)


class Oracle:
    """The K-step loss of a problem, from the image on, by plain autograd: no segment, no folding, no batches."""

    def __init__(self, problem, images):
        self.problem, self.images = problem, images
        self.targets = self.taps({})

    def taps(self, weights):
        wanted = self.problem.segment.taps
        recorder = Recorder(self.problem.network.module, weights, set(wanted))
        with sdpa_kernel(SDPBackend.MATH):
            recorder.run(self.images)
        return [recorder.seen[tap] for tap in wanted]

    def residuals(self, weight):
        weights = {**self.problem.pruned.weights, self.problem.layer.weight_name: weight}
        return torch.cat(
            [
                (output - target).flatten() / output.numel() ** 0.5
                for output, target in zip(self.taps(weights), self.targets, strict=True)
            ]
        )

    def derivatives(self, weight, direction):
        """Return loss, gradient, and the products of Hessian and Gauss-Newton matrix with a direction."""
        mask = self.problem.mask
        direction, free = direction * mask, weight.clone().requires_grad_()
        r = self.residuals(free)
        loss = r @ r
        (slope,) = torch.autograd.grad(loss, free, create_graph=True)
        (hessian,) = torch.autograd.grad(slope, free, direction, retain_graph=True)
        u = torch.zeros_like(r, requires_grad=True)
        (back,) = torch.autograd.grad(r, free, u, create_graph=True)
        (forward,) = torch.autograd.grad(back, u, direction, retain_graph=True)
        (gauss_newton,) = torch.autograd.grad(r, free, 2 * forward)
        return loss.item(), slope.detach() * mask, {"hessian": hessian * mask, "gauss-newton": gauss_newton * mask}


@pytest.mark.parametrize("seed", seeds(NETWORKS, (0, 1, 2)))
def test_graph_loss_gradient_and_products_of_random_networks(seed):
    model, images = random_network(seed), random_images(4, SIZE, seed=seed)
    network = Network(model, example=images[:2])
    with torch.no_grad():
        expected = model(images.clone())
    assert relative(ActivationCache(network, [images]).finish()[0], expected) < EXACT
    draw = random.Random(seed)
    layers = [layer for layer in network.layers if layer.weight_name]
    for layer in draw.sample(layers, min(3, len(layers))):
        k, curvature = draw.choice([0, 1, 2, 3, 4, 5, 6, 100]), draw.choice(["hessian", "gauss-newton"])
        mask = random_mask(tuple(network.weight(layer).shape), seed=seed)
        place = network.index[layer.node]  # the layers before it are pruned already, those behind it are dense
        damaged = {
            other.weight_name: nudged(network.weight(other), 0.1)
            for other in layers
            if network.index[other.node] < place
        }
        problem = make_problem(model, images.split(3), layer.name, k, mask=mask, damaged=damaged, curvature=curvature)
        compare_with_autograd(problem, images)


def compare_with_autograd(problem, images):
    oracle, weight = Oracle(problem, images), nudged(problem.weight) * problem.mask
    direction = torch.randn(weight.shape, dtype=torch.float64)
    loss, slope, products = oracle.derivatives(weight, direction)
    at = problem.objective.linearise(weight)
    assert at.loss == pytest.approx(loss, rel=EXACT)
    assert problem.objective.value(weight) == pytest.approx(loss, rel=EXACT)
    assert relative(at.gradient, slope) < EXACT
    assert relative(at.product(direction), products[problem.objective.options.curvature]) < EXACT


@pytest.mark.parametrize("seed", seeds(CALLS, range(6)))
def test_what_a_random_call_promises(seed, tmp_path):
    model, x, images, options = random_call(seed)
    before, original = copy.deepcopy(model.state_dict()), x.clone()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(calibration images|zero already|max_memory).*")
        try:
            result = snows.prune(model, images(), **options)
        except SnowsError as error:  # the only reason that there can be here
            assert "fits at least one selected layer" in str(error) or "selects no layer" in str(error), error
            return
        again = snows.prune(model, images(), **options) if seed % 3 == 0 else None
    assert equal(model.state_dict(), before) and torch.equal(x, original), "the caller's own is not changed"
    check_weights(result, before, options)
    check_report(result, options)
    loaded = snows.load(result.save(tmp_path / "saved"), copy.deepcopy(model))
    assert equal(loaded.model.state_dict(), result.model.state_dict()) and equal(loaded.masks, result.masks)
    pd.testing.assert_frame_equal(loaded.report, result.report, check_dtype=False, rtol=1e-12)
    assert again is None or (equal(again.state, result.state) and equal(again.masks, result.masks))


def equal(one, other):
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in one.items()
    )


def check_weights(result, before, options):
    assert result.complete and result.masks and equal(result.state, result.model.state_dict())
    pruned = set(result.weight_names.values())
    for name, weight in result.state.items():
        assert weight.dtype == before[name].dtype and torch.isfinite(weight).all(), name
        if name not in pruned and not options.get("refine"):
            assert torch.equal(weight, before[name]), name
    pattern = parse_pattern(options["pattern"])
    for layer, mask in result.masks.items():
        assert not result.state[result.weight_names[layer]][~mask].any(), layer
        if isinstance(pattern, snows.NM) and "masks" not in options:
            groups = mask.unflatten(1, (-1, pattern.m)).sum(2)
            assert (groups == pattern.n).all(), layer


def check_report(result, options):
    rows = result.report.set_index("layer")
    done = rows[rows["status"] == "pruned"]
    assert set(done.index) == result.masks.keys() and (rows["reason"] == "").eq(rows["status"] == "pruned").all()
    assert rows["weights"].ge(rows["kept"]).all() and rows.drop(done.index)["sparsity"].eq(0).all()
    for name, mask in result.masks.items():
        assert (done.loc[name, "kept"], done.loc[name, "weights"]) == (mask.sum(), mask.numel())
        assert done.loc[name, "sparsity"] == pytest.approx(1 - float(mask.double().mean()))
    assert (done["loss_end"] >= 0).all() and (done["k"] <= (options["k"] if options["k"] != "auto" else 20)).all()
    if options["recipe"] == "fast":
        assert (done["loss_end"] <= done["loss_start"] * (1 + 1e-6)).all()
