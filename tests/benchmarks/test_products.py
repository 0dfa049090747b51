"""One curvature product against one forward + backward of the same segment; growth with images and K."""

import pytest
import torch
from clock import best, slope
from toys import loss_of

from snows_core import zoo
from snows_core.activations.cache import ActivationCache
from snows_core.network.graph import Network
from snows_core.settings import get_recipe


def objective_for(model, images, layer, k, batch_size=32):
    network = Network(model)
    entry = network.layers[layer]
    stream = ActivationCache(network, images.split(batch_size))
    stream.advance(network.index[entry.node])
    segment = network.segment(entry, k)
    weight = network.weight(entry)
    mask = torch.rand_like(weight) < 0.5
    objective = loss_of(network, segment, mask, (stream,), get_recipe("fast", normalise=False))
    return objective, torch.where(mask, weight, 0.0) * 0.9


def forward_backward(objective, weight):
    for batch in range(len(objective.contexts)):
        free = weight.clone().requires_grad_(True)
        loss, _ = objective.batch(batch).at(free)
        torch.autograd.grad(loss, free)


@pytest.mark.parametrize("layer", [1, 8, 16])
def test_product_against_forward_and_backward(benchmark, resnet, layer):
    objective, weight = objective_for(*resnet, layer, 5)
    at = objective.linearise(weight)
    direction = torch.randn_like(weight)
    benchmark(at.product, direction)
    ratio = best(lambda: at.product(direction)) / best(lambda: forward_backward(objective, weight))
    benchmark.extra_info["product / (forward + backward)"] = round(ratio, 2)
    print(f"\nlayer {layer}: product / (forward + backward) = {ratio:.2f}")


@pytest.mark.parametrize("layer", [1, 16])
def test_double_backward_against_forward_over_reverse(benchmark, resnet, layer):
    objective, weight = objective_for(*resnet, layer, 5)
    direction = torch.where(objective.mask, torch.randn_like(weight), 0.0)

    def loss(free):
        parts = []
        for batch in range(len(objective.contexts)):
            parts.append(objective.batch(batch).at(free)[0])
        return sum(parts)

    at = objective.linearise(weight)
    gradient = torch.func.grad(loss)
    _, linear = torch.func.linearize(gradient, weight)
    others = {
        "jvp of grad": lambda: torch.func.jvp(gradient, (weight,), (direction,))[1],
        "linearize": lambda: linear(direction),
    }
    benchmark(at.product, direction)
    ours = best(lambda: at.product(direction))
    for name, product in others.items():
        gap = torch.where(objective.mask, product(), 0.0) - at.product(direction)
        assert gap.norm() < 1e-4 * at.product(direction).norm()
        benchmark.extra_info[f"{name} / ours"] = round(best(product) / ours, 2)
    trace = best(lambda: torch.func.linearize(gradient, weight), 1) / ours
    benchmark.extra_info["tracing for linearize, in products"] = round(trace, 1)
    print(f"\nlayer {layer}, seconds against double backward on the retained graph: {dict(benchmark.extra_info)}")


def test_growth_with_images(benchmark, resnet):
    model, images = resnet
    sizes, seconds = (8, 16, 32, 64), []
    for size in sizes:
        objective, weight = objective_for(model, images[:size], 1, 5, 8)
        at = objective.linearise(weight)
        seconds.append(best(lambda at=at, weight=weight: at.product(weight)))
    benchmark.extra_info["log-log slope"] = round(slope(sizes, seconds), 2)
    print(f"\nseconds of a product against images: log-log slope {slope(sizes, seconds):.2f}")
    benchmark(at.product, weight)


def test_growth_with_k(benchmark, resnet):
    model, images = resnet
    ks, seconds = (2, 5, 10, 20), []
    for k in ks:
        objective, weight = objective_for(model, images, 1, k)
        at = objective.linearise(weight)
        seconds.append(best(lambda at=at, weight=weight: at.product(weight), 3))
    benchmark.extra_info["log-log slope"] = round(slope(ks, seconds), 2)
    print(f"\nseconds of a product against K: log-log slope {slope(ks, seconds):.2f}")
    benchmark(at.product, weight)


def test_growth_with_width(benchmark, resnet):
    sizes, seconds = (8, 16, 32, 64), []
    for width in sizes:
        objective, weight = objective_for(zoo.resnet20(width=width).eval(), resnet[1][:16], 1, 5)
        at = objective.linearise(weight)
        seconds.append(best(lambda at=at, weight=weight: at.product(weight), 3))
    benchmark.extra_info["log-log slope"] = round(slope(sizes, seconds), 2)
    print(f"\nseconds of a product against width: log-log slope {slope(sizes, seconds):.2f}")
    benchmark(at.product, weight)
