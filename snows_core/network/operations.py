"""Which nodes of a traced network are operations that K counts, and which of them carry a prunable weight."""

from __future__ import annotations

import operator
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.nodes import attribute_at, module_of, path_of


class Kind(Enum):
    """What an operation is; the value is the word a report shows."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    ACTIVATION = "activation"
    ATTENTION = "attention"
    NORMALISATION = "normalisation"


def hard_sigmoid(x: Tensor, inplace: bool = False) -> Tensor:
    """Compute ``min(max(x + 3, 0), 6) / 6`` by operations that have a second derivative (torch's own has none)."""
    return F.relu6(x + 3.0) / 6.0


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm)
_SOFTMAX = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)
_ACTIVATION_FUNCTIONS = {
    getattr(module, name)
    for module in (F, torch)
    for name in (
        "relu",
        "relu_",
        "relu6",
        "gelu",
        "silu",
        "mish",
        "elu",
        "selu",
        "celu",
        "leaky_relu",
        "prelu",
        "hardswish",
        "hardsigmoid",
        "hardtanh",
        "softplus",
        "sigmoid",
        "tanh",
        "logsigmoid",
        "softsign",
        "tanhshrink",
        "glu",
    )
    if hasattr(module, name)
} | {hard_sigmoid}
_ACTIVATION_METHODS = {"relu", "sigmoid", "tanh"}
_NORM_FUNCTIONS = {F.layer_norm, F.group_norm, F.rms_norm, F.instance_norm}
CONVOLUTION_FUNCTIONS = {F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}
_PRODUCTS = {operator.matmul, torch.matmul, torch.bmm}
_OTHER_LAYERS = (
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.Bilinear,
    nn.MultiheadAttention,
)
_OTHER_LAYER_FUNCTIONS = {
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.bilinear,
    F.multi_head_attention_forward,
}
_TRANSPARENT = {"contiguous", "to", "type_as", "float", "clone"}


def is_batch_norm(node: fx.Node) -> bool:
    """Tell whether a node is a batch normalisation (module or function)."""
    return isinstance(module_of(node), _BATCH_NORMS) or node.target in (F.batch_norm, torch.batch_norm)


def batch_norm_arguments(node: fx.Node) -> dict[str, Any]:
    """Return the named arguments of a batch norm: tensors, graph nodes or None, and the flags training and eps."""
    module = module_of(node)
    if module is not None:
        names = ("running_mean", "running_var", "weight", "bias", "eps")
        return {"training": False} | {name: getattr(module, name) for name in names}
    places = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    defaults = {"weight": None, "bias": None, "training": False, "eps": 1e-5}
    return {**defaults, **dict(zip(places, node.args, strict=False)), **node.kwargs}


def uses_batch_statistics(node: fx.Node) -> bool:
    """Tell whether a batch norm divides by the spread of the batch itself, also in eval mode."""
    given = batch_norm_arguments(node)
    return bool(given["training"]) or given["running_mean"] is None or given["running_var"] is None


def kind_of(node: fx.Node) -> Kind | None:
    """Classify a node of a traced network; None for what K does not count (additions, pooling, reshaping, ...).

    Batch norm right behind a convolution or linear layer is part of it in eval mode and not counted; elsewhere
    (DenseNet, pre-activation networks) it is a normalisation of its own.

    Returns:
        The kind, or None.
    """
    module = module_of(node)
    if module is not None:
        return _kind_of_module(node, module)
    if node.op == "call_method":
        if node.target in _ACTIVATION_METHODS:
            return Kind.ACTIVATION
        return Kind.ATTENTION if node.target in ("matmul", "bmm") and _follows_softmax(node) else None
    if node.op != "call_function":
        return None
    if node.target is F.linear:
        return Kind.LINEAR
    if node.target in CONVOLUTION_FUNCTIONS:
        return Kind.CONVOLUTION
    if node.target in _ACTIVATION_FUNCTIONS:
        return Kind.ACTIVATION
    if node.target is F.scaled_dot_product_attention:
        return Kind.ATTENTION
    if node.target in _PRODUCTS and _follows_softmax(node):
        return Kind.ATTENTION
    if node.target in _NORM_FUNCTIONS or (is_batch_norm(node) and not _is_merged(node)):
        return Kind.NORMALISATION
    return None


