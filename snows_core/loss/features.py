"""How alike the features of two networks are: per image, as a whole, and in who is whose neighbour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snows_core.errors import SnowsError, invalid_argument

POOLED = ("pooler_output", "image_embeds")  # under which transformers' backbones give one vector an image
BLOCK = 1024  # images whose neighbours are looked for at a time


def gives_features(model: nn.Module) -> bool:
    """Tell whether a network says that it has no classifier: timm's ``num_classes`` of 0."""
    return getattr(model, "num_classes", None) == 0


def holds_features(output: Any) -> bool:
    """Tell whether an output has pooled features and no logits."""
    return _under(output, ("logits", "out")) is None and _under(output, POOLED) is not None


def _under(output: Any, keys: Sequence[str]) -> Tensor | None:
    """Return the first tensor that an output has under one of the names."""
    for key in keys:
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(found, Tensor):
            return found
    return None


def read_features(output: Any, count: int, network: str = "model") -> Tensor:
    """Read one vector an image from what a network returned; see :func:`feature_vectors`.

    Args:
        output: what the network returned.
        count: N, how many images went in.
        network: "model" or "reference", for messages.

    Returns:
        Features (N, D) on the CPU, float32 or float64, finite.

    Raises:
        SnowsError: on an output that holds none, or one with NaN or infinite values.
    """
    found = feature_vectors(output, count, network)
    features = found.detach().to("cpu", found.dtype if found.dtype == torch.float64 else torch.float32)
    if not torch.isfinite(features).all():
        raise SnowsError(f"{network}: got NaN or infinite features; expected finite ones. Check weights and images.")
    return features


def feature_vectors(output: Any, count: int, network: str = "model") -> Tensor:
    """Return one vector an image from what a network returned, where autograd follows it.

    Args:
        output: tensor (N, D), (N, D, 1, 1), or a mapping or object with "pooler_output" or "image_embeds".
        count: N, how many images went in.
        network: "model" or "reference", for messages.

    Returns:
        Features (N, D), as the network gave them.

    Raises:
        SnowsError: on any other output.
    """
    found = _under(output, POOLED)
    output = output if found is None else found
    if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count or not output.is_floating_point():
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise invalid_argument(
            network,
            f"an output of {got} for {count} images",
            "features of shape (N, D), one vector an image",
            "Wrap the network so that its forward returns the class token, or the mean over positions.",
        )
    return output


def mean_cosine(features: Tensor, reference: Tensor) -> float:
    """Return the mean over images of the cosine between the two networks' vectors, both (N, D).

    >>> mean_cosine(torch.eye(2), torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
    0.5
    """
    return float(F.cosine_similarity(features, reference).double().mean())


def linear_cka(features: Tensor, reference: Tensor) -> float:
    r"""Return the linear centred kernel alignment of two sets of features of the same images, from 0 to 1.

    ||Y' X||_F^2 / (||X' X||_F ||Y' Y||_F) with the columns of X and Y centred; it does not change when either set is
    rotated or scaled. Source: S. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML
    2019, equation 4 with linear kernels.

    Args:
        features: (N, D), X.
        reference: (N, E), Y.

    Returns:
        The alignment; NaN where all images have the same features, as nothing can be compared then.

    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> round(linear_cka(X, 3 * X.flip(1)), 6)
    1.0
    """
    x, y = (values.double() - values.double().mean(0) for values in (features, reference))
    own = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    return float(torch.linalg.matrix_norm(y.T @ x).square() / own)


def same_neighbour(features: Tensor, reference: Tensor) -> float:
    """Return the percentage of images whose nearest other image, by cosine, is the same in both networks' features.

    Args:
        features: (N, D).
        reference: (N, E), of the same images.

    Returns:
        Percent; 100 for fewer than three images, which have no choice.

    >>> X = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    >>> same_neighbour(X, X)
    100.0
    """
    same = _neighbours(features) == _neighbours(reference)
    return 100 * float(same.double().mean()) if len(features) > 1 else 100.0


def _neighbours(features: Tensor) -> Tensor:
    """Return the position of each image's nearest other image, (N,)."""
    unit = F.normalize(features.double())
    nearest = []
    for start in range(0, len(unit), BLOCK):
        alike = unit[start : start + BLOCK] @ unit.T
        alike[torch.arange(len(alike)), torch.arange(start, start + len(alike))] = -torch.inf  # not itself
        nearest.append(alike.argmax(1))
    return torch.cat(nearest)


@dataclass
class FeaturePairs:
    """Features of all images in two networks, kept on the CPU: neighbours are looked for among all of them."""

    own: list[Tensor] = field(default_factory=list)
    reference: list[Tensor] = field(default_factory=list)

    def add(self, output: Any, reference: Any | None, count: int) -> None:
        """Keep what both networks returned for a batch of ``count`` images; see :func:`read_features`."""
        self.own.append(read_features(output, count))
        if reference is not None:
            self.reference.append(read_features(reference, count, "reference"))

    def compared(self) -> dict[str, float]:
        """Return cosine, CKA and percent of equal neighbours; nothing without a reference.

        Raises:
            SnowsError: when the networks' features differ in width.
        """
        if not self.reference:
            return {}
        own, reference = torch.cat(self.own), torch.cat(self.reference)
        if own.shape != reference.shape:
            raise invalid_argument(
                "reference",
                f"features of shape {tuple(reference.shape)}",
                f"{tuple(own.shape)}, as the model gives",
                "Compare with the dense network that the model was pruned from.",
            )
        reference = reference.to(own.dtype)
        return {
            "cosine": mean_cosine(own, reference),
            "cka": linear_cka(own, reference),
            "neighbours": same_neighbour(own, reference),
        }
