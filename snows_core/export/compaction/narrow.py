"""Units taken out of a model: its tensors and modules become smaller, its classes and their forward passes stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.export.compaction.removal import Removal
from snows_core.network.operations import CONVOLUTIONS
from snows_core.network.unit_group import Reading


@torch.no_grad()
def narrow(model: nn.Module, removals: Iterable[Removal]) -> None:
    """Take units out of a model, in place.

    Args:
        model: a plain copy, in the names of the groups.
        removals: what goes; numbers that constant units stand for are added to the biases of their readers.
    """
    chosen = [removal for removal in removals if removal.count]
    for removal in chosen:  # before any column is gone
        for reading in removal.group.readings:
            _absorb(model.get_submodule(reading.layer.name), reading, removal.dropped)
    touched: dict[str, nn.Module] = {}
    for removal in chosen:
        group = removal.group
        held = {part.tensor for part in group.parts}
        for part in (*group.parts, *(reading.part for reading in group.readings)):
            path, _, name = part.tensor.rpartition(".")
            touched[path] = model.get_submodule(path)
            places = part.places[removal.kept].flatten().sort().values  # in the order that they had
            _select(touched[path], name, part.axis, places)
            if name == "weight" and part.axis == 0 and f"{path}.bias" not in held and touched[path].bias is not None:
                _select(touched[path], "bias", 0, places)  # a bias that a reader of other units was just given
        if group.kind == "heads":
            _fewer_heads(model.get_submodule(group.name), removal)
    for module in touched.values():
        _say_shapes(module)


def _absorb(module: Any, reading: Reading, dropped: Tensor) -> None:
    """Add what the dropped constant units give to the outputs of a reader to its bias."""
    going = dropped & reading.constant & reading.value.any(1)
    if not going.any():
        return
    places, value = reading.part.places[going].flatten(), reading.value[going].flatten()
    weight = module.weight.double().flatten(2).sum(2) if module.weight.ndim > 2 else module.weight.double()
    added = weight[:, places.to(weight.device)] @ value.to(weight)  # (out,)
    if module.bias is None:
        if bool(added.any()):
            module.bias = nn.Parameter(added.to(module.weight), requires_grad=module.weight.requires_grad)
    else:
        module.bias.copy_((module.bias.double() + added).to(module.bias))


def _select(module: nn.Module, name: str, axis: int, places: Tensor) -> None:
    """Keep some places of a parameter or buffer."""
    tensor: Tensor = getattr(module, name)
    kept = tensor.detach().index_select(axis, places.to(tensor.device))
    kept = kept.clone(memory_format=torch.preserve_format)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(kept, requires_grad=tensor.requires_grad)
    else:
        module._buffers[name] = kept


def _say_shapes(module: nn.Module) -> None:
    """Let a module's own numbers say what its tensors are now."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, CONVOLUTIONS):
        outputs, inputs = module.weight.shape[:2]
        if module.groups > 1:  # depthwise: as many groups as there are channels to read
            module.groups = outputs // (module.out_channels // module.groups)
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()


def _fewer_heads(module: Any, removal: Removal) -> None:
    """Tell an attention module how many heads it has left."""
    width = removal.group.readings[0].part.places.shape[1]
    module.num_heads = len(removal.kept)
    if hasattr(module, "attn_dim"):
        module.attn_dim = len(removal.kept) * width