def _kind_of_module(node: fx.Node, module: nn.Module) -> Kind | None:
    """Classify a module by its class, and an activation by where its class comes from."""
    home = type(module).__module__
    if isinstance(module, CONVOLUTIONS):
        return Kind.CONVOLUTION
    if isinstance(module, nn.Linear):
        return Kind.LINEAR
    if isinstance(module, nn.MultiheadAttention):
        return Kind.ATTENTION
    if isinstance(module, _NORMS) or (isinstance(module, _BATCH_NORMS) and not _is_merged(node)):
        return Kind.NORMALISATION
    if isinstance(module, _SOFTMAX):
        return None
    if home == "torch.nn.modules.activation" or home.startswith("timm.layers.activations"):
        return Kind.ACTIVATION
    return None


def _is_merged(batch_norm: fx.Node) -> bool:
    source = batch_norm.args[0]
    return isinstance(source, fx.Node) and kind_of(source) in (Kind.CONVOLUTION, Kind.LINEAR)


def _follows_softmax(product: fx.Node) -> bool:
    """Tell whether a matrix product mixes values by attention weights: its first factor is a softmax."""
    node = product.args[0]
    while isinstance(node, fx.Node):
        module = module_of(node)
        if isinstance(module, _SOFTMAX) or node.target in ("softmax", F.softmax, torch.softmax):
            return True
        if isinstance(module, nn.Dropout | nn.Identity) or node.target in _TRANSPARENT or node.target is F.dropout:
            node = node.args[0]
            continue
        return False
    return False


def is_addition(node: fx.Node) -> bool:
    """Tell whether a node adds two values of the graph (a residual connection, among others)."""
    named = node.target in (operator.add, torch.add) or (node.op == "call_method" and node.target == "add")
    return named and len(node.args) >= 2 and all(isinstance(source, fx.Node) for source in node.args[:2])


def summands(addition: fx.Node) -> tuple[fx.Node, ...]:
    """Return the two values of the graph that an addition (see :func:`is_addition`) adds."""
    return tuple(source for source in addition.args[:2] if isinstance(source, fx.Node))


def tap_of(node: fx.Node) -> fx.Node:
    """Return the node at whose output an operation is observed: behind its merged batch norm, if there is one."""
    users = list(node.users)
    if kind_of(node) in (Kind.CONVOLUTION, Kind.LINEAR) and len(users) == 1 and is_batch_norm(users[0]):
        return users[0]
    return node


def weight_of(node: fx.Node) -> str | None:
    """Return the qualified name of the parameter that a convolution or linear node multiplies by, if it is one.

    None when the weight is computed (re-parametrised, generated) instead of stored.
    """
    module = module_of(node)
    if isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return f"{node.target}.weight" if isinstance(module._parameters.get("weight"), nn.Parameter) else None
    source = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    owner = node.graph.owning_module
    if isinstance(source, fx.Node) and source.op == "get_attr" and owner is not None:
        path = path_of(source)
        return path if isinstance(attribute_at(owner, path), nn.Parameter) else None  # a buffer is no weight
    return None


def is_some_layer(node: fx.Node) -> bool:
    """Tell whether a node multiplies by weights or mixes tokens, also where it cannot be pruned or looked into."""
    if kind_of(node) in (Kind.CONVOLUTION, Kind.LINEAR, Kind.ATTENTION) or node.target in _OTHER_LAYER_FUNCTIONS:
        return True
    module = module_of(node)
    if module is not None:
        opaque = not type(module).__module__.startswith("torch.nn")
        return isinstance(module, _OTHER_LAYERS) or (opaque and any(p.ndim > 1 for p in module.parameters()))
    if node.target in _PRODUCTS or node.target in ("matmul", "bmm"):
        return any(source.op == "get_attr" for source in node.all_input_nodes)
    return False
