"""The lowest of many scores, exactly so many of them; among equal scores a lot decides, the same for the same seed.

Scores are ordered by (score, lot). A lot belongs to a weight, not to a call: it depends on the seed, the layer's name
and the position alone. So equal weights go in no order of rows or layers, a lower count takes a part of what a higher
one takes, and a layer's choice is the same on every device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from snows_core.errors import OverflowedError, invalid_argument


def exactly(fraction: float) -> Fraction:
    """Return a fraction as its digits say it, not as binary floating point holds it.

    >>> int(0.57 * 100), int(exactly(0.57) * 100)
    (56, 57)
    """
    return Fraction(repr(float(fraction)))


def seed_of(seed: int, name: str) -> int:
    """Return the seed of one layer's lots."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big")


def lots(count: int, seed: int) -> Tensor:
    """Draw one lot in [0, 1) for each of ``count`` weights, float64 on the CPU."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed % 2**64), dtype=torch.float64)


def comparable(scores: Tensor, name: str = "") -> Tensor:
    """Return scores in a type that every device orders exactly: float32, float64 or int64.

    Args:
        scores: finite numbers of any real type.
        name: the layer's, for the message.

    Returns:
        The same numbers without a graph.

    Raises:
        SnowsError: on complex, NaN or infinite scores.
    """
    where = f" of '{name}'" if name else ""
    if scores.is_complex():
        raise invalid_argument("saliency", f"complex scores{where}", "real scores")
    scores = scores.detach()
    if not scores.is_floating_point():
        return scores.to(torch.int64)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if not torch.isfinite(scores).all():
        raise OverflowedError(
            str(invalid_argument("saliency", f"scores{where} with NaN or infinite values", "finite scores"))
        )
    return scores


def _threshold(values: Tensor, count: int) -> Tensor:
    """Return the ``count``-th lowest value by a partial sort of the smaller side (torch.kthvalue may be quadratic)."""
    if 2 * count <= len(values):
        return values.topk(count, largest=False, sorted=False).values.max()
    return values.topk(len(values) - count + 1, sorted=False).values.min()


def lowest(scores: Tensor, count: int, seed: int, threshold: Tensor | None = None) -> Tensor:
    """Mark the ``count`` lowest scores.

    Args:
        scores: any shape, from :func:`comparable`.
        count: how many, from 0 to all.
        seed: of the lots that decide among equal scores.
        threshold: where it is known already, a value that no more than ``count`` scores lie below, and at least as
            many do not exceed.

    Returns:
        Bool tensor of the shape and on the device of the scores, True for exactly ``count`` of them.
    """
    values = scores.flatten().cpu()  # (n,)
    marked = torch.zeros(len(values), dtype=torch.bool)
    if count > 0:
        threshold = _threshold(values, count) if threshold is None else threshold
        marked = values < threshold
        missing = count - int(marked.sum())
        tied = (values == threshold).nonzero().flatten()  # positions of equal scores
        if missing < len(tied):
            tied = tied[lots(len(values), seed)[tied].topk(missing, largest=False, sorted=False).indices]
        marked[tied] = True
    return marked.reshape(scores.shape).to(scores.device)


def without_lowest(scores: Tensor, sparsity: float, seed: int) -> Tensor:
    """Return the mask that removes round(sparsity * count) weights of lowest score, but never all of them.

    Args:
        scores: of any shape and real type.
        sparsity: fraction removed, in [0, 1).
        seed: of the lots that decide among equal scores.

    Returns:
        Bool tensor of the same shape, on the same device.
    """
    count = min(round(exactly(sparsity) * scores.numel()), scores.numel() - 1)
    return ~lowest(comparable(scores), count, seed)


def shares_of_lowest(scores: Mapping[str, Tensor], count: int, seed: int) -> tuple[dict[str, int], Tensor | None]:
    """Count how many of the ``count`` lowest scores of all layers each layer holds.

    Args:
        scores: layer name to scores (n,), all of one type from :func:`comparable`, on the CPU.
        count: from 0 to all.
        seed: of the lots; :func:`lowest` with :func:`seed_of` then takes the same weights.

    Returns:
        Layer name to a number of weights; they add up to ``count``. And the ``count``-th lowest score, None for 0.
    """
    if count == 0:
        return dict.fromkeys(scores, 0), None
    threshold = _threshold(torch.cat(list(scores.values())), count)
    shares = {name: int((values < threshold).sum()) for name, values in scores.items()}
    tied = {name: (values == threshold).nonzero().flatten() for name, values in scores.items()}
    ties = torch.tensor([len(where) for where in tied.values()])
    missing = count - sum(shares.values())
    drawn = ties.tolist()
    if missing < sum(drawn):
        drawing = {name: where for name, where in tied.items() if len(where)}
        pool = torch.cat([lots(len(scores[name]), seed_of(seed, name))[where] for name, where in drawing.items()])
        first = pool.topk(missing, largest=False, sorted=False).indices  # (missing,), places in the pool
        owners = torch.bucketize(first, ties.cumsum(0), right=True)  # (missing,), the layer that each place lies in
        drawn = torch.bincount(owners, minlength=len(ties)).tolist()
    return {name: share + more for (name, share), more in zip(shares.items(), drawn, strict=True)}, threshold


def highest_of_groups(groups: Tensor, keep: int, seed: int) -> Tensor:
    """Mark the ``keep`` highest scores of each group.

    Args:
        groups: (..., m), from :func:`comparable`.
        keep: from 1 to m.
        seed: of the lots that decide among equal scores of a group.

    Returns:
        Bool tensor of the same shape, exactly ``keep`` True in each group.
    """
    last = groups.topk(keep, dim=-1).values[..., -1:]  # (..., 1): the lowest score that stays
    kept = groups >= last  # (..., m)
    crowded = kept.sum(-1) > keep  # (...): groups in which equal scores are too many
    if crowded.any():
        # (c, m) each, for c crowded groups: those above stay, then the tied ones by their lots, then all others.
        drawn = lots(groups.numel(), seed).reshape(groups.shape)[crowded.cpu()].to(groups.device, torch.float32)
        above, tied = (groups > last)[crowded], (groups == last)[crowded]
        order = (drawn + 2 * ~above + 2 * ~(above | tied)).argsort(dim=-1, stable=True)[..., :keep]
        kept[crowded] = torch.zeros_like(above).scatter_(-1, order, True)
    return kept
