"""Copies of any model that can be computed with: no wrappers, masks made permanent, single precision at least."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

LOW_PRECISION = (torch.float16, torch.bfloat16)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile``, ``nn.DataParallel`` or ``DistributedDataParallel``.

    Args:
        model: any model.

    Returns:
        The outermost module that is no such wrapper, the same object that the wrapper runs; ``model`` itself without
        one. Wrappers further inside stay, and with them the names of their parameters.
    """
    while (inner := inside_wrapper(model)) is not None:
        model = inner
    return model


def inside_wrapper(module: nn.Module) -> nn.Module | None:
    """Return what a wrapper runs as it is: a compiled or data-parallel module; None for any other module."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return module.module
    # By name: whoever has compiled a module has imported torch._dynamo; for all others that takes a second.
    if type(module).__name__ == "OptimizedModule" and type(module).__module__.startswith("torch._dynamo"):
        return module.get_submodule("_orig_mod")
    return None


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy any model, also one that ``copy.deepcopy`` refuses.

    Tensors that autograd or ``torch.inference_mode`` made (weights that ``torch.nn.utils.prune``, ``weight_norm`` or
    ``spectral_norm`` computed) become ordinary ones. Masks of ``torch.nn.utils.prune`` become permanent: the copy has
    plain parameters, ``weight`` for ``weight_orig`` times ``weight_mask``.

    Args:
        model: the model; not changed.

    Returns:
        The copy, on the same device, with the same types.
    """
    with torch.inference_mode(False), torch.no_grad():
        memo: dict[int, Any] = {}
        for tensor in _tensors_inside(model, set()):
            if not tensor.is_leaf or (tensor.is_inference() and not isinstance(tensor, nn.Parameter)):
                memo[id(tensor)] = tensor.detach().clone()
        twin = copy.deepcopy(model, memo)
        for module in twin.modules():
            _make_masks_permanent(module)
    return twin


def _make_masks_permanent(module: nn.Module) -> None:
    hooks = [h for h in module._forward_pre_hooks.values() if isinstance(h, torch_prune.BasePruningMethod)]
    for name in dict.fromkeys(hook._tensor_name for hook in hooks):
        torch_prune.remove(module, name)


def _tensors_inside(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors of a module's attributes, through lists, dictionaries, modules and other objects in them."""
    stack = [value]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple | set):
            stack.extend(value)
        elif isinstance(value, nn.Module) or type(value).__module__.startswith("torch.nn"):
            stack.append(getattr(value, "__dict__", {}))


def remembered(model: nn.Module) -> Callable[[], None]:
    """Return a function that gives all modules of a model the attributes back that they have now.

    What a traced forward pass leaves in attributes (a cached activation, a list that it appends to) is no tensor and
    must not be there when it is traced again.
    """
    before = {module: {name: _shallow(value) for name, value in vars(module).items()} for module in model.modules()}

    def restore() -> None:
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update({name: _shallow(value) for name, value in attributes.items()})

    return restore


def _shallow(value: Any) -> Any:
    return copy.copy(value) if type(value) in (list, dict, set, OrderedDict) else value


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the type to compute a model in: that of its first floating-point parameter, float32 for half precision."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            return torch.float32 if tensor.dtype in LOW_PRECISION else tensor.dtype
    return torch.get_default_dtype()


def in_full_precision(model: nn.Module) -> nn.Module:
    """Turn half-precision parameters and buffers of a model into single precision, in place, and return it."""
    if any(tensor.dtype in LOW_PRECISION for tensor in (*model.parameters(), *model.buffers())):
        model._apply(lambda t: t.float() if t.dtype in LOW_PRECISION else t)
    return model


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a model's state dict in memory of their own; what is no tensor there is left out."""
    state = model.state_dict()
    return {name: value.detach().clone() for name, value in state.items() if isinstance(value, torch.Tensor)}
