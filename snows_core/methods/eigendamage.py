"""Units scored in the Kronecker-factored eigenbasis, after EigenDamage.

K-FAC's Fisher ``S (x) A`` of a layer that reads units (:mod:`snows_core.loss.kronecker_factors`) has the eigenvectors
``Q_S (x) Q_A`` and the eigenvalues ``s_i a_j``. With the weights V of one unit's columns, zero elsewhere, rotated into
that basis, taking the unit away costs::

    1/2 sum_ij s_i a_j (Q_S' V Q_A)_ij^2

EigenDamage (Wang, Grosse, Fidler & Zhang 2019, "EigenDamage: Structured Pruning in the Kronecker-Factored Eigenbasis",
section 4; from memory of it) takes rows and columns out of the rotated weight itself, and leaves a layer as three. A
mask has no place for such rotations: here the basis is that of the costs alone, and the units are the network's own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snows_core.loss.kronecker_factors import KroneckerFactors, kronecker_factors
from snows_core.masks.patterns import Masks
from snows_core.masks.structured import Slices
from snows_core.methods.network_method import NetworkMethod
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.origin import Origin


class EigenDamage(NetworkMethod):
    """Keep the units whose removal costs most under K-FAC's Fisher."""

    origin = Origin(
        paper="Wang, Grosse, Fidler & Zhang: EigenDamage: Structured Pruning in the Kronecker-Factored Eigenbasis",
        year=2019,
        needs="gradients of the loss",
        cost="3 f + n d^2 + n o^2 + 9 d^3 (factors) + 9 o^3 (factors); of each layer that reads units",
        limits="structured patterns alone; costs in the eigenbasis, but units of the network's own, so that no layer "
        "becomes three as in the paper; gives no weights",
    )

    updates_weights = False
    chooses_groups = False
    chooses_units = True
    chooses_weights = False

    def choose(self, problem: NetworkProblem) -> Masks:
        """Return the masks of the costs of a ``problem``, whose pattern is a structured one."""
        return problem.unit_masks(self.costs(problem))

    def costs(self, problem: NetworkProblem) -> dict[str, Tensor]:
        """Return what taking away each unit costs, the layers that read it added up.

        Args:
            problem: the network, with a structured pattern.

        Returns:
            Group name to (units,).
        """
        groups = problem.structured.groups
        names = {part.layer for group in groups for part in group.readers}
        layers = [layer for layer in problem.network.layers if layer.name in names]
        factors = kronecker_factors(problem.network, layers, problem.parameters, problem.images, problem.classes)
        return {
            group.name: torch.stack(
                [unit_costs(problem.weights[part.layer], part, factors[part.layer]).cpu() for part in group.readers]
            ).sum(0)
            for group in groups
        }


@torch.no_grad()
def unit_costs(weight: Tensor, part: Slices, factors: KroneckerFactors) -> Tensor:
    """Return what taking each unit's columns out of a layer costs under its Fisher.

    Args:
        weight: (out, in, *kernel).
        part: the columns of each unit.
        factors: of the layer.

    Returns:
        (units,), in the number format of the factors.
    """
    incoming, along = torch.linalg.eigh(factors.inputs)  # (d,), (d, d)
    outgoing, across = torch.linalg.eigh(factors.outputs)  # (out,), (out, out)
    rotated = across.mT @ weight.flatten(1).to(across)  # rows in their basis, (out, d)
    rows = outgoing.clamp(min=0.0).sqrt()[:, None] * rotated
    places = part.inputs_of(weight).to(weight.device)  # (units, b)
    found = []
    for at in places:
        both = rows[:, at] @ along[at]  # (out, d)
        found.append((both.square() * incoming.clamp(min=0.0)).sum() / 2)
    return torch.stack(found)
