"""The whole network to be pruned, and what a method that looks at all of it may ask about it, lazily and once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.loss.gradients import check_labels, drawn_labels, gradient_rows
from snows_core.loss.joint_curvature import FlatState
from snows_core.masks.patterns import Masks, Pattern, Structured, masks_for
from snows_core.network.graph import Network
from snows_core.network.positions import output_positions

# Of an empirical Fisher, relative to the mean of its diagonal; the papers' 1e-5 is absolute. A Fisher of a few hundred
# gradients is mostly noise: on ResNet-20 with 256 of them, global:0.8, the weights of WoodFisher, CBS and CHITA end
# above those of magnitude at 10, and below them at 0.1.
DAMPENING = 10.0


@dataclass
class NetworkProblem:
    """All layers to be pruned, as one vector of weights (p,) where a method wants it so.

    Attributes:
        network: the traced network, dense weights.
        names: layer name to parameter name of the layers to be pruned, in execution order.
        images: calibration images (N, C, H, W), anywhere.
        pattern: the sparsity pattern.
        seed: of drawn labels, random signs, and lots among equal scores.
        labels: classes of the images (N,); None to draw them from the dense network's softmax.
        before: layer name to the weight after the stage before; a layer that is not there has its dense one.
        room: bytes that the gradients may take.
        flops: share of the layers' operations that may stay, for a method that bounds them; None for any.
    """

    network: Network
    names: Mapping[str, str]
    images: Tensor
    pattern: Pattern
    seed: int
    labels: Tensor | None
    before: Mapping[str, Tensor]
    room: float
    flops: float | None = None

    @cached_property
    def dense(self) -> dict[str, Tensor]:
        """Layer name to dense weight."""
        return {layer: self.network.module.get_parameter(name).detach() for layer, name in self.names.items()}

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Layer name to the weight that chooses a mask: after the stage before, or the dense one in the first."""
        return {layer: self.before.get(layer, weight) for layer, weight in self.dense.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The same weights by parameter name."""
        return {self.names[layer]: weight for layer, weight in self.weights.items()}

    @property
    def sizes(self) -> list[int]:
        """Weights of each layer."""
        return [weight.numel() for weight in self.weights.values()]

    @cached_property
    def positions(self) -> dict[str, float]:
        """Layer name to output positions for an image: multiplications of one weight of it."""
        device = next(iter(self.dense.values())).device
        layers = [layer for layer in self.network.layers if layer.name in self.names]
        return output_positions(self.network, layers, self.images[:1].to(device))

    def operations(self, counts: Mapping[str, int] | None = None) -> float:
        """Return the multiplications that an image takes in these layers.

        Args:
            counts: layer name to how many of its weights are not zero; default: all of them.
        """
        sizes = {layer: weight.numel() for layer, weight in self.dense.items()}
        return sum(self.positions[layer] * count for layer, count in (sizes if counts is None else counts).items())

    @property
    def generator(self) -> torch.Generator:
        """Source of random signs and drawn labels, the same whenever it is asked for."""
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def _flat(self) -> FlatState:
        return FlatState(self.weights, {})

    def vector(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return tensors by layer name, of the weights' shapes, as one vector (p,)."""
        return torch.cat([tensors[layer].flatten() for layer in self.weights])

    def by_layer(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector (p,) of weights by layer name, in their shapes and memory layout."""
        return self._flat.state(vector)

    def masks(self, scores: Tensor) -> Masks:
        """Return the masks that the pattern makes of a vector of scores (p,), none of them negative.

        What is zero in the dense network stays so.

        Raises:
            SnowsError: on scores that are not finite.
        """
        parts = zip(self.weights, torch.split(scores, self.sizes), strict=True)
        shaped = {layer: part.view(self.weights[layer].shape) for layer, part in parts}
        nothing = 0.0 if isinstance(self.pattern, Structured) else -1.0  # scores of a unit's weights add up
        asked = {layer: score.masked_fill(self.dense[layer] == 0, nothing) for layer, score in shaped.items()}
        made = masks_for(asked, self.pattern, lambda _, score: score, self.seed)
        return {layer: mask & (self.dense[layer] != 0) for layer, mask in made.items()}

    @property
    def structured(self) -> Structured:
        """The pattern of a method that knows structured ones alone.

        Raises:
            ValueError: where it is another one.
        """
        if not isinstance(self.pattern, Structured):
            raise ValueError(f"a method that chooses units is given a structured pattern, not {self.pattern}")
        return self.pattern

    def unit_masks(self, scores: Mapping[str, Tensor]) -> Masks:
        """Return the masks of the units of highest score.

        Args:
            scores: group name to (units,).
        """
        pattern = self.structured
        kept = {group.name: pattern.keep(group, scores[group.name], self.seed) for group in pattern.groups}
        return self.masks_of_units(kept)

    def masks_of_units(self, kept: Mapping[str, Tensor]) -> Masks:
        """Return the masks for the units that stay.

        Args:
            kept: group name to (units,) bool.

        Returns:
            Layer name to mask; what is zero in the dense network stays so.
        """
        masks = self.structured.masks_of(kept, self.weights)
        return {layer: mask & (self.dense[layer] != 0) for layer, mask in masks.items()}

    @cached_property
    def classes(self) -> Tensor:
        """Labels given, or drawn from the dense network's softmax, (N, *positions).

        Raises:
            SnowsError: on labels that are no classes, or a network that gives no logits.
        """
        if self.labels is None:
            return drawn_labels(self.network, self.images, self.generator)
        return check_labels(self.network, self.images, self.labels)

    @cached_property
    def gradients(self) -> Tensor:
        """Gradients at the current weights (m, p), one row an image, or a mini-batch where the room asks for that.

        Raises:
            SnowsError: on labels that are no classes, or a network that gives no logits.
        """
        images, like = self.images, next(iter(self.weights.values()))
        most = max(1, int(self.room // (sum(self.sizes) * like.element_size())))
        rows = gradient_rows(self.network, self.parameters, images, self.classes, most)
        if len(rows) < len(images):
            warnings.warn(
                f"max_memory: gradients of {len(images)} images do not fit; {len(rows)} of mini-batches stand for them",
                stacklevel=2,
            )
        return rows

    @cached_property
    def damping(self) -> float:
        """What is added to the diagonal of the empirical Fisher ``G' G / m``."""
        precise, size = widest(self.gradients.device), self.gradients.numel()
        norms = torch.stack([torch.linalg.vector_norm(row, dtype=precise) for row in self.gradients])
        return max(DAMPENING * float(norms.square().sum() / size), torch.finfo(self.gradients.dtype).tiny)
