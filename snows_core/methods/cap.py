"""CAP, the Correlation Aware Pruner: removal one by one in blocks of the Fisher, for vision transformers.

Kuznedelev et al. 2022, "CAP: Correlation-Aware Pruning for Highly-Accurate Sparse Vision Models" (first called oViT):
the empirical Fisher of a layer in blocks along the rows of its weight, each inverted by rank-one updates
(:mod:`snows_core.solvers.block_fisher`). In each block weights go one after the other, each the cheapest once the
others have moved (:mod:`snows_core.solvers.block_removal`), and what each cost at its turn is its score across blocks
and layers. The update is that of all removals of a block together. For N:M, scores are ranked inside groups. Their
gradual schedule and its fine-tuning are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from snows_core.masks.patterns import Masks
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import GRADIENTS, Origin
from snows_core.solvers.block_fisher import ROOM, inverse_blocks
from snows_core.solvers.block_removal import removal_costs, without

BLOCK = 64  # weights of a block at most


class CorrelationAware(NetworkMethod):
    """Choose by removal one by one in each block, and update by all removals of it."""

    origin = Origin(
        paper="Kuznedelev et al.: CAP, Correlation-Aware Pruning for Highly-Accurate Sparse Vision Models",
        year=2022,
        needs="gradients of the loss",
        cost=f"{GRADIENTS} + 128 n p + 8,000 p (factors) + 4,096 p (passes); in blocks of 64 weights",
        limits="blocks along the rows do not know of one another",
    )

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the costs of a ``problem``."""
        parts = []
        for layer, weight in problem.weights.items():
            present = torch.ones_like(weight, dtype=torch.bool)
            parts.append(_in_blocks(problem, layer, present, removal_costs).flatten())
        return problem.masks(torch.cat(parts))

    def update(self, problem: NetworkProblem, masks: Masks) -> dict[str, Tensor]:
        """Return the weights that all removals of each block leave.

        Args:
            problem: the network.
            masks: layer name to mask.
        """
        return {
            layer: torch.empty_like(weight).copy_(_in_blocks(problem, layer, masks[layer], without).view(weight.shape))
            for layer, weight in problem.weights.items()
        }


def _in_blocks(
    problem: NetworkProblem, layer: str, chosen: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Return what a function of (weight, inverse, chosen) makes of each block of a layer, in rows (out, d).

    Args:
        problem: the network.
        layer: its name.
        chosen: bool, weight shape; False at the places that fill up the last block of a row.
        function: takes (blocks, size), (blocks, size, size) and (blocks, size).
    """
    rows, chosen = problem.weights[layer].flatten(1), chosen.flatten(1)
    inputs = rows.shape[1]
    pieces = -(-inputs // BLOCK)
    size = -(-inputs // pieces)
    padding = (0, pieces * size - inputs)
    start = sum(weight.numel() for weight in list(problem.weights.values())[: list(problem.weights).index(layer)])
    gradients = problem.gradients[:, start : start + rows.numel()].view(-1, *rows.shape)  # (m, out, d)
    found = []
    for part in _some_rows(len(rows), pieces, size):
        inverse = inverse_blocks(F.pad(gradients[:, part], padding).reshape(len(gradients), -1, size), problem.damping)
        of_rows = (F.pad(rows[part], padding).reshape(-1, size), F.pad(chosen[part], padding).reshape(-1, size))
        made = function(of_rows[0], inverse, of_rows[1])
        found.append(made.view(-1, pieces * size)[:, :inputs])
    return torch.cat(found)


def _some_rows(count: int, pieces: int, size: int) -> Iterator[slice]:
    """Yield as many rows as the inverses of whose blocks are there at a time."""
    together = max(1, int(ROOM / (8 * pieces * size**2)))
    for start in range(0, count, together):
        yield slice(start, start + together)
