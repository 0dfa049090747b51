"""A pruned network that came without a result of this package: its zeros read as masks, and a result made of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from snows_core.errors import invalid_argument
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, snapshot, unwrap
from snows_core.network.fitting import zero_by_masks
from snows_core.network.operations import Kind
from snows_core.network.saved_files import STATISTICS
from snows_core.provenance import provenance
from snows_core.result import PruneResult

if TYPE_CHECKING:
    import pandas as pd

WHY_DENSE = "no zeros in the given masks"


def given_result(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> PruneResult:
    """Return a result for a network that is pruned already.

    Args:
        model: any network; not changed.
        masks: layer or parameter name to a tensor of its weight's shape, True where a weight is kept. Default: every
            zero in a parameter of two axes or more whose name ends in "weight" counts as pruned.

    Returns:
        A result with a copy of the network, zero where its masks are False, and the pattern "given masks".

    Raises:
        SnowsError: on masks that do not fit, or a network without zeros.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> _ = net[1].weight.data[:, ::2].zero_()
    >>> given_result(net).masks["1"].tolist()
    [[False, True, False, True], [False, True, False, True]]
    """
    check_tensors(model)
    pruned = plain_copy(unwrap(model))
    if masks is None:
        kept = {name: weight != 0 for name, weight in pruned.named_parameters() if _is_weight(name, weight)}
    else:
        ones = plain_copy(pruned)
        for parameter in ones.parameters():
            nn.init.ones_(parameter)
        ones, pruned = zero_by_masks(ones, dict(masks)), zero_by_masks(pruned, dict(masks))
        kept = {name: weight != 0 for name, weight in ones.named_parameters()}
    kept = {name: mask.detach() for name, mask in kept.items() if not bool(mask.all())}
    if not kept:
        fix = "Prune it first, for instance with snows.prune or snows.apply_masks."
        raise invalid_argument("model" if masks is None else "masks", "no zeros", "a pruned network", fix)
    names = {name.removesuffix(".weight"): name for name in kept}
    manifest = {"pattern": "given masks", "complete": True, **provenance()}
    found = {layer: kept[name].cpu() for layer, name in names.items()}
    return PruneResult(pruned, found, _report(pruned, kept), manifest, snapshot(pruned), names)


def _is_weight(name: str, parameter: Tensor) -> bool:
    """Tell the weights of layers from tokens and position embeddings, which may be zero at first."""
    return parameter.ndim > 1 and name.endswith("weight")


def _report(model: nn.Module, kept: Mapping[str, Tensor]) -> pd.DataFrame:
    """Return a report with a row for each weight of two axes or more, and for whatever else has a mask."""
    import pandas as pd

    rows = []
    for name, weight in model.named_parameters():
        if not _is_weight(name, weight) and name not in kept:
            continue
        stays = int(kept[name].sum()) if name in kept else weight.numel()
        row = {
            "layer": name.removesuffix(".weight"),
            "kind": (Kind.CONVOLUTION if weight.ndim > 2 else Kind.LINEAR).value,
            "shape": "x".join(map(str, weight.shape)),
            "weights": weight.numel(),
            "kept": stays,
            "sparsity": 1 - stays / weight.numel(),
            "status": "pruned" if name in kept else "skipped",
            "reason": "" if name in kept else WHY_DENSE,
            "stage": int(name in kept),
            "stop": "",
        }
        rows.append(row | dict.fromkeys(STATISTICS, torch.nan))
    return pd.DataFrame(rows)
