"""Losses, gradients, products and estimates of several processes, one by one, are those of one process."""

import groups
import pytest
import torch
from toys import layer_named, nudged, random_images, random_mask, small_resnet

from snows_core.activations.cache import ActivationCache, LazyBatches
from snows_core.distributed import Share, current, joined
from snows_core.loss.joint import JointLoss
from snows_core.loss.joint_curvature import FlatState, JointObjective
from snows_core.loss.options import LossOptions
from snows_core.loss.reconstruction import ReconstructionLoss
from snows_core.methods import choose_k
from snows_core.network.graph import Network

SIZES = [3, 1, 4]  # the second batch is of one process alone


def generator():
    return torch.Generator().manual_seed(5)


def layer_loss(name, k=3):
    """Return the loss of a layer on this process's images, where it is looked at, and a direction."""
    network = Network(small_resnet())
    layer = layer_named(network, name)
    segment, share = network.segment(layer, k), Share(SIZES, current())
    caches = [ActivationCache(network, share.cut(random_images(sum(SIZES), 8))) for _ in range(2)]
    caches[1].weights["layer1.conv1.weight"] = nudged(network.module.get_parameter("layer1.conv1.weight").detach())
    for cache in caches:
        cache.advance(network.index[layer.node])
    contexts = LazyBatches(lambda i: caches[1].context(segment, i), len(SIZES), keep=False)
    targets = LazyBatches(lambda i: caches[0].taps(segment, i), len(SIZES), keep=False)
    weight = network.weight(layer)
    mask = random_mask(weight.shape)
    options = LossOptions("gauss-newton", normalise=True, retain=1)
    loss = ReconstructionLoss(network, segment, contexts, targets, mask, options, share)
    return loss, torch.where(mask, weight, 0.0), torch.where(mask, nudged(weight, seed=7), 0.0)


def looked(rank):
    """Return every number that a layer's loss gives, and every one of the joint loss."""
    with joined():
        loss, weight, direction = layer_loss("layer1.conv2")
        at, sampled, fisher = loss.linearise(weight), loss.linearise(weight, 4), loss.with_fisher().linearise(weight)
        value, gradient = loss.gradient(weight)
        found = {
            "tap weights": loss.tap_weights,
            "per tap": loss.per_tap(weight),
            "first batches": [loss.value(weight, batches) for batches in (1, 2)],
            "gradient": (value, gradient),
            "linearised": (at.loss, at.gradient, at.product(direction)),
            "sampled": (sampled.loss, sampled.product(direction)),
            "fisher": (fisher.loss, fisher.gradient, fisher.product(direction)),
            "rows": loss.row_curvature(weight, generator(), 3),
            "diagonal": loss.diagonal(weight, generator(), 2),
            "of one image": [loss.on([1]).value(weight), *loss.on([1]).tap_weights],
            "operations": [choose_k._flops(loss.on([batch]), weight) for batch in (0, 1)],
            "counts": [float(loss.images), float(loss.products), float(loss.image_products)],
        }
        return found | joint_looks()


def joint_looks():
    network, images = Network(small_resnet()), random_images(7, 8)
    names = ["layer1.conv1.weight", "fc.bias"]
    state = {name: nudged(network.module.get_parameter(name).detach()) for name in names}
    loss, flat = JointLoss(network, images, state, current()), FlatState(state, {})
    vector = flat.vector(state)
    objective = JointObjective(loss, images, flat)
    at, sampled = objective.linearise(vector), objective.linearise(vector, 3)
    value, slopes = loss.gradient(images, state)
    return {
        "joint": [loss.value(images, state), value, *slopes.values(), torch.stack(list(loss.variances.values()))],
        "joint linearised": (at.loss, at.gradient, at.product(vector)),
        "joint sampled": (sampled.loss, sampled.gradient, sampled.product(vector)),
        "joint of one image": (loss.value(images[:1], state), loss.gradient(images[:1], state)[1]),
    }


@pytest.fixture(scope="module")
def one():
    return looked(0)


@pytest.mark.parametrize("world", [2, 3])
def test_every_number_is_that_of_one_process(world, one):
    for found in groups.run(world, looked):
        assert found.keys() == one.keys()
        for name, numbers in found.items():
            torch.testing.assert_close(
                numbers, one[name], rtol=1e-11, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
            )
