"""Attention heads as units: rows of queries, keys and values, and the columns of the projection behind them.

The heads of a module are known where its class is: the forward pass of timm's ``Attention`` and ``WindowAttention``
reads the number of heads from the module, so that a module with fewer heads is one of the same class. PyTorch's
``nn.MultiheadAttention`` asks for heads that fill its whole width together, and so cannot have fewer.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows_core.network.channel_moves import layer_moves
from snows_core.network.constants import Constants
from snows_core.network.graph import Layer, Network
from snows_core.network.nodes import first_input
from snows_core.network.timm_layers import is_attention
from snows_core.network.unit_group import Reading, UnitGroup, UnitPart

BIAS_TABLE = "relative_position_bias_table"  # (positions, heads), of Swin


@dataclass(frozen=True)
class Attention:
    """An attention module whose heads are known.

    Attributes:
        path: its name.
        module: in the model itself.
        qkv: the layer of queries, keys and values, in this order.
        proj: the layer that reads all heads.
    """

    path: str
    module: Any
    qkv: Layer
    proj: Layer

    @property
    def places(self) -> Tensor:
        """The places of each head in what the projection reads, (heads, width)."""
        heads = int(self.module.num_heads)
        return torch.arange(self.module.qkv.out_features // 3).view(heads, -1)

    @property
    def source(self) -> fx.Node:
        """The value that the projection reads."""
        return first_input(self.proj.node)

    def constant(self) -> Tensor:
        """Return which places of that value are constant: those whose rows of values are zero, (heads * width,).

        The weights of a softmax add up to one, so that each token then gets the bias.
        """
        values = self.module.qkv.weight.detach().chunk(3)[2]
        return ~values.any(1).cpu()

    def why_not(self) -> str:
        """Say why no head can be taken out; empty where one can."""
        module = self.module
        if "forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks:
            return "it has hooks, or a forward pass of its own"
        if getattr(module, "gate", None) is not None or not isinstance(getattr(module, "norm", None), _NO_NORM):
            return "a gate or a normalisation reads all heads together"
        if not hasattr(module, BIAS_TABLE) and not hasattr(module, "attn_dim"):
            return "this version of timm has no attention with fewer heads of the same width"
        if layer_moves(self.qkv.node) is None or layer_moves(self.proj.node) is None:
            return "its layers do more than their classes"
        return ""


_NO_NORM = (nn.Identity, type(None))


def attentions(network: Network, model: nn.Module) -> list[Attention]:
    """Return the attention modules of a network whose heads are known.

    Args:
        network: the traced network.
        model: the model that it was traced from.
    """
    layers = {layer.name: layer for layer in network.layers}
    return [
        Attention(path, module, layers[f"{path}.qkv"], layers[f"{path}.proj"])
        for path, module in model.named_modules()
        if is_attention(module) and {f"{path}.qkv", f"{path}.proj"} <= layers.keys()
    ]


def head_groups(network: Network, model: nn.Module, constants: Constants, readers: Counter[str]) -> list[UnitGroup]:
    """Return the heads of all attention modules of a network.

    Args:
        network: the traced network.
        model: the model that it was traced from.
        constants: of its values, what the projections read among them.
        readers: how many nodes read each parameter.
    """
    found = [_group(one, constants, readers) for one in attentions(network, model)]
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and module.num_heads > 1:
            why = "nn.MultiheadAttention has no form with fewer heads of the same width"
            found.append(UnitGroup(path, "heads", module.num_heads, (), (), (), why))
    return found


def _group(one: Attention, constants: Constants, readers: Counter[str]) -> UnitGroup:
    places = one.places
    heads, width = places.shape
    if heads < 2:
        why = "there is one head"
    else:
        why = one.why_not() or _shared(one, readers)
    if why:
        return UnitGroup(one.path, "heads", heads, (one.qkv,), (), (), why)
    rows = torch.cat([places + part * heads * width for part in range(3)], dim=1)  # (heads, 3 * width)
    parts = [UnitPart(one.qkv.weight_name, 0, rows)]
    if one.module.qkv.bias is not None:
        parts.append(UnitPart(f"{one.path}.qkv.bias", 0, rows))
    if hasattr(one.module, BIAS_TABLE):
        parts.append(UnitPart(f"{one.path}.{BIAS_TABLE}", 1, torch.arange(heads)[:, None]))
    reading = Reading(one.proj, UnitPart(one.proj.weight_name, 1, places), *constants.of(one.source, places))
    return UnitGroup(one.path, "heads", heads, (one.qkv,), tuple(parts), (reading,))


def _shared(one: Attention, readers: Counter[str]) -> str:
    names = (one.qkv.weight_name, one.proj.weight_name)
    return next((f"'{name}' is used more than once" for name in names if readers[name] > 1), "")
