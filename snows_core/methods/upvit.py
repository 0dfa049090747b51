"""UP-ViTs: a unit matters as much as the network's answers change when it is taken away.

Of each channel, hidden neuron and attention head the score is the Kullback-Leibler divergence of the answers with it to
those without it, on the calibration images (Yu & Wu 2021, "A Unified Pruning Framework for Vision Transformers": its
importance on a proxy data set; from memory of it). A unit is taken away by zeros in the layers that read it, and only
what comes behind them is run again. Kept weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from snows_core.loss.gradients import WHO
from snows_core.loss.scores import read_scores
from snows_core.masks.patterns import Masks
from snows_core.masks.structured import Units
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin
from snows_core.network.graph import Network, Values

BATCH = 32  # images of one pass; all values inside the network are held for them


class UnifiedPruning(NetworkMethod):
    """Keep the units without which the answers change most."""

    origin = Origin(
        paper="Yu & Wu: A Unified Pruning Framework for Vision Transformers",
        year=2021,
        needs="images",
        cost="u f; a pass from the unit on, for every unit",
        limits="structured patterns alone; one unit at a time; the width of the token stream stays; gives no weights",
    )

    updates_weights = False
    reads_labels = False
    chooses_groups = False
    chooses_units = True
    chooses_weights = False

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the divergences of a ``problem``, whose pattern is a structured one."""
        return problem.unit_masks(self.divergences(problem))

    @torch.no_grad()
    def divergences(self, problem: NetworkProblem) -> dict[str, Tensor]:
        """Return the mean divergence over images that taking away each unit leads to.

        Args:
            problem: the network, with a structured pattern.

        Returns:
            Group name to (units,), nats.
        """
        groups = problem.structured.groups
        found = {group.name: torch.zeros(group.count, dtype=torch.float64) for group in groups}
        device = next(problem.network.module.parameters()).device
        for x in torch.split(problem.images, BATCH):
            values: Values = {problem.network.image: x.to(device)}
            problem.network.run(problem.network.nodes[1:], values, problem.parameters)
            whole = _log_chances(problem.network, values, len(x))
            for group in groups:
                behind = _behind(problem, group)
                for unit, weights in enumerate(_without_each(problem, group)):
                    again = problem.network.run(behind, dict(values), {**problem.parameters, **weights})
                    rest = _log_chances(problem.network, again, len(x))
                    found[group.name][unit] += float((whole.exp() * (whole - rest)).sum())
        return {name: total.clamp(min=0.0) / len(problem.images) for name, total in found.items()}


def _log_chances(network: Network, values: Values, count: int) -> Tensor:
    """Return the logarithms of the class probabilities (n, classes, *positions)."""
    logits = read_scores(fx.map_arg(network.output, values.__getitem__), count, WHO).logits
    return F.log_softmax(logits.double(), 1)


def _behind(problem: NetworkProblem, group: Units) -> list[fx.Node]:
    """Return the layers that read a group, and everything that depends on them, in order."""
    names = {part.layer for part in group.readers}
    reached = {layer.node for layer in problem.network.layers if layer.name in names}
    for node in problem.network.nodes:
        if not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    return [node for node in problem.network.nodes if node in reached]


def _without_each(problem: NetworkProblem, group: Units) -> Iterator[Mapping[str, Tensor]]:
    """Yield for each unit the weights of its readers, zero in its columns, by parameter name."""
    for unit in range(group.count):
        yield {
            problem.names[part.layer]: problem.weights[part.layer].index_fill(
                1, part.places[unit].to(problem.weights[part.layer].device), 0.0
            )
            for part in group.readers
        }
