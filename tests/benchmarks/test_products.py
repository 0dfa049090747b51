"""One curvature product against one forward + backward of the same segment; growth with images and K."""

import time

import numpy as np
import pytest
import torch

from snows_core.graph import Network
from snows_core.layer_solver import make_objective
from snows_core.recipe import get_recipe
from snows_core.stream import Stream


def objective_for(model, images, layer, k, batch_size=32):
    network = Network(model)
    entry = network.layers[layer]
    stream = Stream(network, images.split(batch_size))
    stream.advance(network.index[entry.node])
    segment = network.segment(entry, k)
    weight = network.weight(entry)
    mask = torch.rand_like(weight) < 0.5
    objective = make_objective(network, segment, mask, stream, stream, get_recipe("fast", normalise=False))
    return objective, torch.where(mask, weight, 0.0) * 0.9


def best(function, repeats=5):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def forward_backward(objective, weight):
    for batch in range(len(objective.contexts)):
        free = weight.clone().requires_grad_(True)
        errors = objective.errors(objective.program.run(objective.contexts[batch], free), batch)
        loss = sum(c * error.square().sum() for c, error in zip(objective.tap_weights, errors, strict=True))
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


def slope(sizes, seconds):
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


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
