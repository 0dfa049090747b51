"""Joint refinement: all kept weights together, on the dense network's residual stream and logits, without labels.

The sweep is greedy: each layer is solved once, for the layers before it as they are. At high sparsity what it leaves is
repaired by a short first-order descent on one loss over the whole network,

    sum over taps t of  mean (f_t(x; theta) - f_t(x; theta_dense))^2 / variance of f_t(x; theta_dense),

the variance taken over the calibration images, with taps at every residual addition (every activation where there is none) and at the output. Zeros stay. The free
parameters are the kept weights and the scales and shifts of normalisation layers.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from snows_core.copies import snapshot
from snows_core.errors import bad
from snows_core.graph import Network, Values
from snows_core.masks import Masks
from snows_core.memory import batch_bytes, saved_bytes
from snows_core.operations import Kind, is_addition, is_batch_norm, module_of
from snows_core.precision import widest
from snows_core.result import PruneResult
from snows_core.stream import run_keeping

Augment = Callable[[Tensor, torch.Generator], Tensor]


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

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 0:
            raise bad("refine", repr(self.steps), "a number of steps >= 0")
        if self.augment is not None and not callable(self.augment):
            raise bad("augment", type(self.augment).__name__, "a function of (images, generator)")


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


class JointLoss:
    """The loss at the top of this file, a few images at a time, so that memory does not grow with their number.

    Args:
        network: the traced dense network.
        images: calibration images, from which each tap's variance is taken.
        state: parameter name to value, used once to see what the graph of two images takes.
    """

    def __init__(self, network: Network, images: Tensor, state: dict[str, Tensor]) -> None:
        self.network, self.taps = network, joint_taps(network)
        self.device = next(network.module.parameters()).device
        self.variances: dict[fx.Node, Tensor] = {}
        with saved_bytes(network) as storages, torch.enable_grad():
            free = {name: value.detach().requires_grad_(True) for name, value in state.items()}
            loss = self._squares(images[:2].to(self.device), free)
        graph = sum(storages.values()) / min(2, len(images))
        del loss
        self.piece = max(1, int(batch_bytes(self.device) / max(graph, 1.0)))
        self._measure(images)

    def _dense(self, x: Tensor) -> Values:
        values: Values = {self.network.image: x}
        with torch.no_grad():
            run_keeping(self.network, self.network.nodes[1:], values, self.taps)
        return {tap: values[tap] for tap in self.taps if isinstance(values[tap], Tensor)}

    def _measure(self, images: Tensor) -> None:
        """Take each tap's variance over the images."""
        sums: dict[fx.Node, Tensor] = {}
        for x in images.split(self.piece):
            for tap, value in self._dense(x.to(self.device)).items():
                wide = value.to(widest(self.device))
                part = torch.stack([wide.sum(), wide.square().sum(), wide.new_tensor(float(wide.numel()))])
                sums[tap] = sums.get(tap, 0) + part
        for tap, (first, second, count) in sums.items():
            self.variances[tap] = (second / count - (first / count) ** 2).clamp(min=1e-12)

    def _squares(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        """Return the sum over taps and images of the mean squared error of an image relative to the variance."""
        dense = self._dense(x)
        values: Values = {self.network.image: x}
        run_keeping(self.network, self.network.nodes[1:], values, self.taps, state)
        terms = [
            (values[tap] - target).square().mean() / self.variances.get(tap, torch.ones(())).to(target) * len(x)
            for tap, target in dense.items()
        ]
        return torch.stack(terms).sum()

    @torch.no_grad()
    def value(self, images: Tensor, state: dict[str, Tensor]) -> float:
        """Return the loss on images, anywhere."""
        parts = images.split(self.piece)
        return sum(float(self._squares(x.to(self.device), state)) for x in parts) / len(images)

    def backward(self, images: Tensor, state: dict[str, Tensor]) -> None:
        """Add the gradient of the loss on a batch to the parameters; halve the pieces where a GPU is too small."""
        while True:
            try:
                for x in images.split(self.piece):
                    with torch.enable_grad():
                        (self._squares(x, state) / len(images)).backward()
                return
            except torch.OutOfMemoryError:
                if self.piece == 1:
                    raise
            self.piece = -(-self.piece // 2)
            for value in state.values():
                value.grad = None


def refine(
    network: Network,
    model: nn.Module,
    masks: Masks,
    weight_names: dict[str, str],
    images: Tensor,
    options: JointOptions,
) -> Refinement:
    """Refine a pruned network jointly (formula at the top of this file) by Adam with a one-cycle schedule.

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
    after = {name: torch.where(kept[name], value, 0.0) if name in kept else value for name, value in
             ((name, value.detach().clone()) for name, value in state.items())}
    last = loss.value(images, after)
    return Refinement(after if last < first else before, (first, min(first, last)), taken)


def refine_result(result: PruneResult, network: Network, images: Tensor, options: JointOptions) -> None:
    """Refine a result's weights in place and write into its manifest what was done; the sweep's are kept if it fails."""
    record: dict[str, Any] = {
        "steps": 0,
        "augment": None if options.augment is None else getattr(options.augment, "__name__", str(options.augment)),
    }
    result.manifest["refinement"] = record
    try:
        done = refine(network, result.model, result.masks, result.weight_names, images, options)
    except (RuntimeError, KeyboardInterrupt) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        record["failed"] = reason
        warnings.warn(f"refine: failed ({reason}); the weights are those of the sweep", stacklevel=3)
        return
    parameters = dict(result.model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in done.state.items():
            parameters[name].copy_(value.to(parameters[name]))
    result.state = snapshot(result.model)
    record |= {"steps": done.steps, "loss": list(done.loss), "interrupted": done.steps < options.steps}
