"""Whole groups of inputs taken out of least squares: greedy removal, then exchanges while they gain (OSSCAR).

For outputs W (out, d), minimiser W* over all inputs and matrix H (d, d), the loss is, up to a constant::

    tr((W - W*) H (W - W*)'),    columns of W of the removed groups zero

On the kept inputs S its minimiser is ``W_S = W* H[:, S] H_SS^-1``. With ``V = H_SS^-1``, a group i of S, and a group j
that was removed (Meng et al. 2024, "OSSCAR: One-Shot Structured Pruning in Vision and Language Models with
Combinatorial Optimization": layer-wise objective, low-rank updates, local search over exchanges; from memory of it)::

    removing i costs     tr(W_i V_ii^-1 W_i')
    adding j gains       tr(R_j C_j^-1 R_j'),   C_j = H_jj - H_jS V H_Sj,   R_j = (W* H)_j - W_S H_Sj

and V and W change by matrices of a group's rank. An exchange of i for j is judged exactly: j is added, and what
removing i costs then is compared with the gain. Several layers that read the same groups add up, each as a share of
what its outputs are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDS = 100  # exchanges at most
CANDIDATES = 8  # removed groups that are tried before the search ends, those of largest gain
STEPS = 256  # removals in the greedy part at most: where there are more groups to remove, several go at once
NEGLIGIBLE = 1e-9  # of all outputs; an exchange has to gain more


@dataclass(frozen=True)
class GroupedLoss:
    """The loss of one layer that reads the groups.

    Attributes:
        matrix: (d, d) H, positive definite.
        target: (out, d) W*.
        places: (groups, b) int64, the inputs of each group; together all that may be removed.
    """

    matrix: Tensor
    target: Tensor
    places: Tensor

    def rise(self, kept: Tensor) -> float:
        """Return what the loss rises by, as a share of the outputs, when the other inputs go, by direct solution.

        Args:
            kept: (groups,) bool.
        """
        gone = self.places[~kept.to(self.places.device)].flatten()
        stays = torch.ones(len(self.matrix), dtype=torch.bool, device=self.matrix.device).index_fill_(0, gone, False)
        product = self.target @ self.matrix
        inner = self.matrix[stays][:, stays]
        best = (self.target * product).sum()
        return float((best - (torch.linalg.solve(inner, product[:, stays].mT).mT * product[:, stays]).sum()) / best)


class _State:
    """One loss at the groups kept now: ``V`` and ``W``, with zeros in the places that are not kept.

    Args:
        loss: the loss.
    """

    def __init__(self, loss: GroupedLoss) -> None:
        self.loss, self.places = loss, loss.places
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(loss.matrix))
        self.weight = loss.target.clone()
        self.response = loss.target @ loss.matrix  # W* H
        self.scale = 1.0 / float((loss.target * self.response).sum().clamp(min=torch.finfo(loss.target.dtype).tiny))

    def removal_costs(self, groups: Tensor, inverse: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
        """Return what removing each of some kept groups costs, (n,)."""
        inverse, weight = self.inverse if inverse is None else inverse, self.weight if weight is None else weight
        at = self.places[groups]  # (n, b)
        blocks = inverse[at[:, :, None], at[:, None, :]]  # (n, b, b)
        columns = weight[:, at].permute(1, 2, 0)  # (n, b, out)
        costs: Tensor = (columns * torch.linalg.solve(blocks, columns)).sum((1, 2)) * self.scale
        return costs

    def remove(self, group: int) -> None:
        """Take a kept group out."""
        at = self.places[group]
        half = torch.linalg.solve(self.inverse[at][:, at], self.inverse[at])  # V_ii^-1 V_i: (b, d)
        self.weight.addmm_(self.weight[:, at], half, alpha=-1)
        self.inverse.addmm_(self.inverse[:, at], half, alpha=-1)
        self.weight[:, at] = 0.0
        self.inverse[at] = 0.0
        self.inverse[:, at] = 0.0

    def _addition(self, group: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``C_j^-1 R_j'`` (b, out), ``V H_Sj`` (d, b) and C_j^-1 (b, b) of a group that was removed."""
        at, matrix = self.places[group], self.loss.matrix
        through = self.inverse @ matrix[:, at]  # zero in the places that are not kept
        rest = matrix[at][:, at] - matrix[at] @ through
        residual = self.response[:, at] - self.weight @ matrix[:, at]
        inverse = torch.linalg.inv(rest)
        return inverse @ residual.mT, through, inverse

    def gains(self, groups: Tensor) -> Tensor:
        """Return what adding each of some removed groups gains, (n,)."""
        at, matrix = self.places[groups], self.loss.matrix
        columns = matrix[:, at]  # (d, n, b)
        through = (self.inverse @ columns.flatten(1)).view_as(columns)
        blocks = matrix[at[:, :, None], at[:, None, :]] - torch.einsum("dnb,dnc->nbc", columns, through)
        residual = self.response[:, at] - (self.weight @ columns.flatten(1)).view(-1, *at.shape)  # (out, n, b)
        residual = residual.permute(1, 2, 0)  # (n, b, out)
        found: Tensor = (residual * torch.linalg.solve(blocks, residual)).sum((1, 2)) * self.scale
        return found

    def with_added(self, group: int) -> tuple[Tensor, Tensor]:
        """Return ``V`` and ``W`` with a removed group added."""
        at = self.places[group]
        added, through, inner = self._addition(group)
        inverse = self.inverse + through @ inner @ through.mT
        inverse[:, at] = -through @ inner
        inverse[at] = inverse[:, at].mT
        inverse[at[:, None], at[None, :]] = inner
        weight = self.weight - (through @ added).mT
        weight[:, at] = added.mT
        return inverse, weight


