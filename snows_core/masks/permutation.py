"""An order of the input channels under which N:M masks keep more: channels that matter come into different groups.

The groups of N:M run along the input channels, so that their order decides which weights compete. As in Pool & Yu
("Channel permutations for N:M sparsity", NeurIPS 2021) a search exchanges pairs of channels of different groups while
what the masks keep grows. Let ``r_k`` be the scores of channel k, one number for each output and kernel position, and
let a group without its channel i keep ``a_i`` in all, ``t_i`` being its n-th highest score in each row. With channel k
in the place of i it keeps ``a_i + sum max(r_k - t_i, 0)``: one sum over rows for each pair of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from snows_core.devices import widest
from snows_core.masks.patterns import NM

ROUNDS = 100  # at most; in each, every group takes part in one exchange at most
MOST = 1e8  # differences of scores in one look at all pairs; where there are more, the search sees every few rows
FEWEST = 64  # rows that it sees in any case
ROOM = 3.2e7  # bytes of such differences at a time
NEGLIGIBLE = 1e-6  # an exchange has to gain this share of all scores of an average group


@dataclass(frozen=True)
class ChannelOrder:
    """An order of channels, and what masks keep with it.

    Attributes:
        order: (channels,) the former place of the channel at each place.
        before: sum of the scores that N:M keeps in the former order.
        after: the same in the new one; never less.
        total: sum of the sizes of all scores.
    """

    order: Tensor
    before: float
    after: float
    total: float


@torch.no_grad()
def order_channels(scores: Sequence[Tensor], pattern: NM) -> ChannelOrder:
    """Search for an order of input channels under which a pattern keeps higher scores.

    It begins with the order given, or with channels dealt out to the groups from the highest sum to the lowest,
    whichever keeps more.

    Args:
        scores: of each layer that reads the channels, (out, channels) or (out, channels, *kernel).
        pattern: N:M; the channels divide into groups of M.

    Returns:
        The order, one for all layers.

    >>> rows = torch.tensor([[4.0, 3.0, 0.1, 0.2]])
    >>> found = order_channels([rows], NM(1, 2))
    >>> round(found.before, 2), round(found.after, 2)
    (4.2, 7.0)
    """
    columns = torch.cat([one.movedim(1, -1).flatten(0, -2) for one in scores]).to(widest(scores[0].device))  # (rows, C)
    count = columns.shape[1] // pattern.m
    given = torch.arange(columns.shape[1], device=columns.device)
    dealt = columns.sum(0).argsort(descending=True, stable=True).view(pattern.m, count).T.flatten()
    step = min(len(columns) * columns.shape[1] ** 2 / MOST, len(columns) / FEWEST)
    part = columns[:: max(1, int(step))].float()
    start = max((given, dealt), key=lambda order: float(_worth(part, order, pattern).sum()))
    order = _exchanged(part, start, pattern)
    before, after = (float(_worth(columns, one, pattern).sum()) for one in (given, order))
    total = float(columns.abs().sum())
    if after - before <= 1e-9 * total:
        order, after = given, before
    return ChannelOrder(order, before, after, total)


def _worth(columns: Tensor, order: Tensor, pattern: NM) -> Tensor:
    """Return the sum of the scores that each group keeps: (count,)."""
    groups = columns[:, order].view(len(columns), -1, pattern.m)
    return groups.topk(pattern.n, dim=2).values.sum((0, 2))


def _exchanged(columns: Tensor, order: Tensor, pattern: NM) -> Tensor:
    """Exchange pairs of channels while that raises what is kept, the best ones of separate groups in one go."""
    m, places = pattern.m, torch.arange(len(order), device=order.device)
    replaced = columns.new_empty(
        len(order), len(order)
    )  # [place, channel]: worth of the group with another channel there
    changed = torch.arange(len(order) // m, device=order.device)
    least = NEGLIGIBLE * float(columns.abs().sum()) / len(changed)
    for _ in range(ROUNDS):
        replaced[places.view(-1, m)[changed].flatten()] = _replaced(columns, order.view(-1, m)[changed], pattern.n)
        worth = _worth(columns, order, pattern).repeat_interleave(m)
        gain = replaced[:, order]  # [place, place]
        gain = gain + gain.T - worth[:, None] - worth
        count = len(order) // m
        blocks = gain.view(count, m, count, m).transpose(1, 2).flatten(2)  # (count, count, m * m)
        best, which = blocks.max(2)
        pairs = _separate(best, least)
        if not pairs:
            break
        order = order.clone()
        for one, other in pairs:
            place, partner = one * m + int(which[one, other]) // m, other * m + int(which[one, other]) % m
            order[place], order[partner] = order[partner].clone(), order[place].clone()
        changed = torch.tensor([group for pair in pairs for group in pair], device=order.device)
    return order


def _separate(best: Tensor, least: float) -> list[tuple[int, int]]:
    """Return pairs of groups whose best exchange gains, the highest gain first, no group twice.

    Args:
        best: (count, count) gain of the best exchange of two groups.
        least: what a gain has to exceed.
    """
    best = best.cpu().clone()
    pairs: list[tuple[int, int]] = []
    best.fill_diagonal_(-torch.inf)
    while True:
        where = int(best.argmax())
        one, other = divmod(where, len(best))
        if not float(best[one, other]) > least:
            return pairs
        pairs.append((one, other))
        best[[one, other]] = -torch.inf
        best[:, [one, other]] = -torch.inf


def _replaced(columns: Tensor, groups: Tensor, n: int) -> Tensor:
    """Return what groups are worth with any channel in the place of any of theirs.

    Args:
        columns: (rows, C) scores.
        groups: (g, m) channels of each group.
        n: how many scores a group keeps in each row.

    Returns:
        (g * m, C).
    """
    own = columns[:, groups]  # (rows, g, m)
    top = own.topk(n + 1, dim=2).values
    inside = own >= top[..., n - 1 : n]  # whether a channel is among those kept
    kept = torch.where(inside, top.sum(2, keepdim=True) - own, top[..., :n].sum(2, keepdim=True)).sum(0)  # (g, m)
    threshold = torch.where(inside, top[..., n:], top[..., n - 1 : n]).flatten(1)  # (rows, g * m)
    step = max(1, int(ROOM / (columns.element_size() * columns.numel())))
    gained = [
        (columns[:, None] - some[..., None]).clamp_(min=0.0).sum(0) for some in torch.split(threshold, step, dim=1)
    ]  # (step, C) each
    return kept.flatten()[:, None] + torch.cat(gained)
