"""State dicts with the weights that a model computes with, where hooks or parametrizations make them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


def computed_state(model: nn.Module) -> dict[str, Any]:
    """Return a model's state dict with the weights it computes with, under their plain names.

    Args:
        model: not changed.

    Returns:
        Name to tensor; what hooks and parametrizations keep in place of a weight is left out.
    """
    state = dict(model.state_dict())
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if parametrize.is_parametrized(module):
            for name, chain in module.parametrizations.items():
                for key in [key for key in state if key.startswith(f"{prefix}parametrizations.{name}.")]:
                    del state[key]
                with torch.no_grad():  # a copy: spectral norm would count this as a step of its power iteration
                    state[prefix + name] = copy.deepcopy(chain).eval()()
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            made_of = [f"{name}{end}" for end in ("_orig", "_g", "_v") if f"{name}{end}" in module._parameters]
            if made_of and f"{name}_mask" not in module._buffers:
                state[prefix + name] = vars(module)[name]
                for end in ("_orig", "_g", "_v", "_u"):
                    state.pop(f"{prefix}{name}{end}", None)
    return state
