"""Multi-head attention of PyTorch, written as the operations that it performs in eval mode.

Attention is always mixed by one ``scaled_dot_product_attention``. Attention weights that the module returns beside are
computed on a path of their own, so that what is pruned does not depend on ``need_weights``.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F


def attention(m: nn.MultiheadAttention, call: SimpleNamespace) -> tuple[Any, Any]:
    """Compute ``nn.MultiheadAttention`` for one ``call`` (``is_causal`` only says what ``attn_mask`` is)."""
    batched = _axes(call.query) == 3
    first = 0 if not batched else None if m.batch_first else 1
    query, key, value = _batch_axis_first((call.query, call.key, call.value), first)
    bias = m.in_proj_bias
    if m.in_proj_weight is not None:
        projected = _stacked_projection((query, key, value), m.in_proj_weight, bias, m.embed_dim)
    else:
        weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        projected = _separate_projections((query, key, value), weights, bias)
    q, k, v = _with_extra_tokens(projected, m.bias_k, m.bias_v, m.add_zero_attn)
    mixed, weights = _mix(q, k, v, m.num_heads, call)
    out = m.out_proj(mixed)
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return (out if m.batch_first else out.transpose(0, 1)), weights


def multi_head_attention_forward(call: SimpleNamespace) -> tuple[Any, Any]:
    """Compute ``F.multi_head_attention_forward`` (tokens first, then images), for networks that call it themselves.

    Returns:
        Output and attention weights (None unless ``need_weights``) of the ``call``.

    Raises:
        NotImplementedError: with given keys or values, or dropout at work: then its module cannot be traced.
    """
    if call.static_k is not None or call.static_v is not None or (call.training and call.dropout_p > 0):
        raise NotImplementedError("attention with static keys or values, or with dropout in eval mode")
    batched = _axes(call.query) == 3
    sources = _batch_axis_first((call.query, call.key, call.value), 1 if batched else 0)
    if call.use_separate_proj_weight:
        weights = (call.q_proj_weight, call.k_proj_weight, call.v_proj_weight)
        projected = _separate_projections(sources, weights, call.in_proj_bias)
    else:
        projected = _stacked_projection(sources, call.in_proj_weight, call.in_proj_bias, call.embed_dim_to_check)
    q, k, v = _with_extra_tokens(projected, call.bias_k, call.bias_v, call.add_zero_attn)
    mixed, weights = _mix(q, k, v, call.num_heads, call)
    out = F.linear(mixed, call.out_proj_weight, call.out_proj_bias)
    if not batched:
        return out.squeeze(0), None if weights is None else weights.squeeze(0)
    return out.transpose(0, 1), weights


def _axes(x: Any) -> int:
    """Return the number of axes of a symbolic value; where nothing is known of it, three (images, tokens, width)."""
    axes = x.dim()
    return axes if type(axes) is int else 3


def _batch_axis_first(sources: Sequence[Any], axis: int | None) -> list[Any]:
    """Return tokens as (N, T, E) from (T, N, E) (axis 1), (T, E) (axis 0) or as they are; one for equal sources."""
    change = {None: lambda x: x, 0: lambda x: x.unsqueeze(0), 1: lambda x: x.transpose(0, 1)}[axis]
    moved = {key: change(source) for key, source in _distinct(sources).items()}
    return [moved[_identity(source)] for source in sources]


def _identity(source: Any) -> Any:
    return source.node if issubclass(type(source), fx.Proxy) else id(source)


def _distinct(sources: Sequence[Any]) -> dict[Any, Any]:
    return {_identity(source): source for source in sources}


def _stacked_projection(sources: Sequence[Any], weight: Any, bias: Any, width: int) -> list[Any]:
    """Project query, key and value by one stacked weight (3 E, E): one layer, whatever they are.

    Different sources are put one behind the other along the tokens, and of each source's part the third that is asked
    for is cut out.

    Returns:
        Queries, keys and values, (N, T, E) each.
    """
    distinct = list(_distinct(sources).values())  # (N, T_i, E) each
    if len(distinct) == 1:
        thirds = F.linear(distinct[0], weight, bias).chunk(3, -1)  # three of (N, T, E)
        return [thirds[i] for i in range(3)]
    lengths = [source.shape[1] for source in distinct]
    parts = F.linear(torch.cat(distinct, 1), weight, bias).split(lengths, 1)  # (N, T_i, 3 E) each
    place = {_identity(source): i for i, source in enumerate(distinct)}
    return [parts[place[_identity(source)]].narrow(-1, i * width, width) for i, source in enumerate(sources)]


def _separate_projections(sources: Sequence[Any], weights: tuple[Any, ...], bias: Any) -> list[Any]:
    """Project query, key and value by a weight of its own each, (N, T, E) to (N, T, E)."""
    biases = [None] * 3 if bias is None else [bias.chunk(3)[i] for i in range(3)]
    return [F.linear(x, weight, b) for x, weight, b in zip(sources, weights, biases, strict=True)]


def _with_extra_tokens(projected: Sequence[Any], bias_k: Any, bias_v: Any, add_zero: bool) -> tuple[Any, Any, Any]:
    """Append the learnt token (1, 1, E) and the zero token that some attentions add to keys and values."""
    q, k, v = projected  # (N, T, E), (N, S, E), (N, S, E)
    if bias_k is not None:
        k = torch.cat([k, bias_k.expand_as(k[:, :1])], 1)
        v = torch.cat([v, bias_v.expand_as(v[:, :1])], 1)
    if add_zero:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
    return q, k, v


def _mix(q: Any, k: Any, v: Any, heads: int, call: SimpleNamespace) -> tuple[Any, Any]:
    """Mix values by attention: (N, T, E) each; returns (N, T, E), and weights (N, T, S) or (N, H, T, S) or None."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # (N, H, T, d), (N, H, S, d) twice
    mask: tuple[Any, ...] = ()
    if call.attn_mask is not None or call.key_padding_mask is not None:
        given = (call.attn_mask, call.key_padding_mask, q, k)
        mask = (q.tracer.create_proxy("call_function", merged_mask, given, {}),)
    mixed = F.scaled_dot_product_attention(q, k, v, *mask).transpose(1, 2).flatten(2)  # (N, T, E)
    if not call.need_weights:
        return mixed, None
    scores = q.tracer.create_proxy("call_function", attention_scores, (q, k, *mask), {})  # (N, H, T, S)
    weights = scores.softmax(-1)
    return mixed, weights.mean(1) if call.average_attn_weights else weights


