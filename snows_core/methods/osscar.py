"""OSSCAR: whole channels, neurons and heads out of a layer's input, so that re-fitted its output changes least.

Of every group of units the layers that read it are looked at: which input columns to take out so that the others, by
least squares, come nearest to the output that there was (:mod:`snows_core.solvers.group_removal`; Meng et al. 2024,
"OSSCAR: One-Shot Structured Pruning in Vision and Language Models with Combinatorial Optimization", ICML). The inputs
are those of the network as the stage begins, not of one that is pruned up to the layer. The re-fit on the mask is the
layer-wise least squares of :mod:`snows_core.methods.layerwise`, front to back: the update of this name is that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from snows_core.activations.cache import ActivationCache
from snows_core.activations.gram_matrices import normal_equations
from snows_core.masks.patterns import Masks, Structured
from snows_core.masks.structured import Units
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin
from snows_core.network.geometry import geometry_of
from snows_core.network.graph import Layer
from snows_core.network.nodes import first_input
from snows_core.solvers.damped_gram import damped_gram
from snows_core.solvers.group_removal import GroupedLoss, remove_groups

BATCH = 64  # images that run together
RIDGE = 1e-3  # damping relative to the mean of the Gram matrix's diagonal


class Osscar(NetworkMethod):
    """Choose units by the least-squares error of the layers that read them."""

    origin = Origin(
        paper="Meng, Ibrahim, Behdin, Hazimeh, Ponomareva & Mazumder: OSSCAR: One-Shot Structured Pruning in Vision "
        "and Language Models with Combinatorial Optimization",
        year=2024,
        needs="the Gram matrix of each layer that reads units",
        cost="f + g n d^2 + 40 d^3 + d^3 (factors) + 3 d^3 (passes); of each layer that reads units",
        limits="structured patterns alone; chooses on the inputs that the stage begins with; its re-fit is layerwise",
    )

    reads_labels = False
    chooses_groups = False
    chooses_units = True
    chooses_weights = False
    layer_update = "layerwise"

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of a ``problem``, whose pattern is a structured one."""
        pattern = problem.structured
        waiting: dict[str, Tensor] = {}
        kept: dict[str, Tensor] = {}
        open_groups = list(pattern.groups)
        for layer, gram in _grams(problem, {part.layer for group in open_groups for part in group.readers}):
            waiting[layer.name] = gram
            for group in [one for one in open_groups if all(part.layer in waiting for part in one.readers)]:
                open_groups.remove(group)
                kept[group.name] = self.keep(problem, pattern, group, waiting)
            still = {part.layer for group in open_groups for part in group.readers}
            waiting = {name: matrix for name, matrix in waiting.items() if name in still}
        return problem.masks_of_units(kept)

    def keep(self, problem: NetworkProblem, pattern: Structured, group: Units, grams: Mapping[str, Tensor]) -> Tensor:
        """Return which units of one group stay.

        Args:
            problem: the network.
            pattern: how many go.
            group: the group.
            grams: layer name to the Gram matrix (1, d, d) of its input, for the layers that read the group.

        Returns:
            (units,) bool.
        """
        count = int(pattern.keep(group, torch.zeros(group.count)).sum())
        losses = []
        for part in group.readers:
            weight = problem.weights[part.layer]
            matrix = damped_gram(grams[part.layer], RIDGE).matrix[0]
            places = part.inputs_of(weight).to(matrix.device)
            losses.append(GroupedLoss(matrix, weight.flatten(1).to(matrix), places))
        return remove_groups(losses, count)


def _grams(problem: NetworkProblem, names: set[str]) -> Iterator[tuple[Layer, Tensor]]:
    """Yield the layers of some names in execution order, each with the Gram matrix (1, d, d) of its input."""
    network = problem.network
    device = next(network.module.parameters()).device
    cache = ActivationCache(network, [part.to(device) for part in torch.split(problem.images, BATCH)])
    cache.weights = problem.parameters
    for layer in network.layers:
        if layer.name not in names:
            continue
        cache.advance(network.index[layer.node])
        weight, source = problem.weights[layer.name], first_input(layer.node)
        inputs = ((cache.read(source, batch), None) for batch in range(len(cache.sizes)))
        gram, _ = normal_equations(inputs, geometry_of(layer.node, weight), weight.shape[0])
        yield layer, gram
