"""Channels of a network put in another order before N:M pruning: the same function, and masks that keep more."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import invalid_argument
from snows_core.masks.patterns import NM, parse_pattern
from snows_core.masks.permutation import order_channels
from snows_core.masks.saliency import check_name, make_scores
from snows_core.network.channel_moves import Move
from snows_core.network.channels import RESIDUAL, Channels
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example, same_function
from snows_core.network.graph import Network
from snows_core.settings import LayerChoice, PruneSettings, Saliency, SparsityPattern
from snows_core.sweep.choice import matching_some


@dataclass(frozen=True)
class Permutation:
    """Channels that were put in another order.

    Attributes:
        producer: the layer that computes them.
        consumers: the layers that read them.
        order: (channels,) the former place of the channel at each place.
        kept_before: share of the saliency that masks of the pattern kept in the consumers, before.
        kept_after: the same with the new order.
    """

    producer: str
    consumers: tuple[str, ...]
    order: Tensor
    kept_before: float
    kept_after: float

    def record(self) -> dict[str, Any]:
        """Return what a manifest says of it."""
        return vars(self) | {"consumers": list(self.consumers), "order": self.order.tolist()}


class Permuted(NamedTuple):
    """A network with channels in another order.

    Attributes:
        model: a copy of the network, of the same function.
        permutations: what was permuted; empty where no order keeps more.
    """

    model: nn.Module
    permutations: list[Permutation]


def check_permute(settings: PruneSettings) -> None:
    """Refuse permutations beside what no order of channels changes.

    Raises:
        SnowsError: with a pattern that is not N:M, or given masks.
    """
    pattern = parse_pattern(settings.pattern)
    if settings.permute and settings.masks is not None:
        fix = "Permute first, with snows.permute_channels, and make the masks for its model."
        raise invalid_argument("permute", "True with masks=", "masks that are made after the permutation", fix)
    if settings.permute and not isinstance(pattern, NM):
        fix = "Other masks keep the same whatever the order of channels."
        raise invalid_argument("permute", f"True with the pattern {pattern}", "an N:M pattern", fix)


def permute_channels(
    model: nn.Module,
    images: Tensor | Iterable[Any],
    pattern: SparsityPattern | str,
    layers: LayerChoice = None,
    saliency: str | Saliency = "magnitude",
) -> Permuted:
    """Put the channels between layers in an order under which N:M masks keep more, the function staying the same.

    Channels can be permuted between a convolution or linear layer and the layers that read it, where nothing but batch
    norm, element-wise functions, depthwise convolutions, pooling and flattening lies between: the first convolution of
    a residual block and the second, the expansion of an inverted residual and its projection, both layers of an MLP.

    Args:
        model: network in eval mode; not changed.
        images: one or more example images (N, C, H, W).
        pattern: N:M, for instance "2:4".
        layers: names, globs, classes, modules, or a predicate, of layers whose input channels are to be permuted;
            default: all that can be, the classifier left out.
        saliency: what the masks are made by, see :func:`snows_core.masks.patterns.masks_for`.

    Returns:
        The copy, and what was permuted; a pair.

    Raises:
        SnowsError: on a pattern that is not N:M, and on layers whose input channels cannot be permuted: those on a
            residual stream, for instance.
    """
    check_tensors(model)
    model = unwrap(model)
    example = first_images(calibration_parts(images, limit=2, few=0), 2)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    if first is not None:
        example = example.to(first.device, torch.float64 if first.dtype == torch.float64 else torch.float32)
    network = Network(model, example=example)
    run_on_example(network.module, example)
    names = [layer.name for layer in network.layers]
    chosen = None if layers is None else matching_some(layers, names, model)
    read = parse_pattern(pattern)
    check_name(saliency)
    if not isinstance(read, NM):
        raise invalid_argument("pattern", str(read), "N:M", "Other masks keep the same whatever the order of channels.")
    channels = Channels(network, example)
    if chosen is not None:
        _refuse_bound(network, channels, [name for name in names if name in chosen], read)
    return permuted(network, model, example, read, saliency, chosen, channels)


def _refuse_bound(network: Network, channels: Channels, names: Sequence[str], pattern: NM) -> None:
    """Refuse layers whose input channels cannot be permuted.

    Raises:
        SnowsError: on the first of them.
    """
    free = {layer.name: layer for chain in channels.chains for layer in chain.consumers}
    for name in names:
        why = channels.bound.get(name, "")
        if why:
            across = "; permutations across a residual stream are not possible" if why == RESIDUAL else ""
            raise invalid_argument(
                "layers",
                f"'{name}', whose input channels are bound by {why}",
                f"layers whose input channels may be in any order{across}",
                f"Those are {', '.join(free) or 'none'}.",
            )
        if misfit := pattern.misfit(network.weight(free[name])):
            raise invalid_argument("layers", f"'{name}' ({misfit})", f"layers that fit {pattern}")


def permuted(
    network: Network,
    model: nn.Module,
    example: Tensor,
    pattern: NM,
    saliency: str | Saliency = "magnitude",
    layers: Collection[str] | None = None,
    channels: Channels | None = None,
) -> Permuted:
    """Permute what can be permuted; layers that cannot are left as they are.

    Args:
        network: the traced model.
        model: the model, without wrappers; not changed.
        example: a few images on its device, of the type that it is computed in.
        pattern: N:M.
        saliency: what the masks are made by, computed on the weights as they are.
        layers: names of the layers that will be pruned; default: all but the classifier.
        channels: of the network, where they are known.

    Returns:
        A copy of the model, and what was permuted.
    """
    channels = Channels(network, example) if channels is None else channels
    copied, done = plain_copy(model), []
    tensors = dict(copied.named_parameters(remove_duplicate=False)) | dict(copied.named_buffers(remove_duplicate=False))
    for chain in channels.chains:
        wanted = [
            layer
            for layer in chain.consumers
            if (not network.is_classifier(layer.node) if layers is None else layer.name in layers)
            and network.weight(layer).shape[1] == chain.channels  # not so behind a flattening
            and not pattern.misfit(network.weight(layer))
        ]
        scores = make_scores({layer.name: network.weight(layer) for layer in wanted}, saliency)
        if not scores:
            continue
        found = order_channels(list(scores.values()), pattern)
        if found.after > found.before:
            _move(chain.moves, found.order, tensors)
            consumers = tuple(layer.name for layer in chain.consumers)
            total = found.total or 1.0
            done.append(
                Permutation(
                    chain.producer.name, consumers, found.order.cpu(), found.before / total, found.after / total
                )
            )
    if done and not same_function(model, copied, example).passes:
        warnings.warn("permute: the outputs would change; the channels stay in their order", stacklevel=2)
        return Permuted(plain_copy(model), [])
    return Permuted(copied, done)


@torch.no_grad()
def _move(moves: Iterable[Move], order: Tensor, tensors: dict[str, Tensor]) -> None:
    """Put tensors of a model in a new order of channels, in place."""
    for move in moves:
        places = order[:, None] * move.block + torch.arange(move.block, device=order.device)  # (channels, block)
        tensor = tensors[move.name]
        tensor.copy_(tensor.index_select(move.axis, places.flatten().to(tensor.device)))
