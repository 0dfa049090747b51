"""Joint refinement: all kept weights together, on the dense network's residual stream and logits, without labels.

The sweep is greedy: each layer is solved once, for the layers before it as they are. At high sparsity what it leaves is
repaired by a short first-order descent on one loss over the whole network (:mod:`snows_core.loss.joint`). Zeros stay.
The free parameters are the kept weights and the scales and shifts of normalisation layers.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from snows_core.loss.joint import JointLoss
from snows_core.masks.patterns import Masks
from snows_core.network.graph import Network
from snows_core.network.nodes import module_of
from snows_core.network.operations import Kind, is_batch_norm
from snows_core.settings import Augment


@dataclass(frozen=True)
class JointOptions:
    """Settings of joint refinement.

    Attributes:
        steps: optimiser steps.
        rate: largest learning rate.
        batch_size: images a step.
        augment: changes each batch at random, for instance :func:`flip_and_shift`; dense targets follow it.
        seed: of batches and augmentation.
        progress: show a progress bar.
    """

    steps: int
    rate: float = 1e-3
    batch_size: int = 64
    augment: Augment | None = None
    seed: int = 0
    progress: bool = True


@dataclass(frozen=True)
class Refinement:
    """What joint refinement did.

    Attributes:
        state: parameter name to new value, for every free parameter.
        loss: normalised loss on the calibration images before, and after (lower is better; the better one is kept).
        steps: optimiser steps taken; fewer than asked for after Ctrl-C.
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


def _free_names(network: Network, weight_names: set[str]) -> list[str]:
    """Return the pruned weights and the scales and shifts of normalisations, modules and functions alike."""
    norms: list[str] = []
    for node in network.nodes:
        if not (is_batch_norm(node) or network.kinds.get(node) is Kind.NORMALISATION):
            continue
        module = module_of(node)
        if module is not None:
            norms += [f"{node.target}.{name}" for name, _ in module.named_parameters(recurse=False)]
        read = [source for source in node.all_input_nodes if source.op == "get_attr"]
        norms += [str(source.target) for source in read if isinstance(network.constant(source), nn.Parameter)]
    return list(dict.fromkeys([*sorted(weight_names), *norms]))


def refine(
    network: Network,
    model: nn.Module,
    masks: Masks,
    weight_names: dict[str, str],
    images: Tensor,
    options: JointOptions,
) -> Refinement:
    """Refine a pruned network jointly by Adam with a one-cycle schedule.

    Args:
        network: the traced dense network.
        model: the pruned model: where to start.
        masks: layer name to mask.
        weight_names: layer name to parameter name.
        images: calibration images (N, C, H, W), anywhere.
        options: steps, rate and so on.

    Returns:
        The new parameters, or the old ones where the loss on the calibration images did not fall. Ctrl-C ends it
        early and keeps what is better.
    """
    first_weight = next(network.module.parameters())
    device, dtype = first_weight.device, first_weight.dtype
    kept = {weight_names[name]: mask.to(device) for name, mask in masks.items()}
    start = dict(model.named_parameters(remove_duplicate=False))
    names = [name for name in _free_names(network, set(kept)) if name in start]
    before = {name: start[name].detach().to(device, dtype, copy=True) for name in names}
    state = {name: nn.Parameter(value.clone()) for name, value in before.items()}
    loss = JointLoss(network, images, before)
    first = loss.value(images, before)
    optimiser = torch.optim.Adam(state.values(), lr=options.rate)
    total = max(options.steps, 4)  # the schedule needs two steps to rise and two to fall
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.rate, total_steps=total, pct_start=max(0.1, 2 / total)
    )
    generator = torch.Generator().manual_seed(options.seed)
    taken = 0
    try:
        for _ in tqdm(range(options.steps), desc="refining", unit="step", disable=not options.progress):
            chosen = torch.randperm(len(images), generator=generator)[: options.batch_size]
            batch = images[chosen.to(images.device)].to(device)
            batch = batch if options.augment is None else options.augment(batch, generator)
            optimiser.zero_grad()
            loss.backward(batch, state)
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                for name, mask in kept.items():
                    state[name].mul_(mask)
            taken += 1
    except KeyboardInterrupt:
        if options.progress:
            tqdm.write("interrupted: refinement ends here, the better weights are kept", file=sys.stderr)
    after = {
        name: torch.where(kept[name], value, 0.0) if name in kept else value
        for name, value in ((name, value.detach().clone()) for name, value in state.items())
    }
    last = loss.value(images, after)
    return Refinement(after if last < first else before, (first, min(first, last)), taken)