def attention_scores(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the scaled products of queries (N, H, T, d) and keys (N, H, S, d), plus an additive mask: (N, H, T, S)."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return scores if mask is None else scores + mask


def merged_mask(attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor:
    """Put the two masks of ``nn.MultiheadAttention`` together.

    Args:
        attn_mask: (T, S) or (N * H, T, S); bool (true where attention is forbidden) or numbers to be added.
        key_padding_mask: (N, S), or (S,) without images; likewise.
        q: queries (N, H, T, d).
        k: keys (N, H, S', d); S' - S extra tokens at the end are always seen.

    Returns:
        Numbers to be added to the scores, of a shape that broadcasts to (N, H, T, S').
    """
    images, heads, tokens, _ = q.shape
    total = q.new_zeros(1)
    if attn_mask is not None:
        mask = _additive(attn_mask, q)
        mask = mask.reshape(images, heads, tokens, -1) if mask.ndim == 3 else mask
        total = F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
    if key_padding_mask is not None:
        mask = _additive(key_padding_mask, q)
        mask = mask.reshape(-1, 1, 1, mask.shape[-1])  # (N, 1, 1, S)
        total = total + F.pad(mask, (0, k.shape[2] - mask.shape[-1]))
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask as numbers to be added to the scores: minus infinity where attention is forbidden."""
    if mask.dtype == torch.bool:
        return like.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)
