"""Corrections of a pruned network that solve nothing: statistics of channels brought back to where they belong.

Two baselines that are said to make re-fits unnecessary. REFLOW (2025) lets the pruned network see the calibration
images and computes the mean and variance of every batch norm anew. ASR (2026) rescales each output channel of each
pruned layer so that its variance on those images is the dense network's, and its mean where a bias or a batch norm can
take it up. Both go from front to back, so that each layer reads what the corrections before it have made; weights that
are zero stay zero.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows_core.activations.cache import ActivationCache
from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.devices import widest
from snows_core.errors import blamed, invalid_argument
from snows_core.loss.precision import plain_numerics
from snows_core.network.channel_moves import own_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example
from snows_core.network.graph import Layer, Network
from snows_core.network.nodes import attribute_at, first_input
from snows_core.network.operations import Kind, is_batch_norm, tap_of
from snows_core.settings import LayerChoice
from snows_core.sweep.choice import matching_some
from snows_core.sweep.memory import memory_budget

BATCH = 64  # images that run together
FLAT = 1e-12  # a variance below this share of the squared mean is that of a constant


@plain_numerics()
def reestimate_batch_norms(model: nn.Module, images: Tensor | Iterable[Any]) -> nn.Module:
    """Compute the running mean and variance of every batch norm anew, from the model's own values on images.

    The moments are those of all images together, whatever batches they come in, and each batch norm reads what those
    before it make with their new statistics: on these images the copy answers as the model does in train mode with all
    of them in one batch.

    Args:
        model: network in eval mode, pruned; not changed.
        images: calibration images as the network expects them: tensor (N, C, H, W), DataLoader, or batches.

    Returns:
        A copy with other statistics and the same weights.

    Raises:
        SnowsError: on a network without a batch norm that keeps statistics, or images that do not fit it.
    """
    network, batches = _opened(model, calibration_parts(images))
    norms = {node: _statistics_of(node) for node in network.nodes if is_batch_norm(node)}
    found = {node: names for node, names in norms.items() if names}
    if not found:
        raise invalid_argument(
            "model",
            "a network without a batch norm that keeps statistics",
            "one that has some",
            "match_variances corrects any network.",
        )
    shared = [names for names, count in Counter(found.values()).items() if count > 1]
    if shared:
        warnings.warn(f"model: batch norms that are used more than once keep their statistics: {shared}", stacklevel=3)
    copied, cache = plain_copy(unwrap(model)), _cache(network, batches)
    for node, names in found.items():
        if names in shared:
            continue
        cache.advance(network.index[node])
        mean, variance = _moments(_read(cache, first_input(node)), 1)
        for name, value in zip(names, (mean, variance), strict=True):
            for owner in (network.module, copied):
                owner.get_buffer(name).copy_(value)
    return copied


@plain_numerics()
def match_variances(
    model: nn.Module, reference: nn.Module, images: Tensor | Iterable[Any], layers: LayerChoice = None
) -> nn.Module:
    """Rescale the output channels of pruned layers so that their variances, and means, are the dense network's.

    With the mean and variance of a channel over images and positions, m and v in the pruned network (its own layers
    corrected up to here) and m0 and v0 in the dense one, the weights of the channel are multiplied by ``sqrt(v0 / v)``.
    The mean becomes m0 through the layer's bias, or else through the running mean of a batch norm right behind it;
    without either only the variance is matched. Channels that are constant in either network keep their scale.

    Args:
        model: pruned network in eval mode; not changed.
        reference: the dense network that it was made from.
        images: calibration images as the network expects them: tensor (N, C, H, W), DataLoader, or batches.
        layers: names, globs, classes, modules, or a predicate; default: every convolution and linear layer that has
            zeros where the dense network has none.

    Returns:
        A copy of the model with rescaled channels.

    Raises:
        SnowsError: when the two networks do not have the same layers, none of them was pruned, or on unknown layers.
    """
    parts = calibration_parts(images)
    (network, batches), (dense, _) = _opened(model, parts), _opened(reference, parts, "reference")
    dense.module.to(next(network.module.parameters()).device)
    pairs = _paired(network, dense)
    named = None if layers is None else matching_some(layers, list(pairs), model)
    copied, cache, above = plain_copy(unwrap(model)), _cache(network, batches), _cache(dense, batches)
    for layer in _chosen(network, pairs, dense, named):
        other = pairs[layer.name]
        cache.advance(network.index[layer.node])
        above.advance(dense.index[other.node])
        axis = 1 if layer.kind is Kind.CONVOLUTION else -1
        mean, variance = _moments(_outputs(network, layer, cache), axis)
        mean0, variance0 = _moments(_outputs(dense, other, above), axis)
        varies = (variance > FLAT * mean.square()) & (variance0 > FLAT * mean0.square())
        scale = torch.where(varies, (variance0 / variance).sqrt(), 1.0)
        for name, value in _corrected(network, layer, scale, mean, mean0).items():
            for owner in (network.module, copied):
                attribute_at(owner, name).detach().copy_(value)
    return copied


def _corrected(network: Network, layer: Layer, scale: Tensor, mean: Tensor, mean0: Tensor) -> dict[str, Tensor]:
    """Return the tensors of a layer, and of a batch norm behind it, that change: name to new value.

    Args:
        network: the pruned network.
        layer: the layer.
        scale: (out,) of each output channel.
        mean: (out,) of the channel's values, bias included, before.
        mean0: (out,) as it has to be.
    """
    weight = network.weight(layer)
    changed = {layer.weight_name: weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1))}
    bias, behind = own_tensors(layer.node, "bias", 2), tap_of(layer.node)
    if bias:
        before = attribute_at(network.module, bias[0])
        changed[bias[0]] = mean0 - scale * (mean - before)
    elif behind is not layer.node and (running := _statistics_of(behind)):
        changed[running[0]] = network.module.get_buffer(running[0]) + scale * mean - mean0
    return changed


def _opened(model: nn.Module, parts: list[Tensor], name: str = "model") -> tuple[Network, list[Tensor]]:
    """Trace a network, and cut images into batches of the type that it is computed in.

    Args:
        model: the network.
        parts: checked images.
        name: of the network, for messages.

    Returns:
        The traced network, and the batches, which rest where the images are.

    Raises:
        SnowsError: on no network, or images that do not fit it.
    """
    if not isinstance(model, nn.Module):
        fix = "Of a result of prune, pass result.model."
        raise invalid_argument(name, type(model).__name__, "a torch.nn.Module", fix)
    first = next((p for p in unwrap(model).parameters() if p.is_floating_point()), None)
    dtype = torch.float64 if first is not None and first.dtype == torch.float64 else torch.float32
    example = first_images(parts, 2).to(None if first is None else first.device, dtype)
    with blamed("model", on=name):
        network = Network(model, example=example)
        run_on_example(network.module, example, name)
    return network, [batch.detach().to(dtype) for part in parts for batch in part.split(BATCH)]


@torch.no_grad()
def _cache(network: Network, batches: list[Tensor]) -> ActivationCache:
    """Start a cache at the images; its values rest in files where memory would not hold those of all images."""
    some = batches[0][:2]
    probe, most = ActivationCache(network, [some]), 0
    for stop in range(1, len(network.nodes)):
        probe.advance(stop)
        live = [value for value in probe.values[0].values() if isinstance(value, Tensor)]
        most = max(most, sum(value.numel() * value.element_size() for value in live))
    needed = most / len(some) * sum(map(len, batches))
    return ActivationCache(network, batches, "disk" if needed > memory_budget(None, probe.device) else None)


def _moments(batches: Iterable[Tensor], axis: int) -> tuple[Tensor, Tensor]:
    """Return the mean and the (biased) variance of each channel over all batches, (channels,) each.

    Args:
        batches: values of a node.
        axis: of the channels.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())  # squares: sum of squared deviations from the mean
    for batch in batches:
        values = batch.detach().movedim(axis, 0).flatten(1)  # (channels, values of the batch)
        values = values.to(widest(values.device))
        own, number = values.mean(1), values.shape[1]
        gap = own - mean.to(own)  # the update of Chan, Golub & LeVeque (1983)
        total = count + number
        squares = squares.to(own) + (values - own[:, None]).square().sum(1) + gap.square() * (count * number / total)
        mean, count = mean.to(own) + gap * (number / total), total
    return mean, squares / count


