"""Joint refinement: all kept weights together, on the dense network's residual stream and logits, without labels.

The sweep is greedy: each layer is solved once, for the layers before it as they are. At high sparsity what it leaves is
repaired by a short first-order descent on one loss over the whole network,

    sum over taps t of  || f_t(x; theta) - f_t(x; theta_dense) ||^2 / || f_t(x; theta_dense) - mean ||^2,

with taps at every residual addition (every activation where there is none) and at the output. Zeros stay. The free
parameters are the kept weights and the scales and shifts of normalisation layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from snows_core.graph import Network, Values
from snows_core.masks import Masks
from snows_core.operations import Kind, is_addition, is_batch_norm, module_of

Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Refinement:
    """What joint refinement did.

    Attributes:
        state: parameter name to new value, for every free parameter.
        loss: normalised loss on the calibration images before, and after (lower is better; the better one is kept).
        steps: optimiser steps taken.
    """

    state: dict[str, Tensor] = field(repr=False)
    loss: tuple[float, float]
    steps: int


def flip_and_shift(images: Tensor, generator: torch.Generator, shift: int = 4) -> Tensor:
    """Mirror half of the images and move each by up to ``shift`` pixels, edges repeated: for natural images.

    Args:
        images: (N, C, H, W).
        generator: source of randomness, on the CPU.
        shift: largest move in pixels.

    Returns:
        Images of the same shape.
    """
    count, _, height, width = images.shape
    mirrored = torch.rand(count, generator=generator) < 0.5
    images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)
    padded = nn.functional.pad(images, (shift,) * 4, mode="replicate")
    rows, columns = torch.randint(0, 2 * shift + 1, (2, count), generator=generator).tolist()
    moved = [padded[i, :, r : r + height, c : c + width] for i, (r, c) in enumerate(zip(rows, columns, strict=True))]
    return torch.stack(moved)


def joint_taps(network: Network) -> list[fx.Node]:
    """Return where dense and pruned network are compared: the residual stream (else activations), and the output.

    The residual stream is observed at its additions, behind the activation that follows one, if any (ResNet).
    """
    depends = {network.image}
    for node in network.nodes[1:]:
        if not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
    additions = [n for n in network.nodes if is_addition(n) and all(s in depends for s in n.args[:2])]
    taps = [_behind_activation(network, node) for node in additions]
    if not taps:
        taps = [node for node, kind in network.kinds.items() if kind is Kind.ACTIVATION and node in depends]
    outputs = [leaf for leaf in pytree.tree_leaves(network.output) if isinstance(leaf, fx.Node)]
    return list(dict.fromkeys([*taps, *outputs]))


def _behind_activation(network: Network, node: fx.Node) -> fx.Node:
    users = list(node.users)
    return users[0] if len(users) == 1 and network.kinds.get(users[0]) is Kind.ACTIVATION else node


def _free_names(network: Network, weight_names: set[str]) -> list[str]:
    norms = [
        f"{node.target}.{name}"
        for node in network.nodes
        if module_of(node) is not None and (is_batch_norm(node) or network.kinds.get(node) is Kind.NORMALISATION)
        for name, _ in module_of(node).named_parameters(recurse=False)
    ]
    return list(dict.fromkeys([*sorted(weight_names), *norms]))


def _errors(network: Network, taps: list[fx.Node], x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """Return the sum over taps of the squared error relative to the dense values' variance."""
    with torch.no_grad():
        dense: Values = {network.image: x}
        network.run(network.nodes[1:], dense)
    values: Values = {network.image: x}
    network.run(network.nodes[1:], values, state)
    terms = [
        (values[tap] - dense[tap]).square().mean() / dense[tap].var(correction=0).clamp(min=1e-12)
        for tap in taps
        if isinstance(dense[tap], Tensor)
    ]
    return torch.stack(terms).sum()


def refine(
    network: Network,
    model: nn.Module,
    masks: Masks,
    weight_names: dict[str, str],
    images: Tensor,
    *,
    steps: int,
    rate: float = 1e-3,
    batch_size: int = 64,
    augment: Augment | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Refinement:
    """Refine a pruned network jointly (formula at the top of this file) by Adam with a one-cycle schedule.

    Args:
        network: the traced dense network.
        model: the pruned model: where to start.
        masks: layer name to mask.
        weight_names: layer name to parameter name.
        images: calibration images (N, C, H, W), anywhere.
        steps: optimiser steps.
        rate: largest learning rate.
        batch_size: images a step.
        augment: changes each batch at random, for instance :func:`flip_and_shift`; dense targets follow it.
        seed: of batches and augmentation.
        progress: show a progress bar.

    Returns:
        The new parameters, or the old ones where the loss on the calibration images did not fall.
    """
    device = next(network.module.parameters()).device
    kept = {weight_names[name]: mask.to(device) for name, mask in masks.items()}
    start = dict(model.named_parameters())
    names = [name for name in _free_names(network, set(kept)) if name in start]
    taps = joint_taps(network)
    generator = torch.Generator().manual_seed(seed)
    before = {name: start[name].detach().to(device, copy=True) for name in names}
    state = {name: nn.Parameter(value.clone()) for name, value in before.items()}

    def whole(parameters: dict[str, Tensor]) -> float:
        with torch.no_grad():
            parts = images.split(batch_size)
            return sum(float(_errors(network, taps, x.to(device), parameters)) * len(x) for x in parts) / len(images)

    first = whole(before)
    optimiser = torch.optim.Adam(state.values(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=max(steps, 1), pct_start=0.1)
    for _ in tqdm(range(steps), desc="refining", unit="step", disable=not progress):
        batch = images[torch.randperm(len(images), generator=generator)[:batch_size]].to(device)
        batch = batch if augment is None else augment(batch, generator)
        optimiser.zero_grad()
        with torch.enable_grad():
            _errors(network, taps, batch, state).backward()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            for name, mask in kept.items():
                state[name].mul_(mask)
    after = {name: copy.copy(value.detach()) for name, value in state.items()}
    last = whole(after)
    return Refinement(after if last < first else before, (first, min(first, last)), steps)
