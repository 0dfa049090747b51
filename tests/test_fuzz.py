"""Random networks and random calls: what must hold whatever is asked. A few of each run always, the others are slow."""

import copy
import random
import warnings

import pandas as pd
import pytest
import torch
from fuzz import SIZE, random_network
from fuzz_calls import random_call
from oracles import Oracle
from toys import make_problem, nudged, random_images, random_mask, relative, same

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
            result = snows.prune(model, images(), **options, effort="quick")
        except SnowsError as error:  # the only reason that there can be here
            assert "fits at least one selected layer" in str(error) or "selects no layer" in str(error), error
            return
        again = snows.prune(model, images(), **options, effort="quick") if seed % 3 == 0 else None
    assert same(model.state_dict(), before) and torch.equal(x, original), "the caller's own is not changed"
    check_weights(result, before, options)
    check_report(result, options)
    loaded = snows.load(result.save(tmp_path / "saved"), copy.deepcopy(model))
    assert same(loaded.model.state_dict(), result.model.state_dict()) and same(loaded.masks, result.masks)
    pd.testing.assert_frame_equal(loaded.report, result.report, check_dtype=False, rtol=1e-12)
    assert again is None or (same(again.state, result.state) and same(again.masks, result.masks))


def check_weights(result, before, options):
    assert result.complete and result.masks and same(result.state, result.model.state_dict())
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


@pytest.mark.parametrize("seed", seeds(NETWORKS, (0, 3, 5)))
def test_random_networks_go_all_the_way_at_the_default_effort(seed):
    """Stages, permuted channels, swaps and joint refinement, whatever the network."""
    model, images = random_network(seed), random_images(12, SIZE, seed=seed)
    before = copy.deepcopy(model.state_dict())
    for pattern in ("2:4", "1:2", 0.6):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = snows.prune(model, images, pattern, k=1, progress=False)
            except SnowsError as error:
                assert "layers" in str(error), error  # nothing that takes the pattern
                continue
        assert same(model.state_dict(), before)
        assert result.complete and torch.isfinite(result.model(images)).all()
        for name, mask in result.masks.items():
            weight = result.state[result.weight_names[name]]
            assert (weight[~mask] == 0).all() and mask.any()
            if pattern == "2:4":
                assert (mask.movedim(1, -1).reshape(-1, 4).sum(1) <= 2).all()