def _read(cache: ActivationCache, node: fx.Node) -> Iterator[Tensor]:
    """Yield a value of every batch of a cache that still holds it."""
    return (cache.read(node, batch) for batch in range(len(cache.sizes)))


@torch.no_grad()
def _outputs(network: Network, layer: Layer, cache: ActivationCache) -> Iterator[Tensor]:
    """Yield a layer's output on every batch of a cache that stands at the layer."""
    for x in _read(cache, first_input(layer.node)):
        yield network.apply(layer, x)


def _statistics_of(node: fx.Node) -> tuple[str, ...] | None:
    """Return the names of the running mean and variance of a batch norm, or None where it keeps none."""
    mean, variance = own_tensors(node, "running_mean", 1), own_tensors(node, "running_var", 2)
    return (*mean, *variance) if mean and variance else None


def _paired(network: Network, dense: Network) -> dict[str, Layer]:
    """Return the dense network's layer of each layer of the pruned one, by name.

    Raises:
        SnowsError: when they have other layers, or other shapes.
    """
    theirs = {layer.name: layer for layer in dense.layers}
    for layer in network.layers:
        other = theirs.get(layer.name)
        if other is None or (layer.weight_name and network.weight(layer).shape != dense.weight(other).shape):
            what = f"a network without the layer '{layer.name}' of the model, or with another shape of it"
            raise invalid_argument("reference", what, "the dense network that the model was made from")
    return theirs


def _chosen(network: Network, pairs: dict[str, Layer], dense: Network, layers: set[str] | None) -> list[Layer]:
    """Return the layers to be corrected, in execution order: those named, or those with more zeros than before.

    Raises:
        SnowsError: where no layer was pruned.
    """
    used = Counter(layer.weight_name for layer in network.layers)
    stored = [layer for layer in network.layers if layer.weight_name and used[layer.weight_name] == 1]
    if layers is not None:
        return [layer for layer in stored if layer.name in layers]
    pruned = [
        layer
        for layer in stored
        if bool(
            (
                (network.weight(layer) == 0) & (dense.weight(pairs[layer.name]) != 0).to(network.weight(layer).device)
            ).any()
        )
    ]
    if not pruned:
        fix = "Name layers= to correct layers all the same."
        raise invalid_argument("model", "no layer with zeros where the dense network has none", "a pruned network", fix)
    return pruned
