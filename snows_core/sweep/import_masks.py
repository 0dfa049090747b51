"""Masks of other tools for a network: the public way to read what ``masks=`` of ``prune`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snows_core.masks.given import foreign_masks
from snows_core.masks.patterns import Masks
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import unwrap

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def import_masks(source: Mapping[str, Tensor] | nn.Module | str | Path | Any, model: nn.Module) -> Masks:
    """Return the masks of a network that was pruned elsewhere, by layer.

    What a checkpoint keeps is read off its mask tensors where it has some, else off the zeros of its weights: so of
    lottery tickets, SR-STE, LBC, SpRe and ASP alike. ``prune(model, images, masks=source)`` reads the same sources,
    looks at every layer, and re-fits the weights that are kept.

    A file of ASP whose channels were permuted has its weights in the new order: load them into the model first (the
    function of the network is the same), since masks in one order say nothing about weights in another.

    Args:
        source: masks by layer or parameter name (bool, or 0 and 1); a state dict whose zeros, or ``weight_mask`` and
            the like, define them; a .safetensors or .pth file of one of these, or of a dictionary that has them under
            "masks", "mask", "state_dict", "model_state_dict" or "model" (read without running code); a pruned model,
            with ``torch.nn.utils.prune`` or parametrizations or without; or a result of :func:`snows_core.prune`.
            Prefixes of DataParallel, ``torch.compile`` and FSDP are understood.
        model: the dense network, whose names and shapes count; not changed.

    Returns:
        Layer name to bool mask, True where a weight is kept; a layer without a zero has none and stays dense.

    Raises:
        SnowsError: on an unknown or ambiguous name, a wrong shape, values that are no mask, NaN, a layer left empty, a
            source without any zero, or a file that cannot be read.

    A dictionary of masks; a state dict with zeros, of a network in DataParallel; the buffers of ASP; and models of
    ``torch.nn.utils.prune`` and ``parametrize``:

    >>> import torch
    >>> from torch.nn.utils import parametrize, prune
    >>> model, mask = nn.Sequential(nn.Linear(2, 1)), torch.tensor([[1.0, 0.0]])
    >>> import_masks({"0.weight": mask}, model)
    {'0': tensor([[ True, False]])}
    >>> import_masks({"module.0.weight": 0.3 * mask, "module.0.bias": torch.zeros(1)}, model)
    {'0': tensor([[ True, False]])}
    >>> import_masks({"0.weight": model[0].weight, "0.__weight_mma_mask": mask.bool()}, model)
    {'0': tensor([[ True, False]])}
    >>> hooked = nn.Sequential(prune.custom_from_mask(nn.Linear(2, 1), "weight", mask))
    >>> import_masks(hooked, model)
    {'0': tensor([[ True, False]])}
    >>> class Masked(nn.Module):
    ...     def forward(self, weight):
    ...         return weight * mask
    >>> parametrized = nn.Sequential(parametrize.register_parametrization(nn.Linear(2, 1), "weight", Masked()))
    >>> import_masks(parametrized, model)
    {'0': tensor([[ True, False]])}
    """
    check_tensors(model)
    plain = unwrap(model)
    layers = {
        name: module
        for name, module in plain.named_modules()
        if isinstance(module, LAYERS) and isinstance(module.weight, Tensor)
    }
    weights = {name: module.weight.detach() for name, module in layers.items() if isinstance(module.weight, Tensor)}
    known = list(plain.state_dict())
    return foreign_masks(source, weights, {f"{name}.weight" if name else "weight": name for name in weights}, known)
