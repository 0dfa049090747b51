"""Modules of PyTorch and timm that hide layers, written as the operations that they perform in eval mode.

A module that is one node of a graph keeps its weights to itself: the stacked projection of ``nn.MultiheadAttention``
could neither be pruned nor differentiated. Each function here (and in :mod:`snows_core.network.attention`) computes
what its module's ``forward`` does, in the open.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from torch import nn
from torch.nn import functional as F

from snows_core.network.arguments import called_as
from snows_core.network.attention import attention, multi_head_attention_forward
from snows_core.network.operations import hard_sigmoid
from snows_core.network.timm_layers import is_norm_act


def spelled_out(module: nn.Module) -> Callable[..., Any] | None:
    """Return a function that computes a module's forward in the open, or None where the module itself is traced."""
    if is_norm_act(module):
        return partial(_batch_norm_act, module)
    for kind, function in _MODULES.items():
        if isinstance(module, kind) and type(module).forward is kind.forward and "forward" not in vars(module):
            return called_as(partial(kind.forward, module), partial(function, module))
    return None


def spelled_out_function(function: Any) -> Callable[..., Any] | None:
    """Return a function that computes what ``function`` does in the open, or None."""
    known = function is F.multi_head_attention_forward
    return called_as(function, multi_head_attention_forward) if known else None


def _batch_norm_act(m: Any, x: Any) -> Any:  # m is timm's BatchNormAct2d, a type that only timm has
    return m.act(m.drop(F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)))


def _hard_sigmoid(m: nn.Hardsigmoid, call: SimpleNamespace) -> Any:
    return call.input.tracer.create_proxy("call_function", hard_sigmoid, (call.input,), {"inplace": m.inplace})


def _encoder_layer(m: nn.TransformerEncoderLayer, call: SimpleNamespace) -> Any:
    src, own = call.src, (call.src_mask, call.src_key_padding_mask)
    if m.norm_first:
        src = src + m._sa_block(m.norm1(src), *own, is_causal=call.is_causal)
        return src + m._ff_block(m.norm2(src))
    src = m.norm1(src + m._sa_block(src, *own, is_causal=call.is_causal))
    return m.norm2(src + m._ff_block(src))


def _encoder(m: nn.TransformerEncoder, call: SimpleNamespace) -> Any:
    src = call.src
    for layer in m.layers:
        own = {"src_mask": call.mask, "src_key_padding_mask": call.src_key_padding_mask}
        src = layer(src, **own, is_causal=bool(call.is_causal))
    return src if m.norm is None else m.norm(src)


def _decoder_layer(m: nn.TransformerDecoderLayer, call: SimpleNamespace) -> Any:
    tgt, memory = call.tgt, call.memory
    own = (call.tgt_mask, call.tgt_key_padding_mask, call.tgt_is_causal)
    other = (call.memory_mask, call.memory_key_padding_mask, call.memory_is_causal)
    if m.norm_first:
        tgt = tgt + m._sa_block(m.norm1(tgt), *own)
        tgt = tgt + m._mha_block(m.norm2(tgt), memory, *other)
        return tgt + m._ff_block(m.norm3(tgt))
    tgt = m.norm1(tgt + m._sa_block(tgt, *own))
    tgt = m.norm2(tgt + m._mha_block(tgt, memory, *other))
    return m.norm3(tgt + m._ff_block(tgt))


def _decoder(m: nn.TransformerDecoder, call: SimpleNamespace) -> Any:
    tgt, same = call.tgt, {name: getattr(call, name) for name in _OF_A_DECODER}
    for layer in m.layers:
        tgt = layer(tgt, call.memory, **same, tgt_is_causal=bool(call.tgt_is_causal))
    return tgt if m.norm is None else m.norm(tgt)


def _transformer(m: nn.Transformer, call: SimpleNamespace) -> Any:
    own = {"mask": call.src_mask, "src_key_padding_mask": call.src_key_padding_mask, "is_causal": call.src_is_causal}
    same = {name: getattr(call, name) for name in _OF_A_DECODER}
    return m.decoder(call.tgt, m.encoder(call.src, **own), **same, tgt_is_causal=call.tgt_is_causal)


_OF_A_DECODER = ("tgt_mask", "memory_mask", "tgt_key_padding_mask", "memory_key_padding_mask", "memory_is_causal")
_MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    nn.TransformerEncoderLayer: _encoder_layer,
    nn.TransformerEncoder: _encoder,
    nn.TransformerDecoderLayer: _decoder_layer,
    nn.TransformerDecoder: _decoder,
    nn.Transformer: _transformer,
    nn.Hardsigmoid: _hard_sigmoid,
}