@torch.no_grad()
def remove_groups(losses: Sequence[GroupedLoss], keep: int) -> Tensor:
    """Choose which groups of inputs stay.

    Args:
        losses: of the layers that read the groups; each has all of them.
        keep: how many stay, from 1 to all.

    Returns:
        (groups,) bool, on the CPU, ``keep`` of them True. No single exchange with one of the removed groups of largest
        gain lowers the loss any more.

    >>> loss = GroupedLoss(torch.eye(3), torch.tensor([[3.0, 1.0, 2.0]]), torch.arange(3)[:, None])
    >>> remove_groups([loss], 2).tolist()
    [True, False, True]
    """
    states = [_State(loss) for loss in losses]
    kept = torch.ones(len(losses[0].places), dtype=torch.bool)
    step = -(-(len(kept) - keep) // STEPS)
    while (left := int(kept.sum()) - keep) > 0:
        there = kept.nonzero().flatten()
        costs = _summed([state.removal_costs(there) for state in states])
        for group in there[costs.topk(min(step, left), largest=False).indices].tolist():
            kept[group] = False
            for state in states:
                state.remove(group)
    for _ in range(ROUNDS if 0 < keep < len(kept) else 0):
        if not _exchange(states, kept):
            break
    return kept


def _exchange(states: Sequence[_State], kept: Tensor) -> bool:
    """Make the first exchange that gains, in place, removed groups of larger gain first; tell whether there was one."""
    gone, there = (~kept).nonzero().flatten(), kept.nonzero().flatten()
    gains = _summed([state.gains(gone) for state in states])
    for place in gains.topk(min(CANDIDATES, len(gone))).indices.tolist():
        if float(gains[place]) <= NEGLIGIBLE:
            break  # what is added cannot gain more than that
        entering = int(gone[place])
        added = [state.with_added(entering) for state in states]
        costs = _summed([state.removal_costs(there, *pair) for state, pair in zip(states, added, strict=True)])
        least = int(costs.argmin())
        if float(gains[place] - costs[least]) > NEGLIGIBLE:
            leaving = int(there[least])
            for state, (inverse, weight) in zip(states, added, strict=True):
                state.inverse, state.weight = inverse, weight
                state.remove(leaving)
            kept[leaving], kept[entering] = False, True
            return True
    return False


def _summed(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.cpu() for part in parts]).sum(0)
