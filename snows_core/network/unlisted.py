"""Weights that no layer of the graph multiplies by in the open: each gets a row in the report that says why."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from torch import Tensor, fx, nn
from torch.nn import functional as F

from snows_core.network.nodes import module_of, name_of
from snows_core.network.operations import is_addition

_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolution"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layer"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.Bilinear,), "bilinear layer"),
)
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *(kind for kinds, _ in _KINDS for kind in kinds))
_FUNCTIONS = {
    F.conv_transpose1d: "transposed convolution",
    F.conv_transpose2d: "transposed convolution",
    F.conv_transpose3d: "transposed convolution",
    F.embedding: "embedding",
    F.embedding_bag: "embedding",
    F.bilinear: "bilinear layer",
}
_PRODUCTS = {
    "matmul",
    "mm",
    "bmm",
    "einsum",
    "addmm",
    "baddbmm",
    "addbmm",
    "tensordot",
    "chain_matmul",
    "multi_dot",
    "mv",
    "kron",
    "inner",
}
_UNCHANGED = {
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "transpose",
    "permute",
    "squeeze",
    "unsqueeze",
    "expand",
    "expand_as",
    "repeat",
    "tile",
    "t",
    "T",
    "mT",
    "contiguous",
    "to",
    "type_as",
    "float",
    "clone",
    "getitem",
    "narrow",
    "select",
    "chunk",
    "split",
    "unbind",
    "index_select",
    "interpolate",
    "repeat_interleave",
    "broadcast_to",
    "movedim",
    "roll",
    "swapaxes",
    "detach",
    "data",
    "flip",
    "pad",
    "dropout",
    "type",
    "upsample",
    "gather",
}
_JOINED = {"add", "sub", "add_", "sub_", "iadd", "isub", "cat", "concat", "concatenate", "stack", "hstack", "vstack"}
_ADDED = re.compile("bias|pos_|position|token", re.IGNORECASE)
NOT_TRACED = "used inside a module that is not traced"
_UNSEEN = (NOT_TRACED, "used inside a function that is not traced")


class Unlisted(NamedTuple):
    """A weight that is no layer's: its name in reports, its shape, and why it stays dense."""

    name: str
    shape: tuple[int, ...]
    reason: str


def unlisted_weights(graph_module: fx.GraphModule, model: nn.Module, listed: Collection[str]) -> list[Unlisted]:
    """List the matrices and kernels of a model that stand in no layer of its graph.

    Left out are scales and shifts of normalisations, vectors (a scale per channel, a class token), and what is only
    added to or joined with values of the network (position embeddings, bias tables).

    Args:
        graph_module: the traced network.
        model: the caller's network.
        listed: names of the layers in the graph, and of their weights.

    Returns:
        One entry for each, in the order of the model's parameters.
    """
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    found: dict[str, Unlisted] = {}
    for parameter in model.parameters():
        names = aliases[id(parameter)]
        plain = [_plain_name(model, other) for other in names]
        if parameter.ndim < 2 or any(_is_listed(other, listed) for other in plain):
            continue
        path, _, attribute = plain[0].rpartition(".")
        owner = _owner(model, path)
        uses = list(_uses(graph_module, {*names, *plain}))
        reason = _reason(owner, parameter, uses)
        if reason in _UNSEEN and not isinstance(owner, _LAYERS) and _ADDED.search(attribute):
            continue  # nobody sees what becomes of it; by its name, it is added
        if reason:
            row = path if attribute == "weight" and path else plain[0]
            found.setdefault(row, Unlisted(row, tuple(parameter.shape), reason))
    return list(found.values())


def _plain_name(model: nn.Module, name: str) -> str:
    """Return the name of the weight that a stored part of it (a direction, an unmasked weight) belongs to."""
    path, _, attribute = name.rpartition(".")
    if ".parametrizations." in f".{path}.":
        path, _, rest = f".{name}".rpartition(".parametrizations.")
        return f"{path}.{rest.split('.')[0]}".lstrip(".")
    for end in ("_orig", "_v", "_g"):
        base = attribute.removesuffix(end)
        if base != attribute and base in vars(_owner(model, path)):  # a hook computes it from this part
            return f"{path}.{base}" if path else base
    return name


def _owner(model: nn.Module, path: str) -> nn.Module:
    return model.get_submodule(path) if path else model


def _is_listed(name: str, listed: Collection[str]) -> bool:
    path = name.rpartition(".")[0]
    return name in listed or (path in listed and f"{path}.weight" not in listed)  # a layer that computes its weight


def _uses(graph_module: fx.GraphModule, names: Collection[str]) -> Iterator[fx.Node]:
    """Yield the ``get_attr`` and ``call_module`` nodes that bring a parameter into the graph."""
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and node.target in names:
            yield node
        elif node.op == "call_module" and any(name.startswith(f"{node.target}.") for name in names):
            yield node


def _reason(owner: nn.Module, parameter: Tensor, uses: list[fx.Node]) -> str:
    """Say why a weight stays dense; empty for one that is no weight in the sense of pruning."""
    if not isinstance(owner, _LAYERS):
        vector = parameter.numel() == max(parameter.shape, default=0)
        if vector or "norm" in type(owner).__name__.lower():
            return ""
    if not uses:
        return "not used by the forward pass"
    for kinds, reason in _KINDS:
        if isinstance(owner, kinds):
            return reason
    if any(node.op == "call_module" for node in uses):
        return NOT_TRACED
    reasons = [reason for node in uses for reason in _reasons_of(node, set())]
    return next((reason for reason in reasons if reason), "")


def _reasons_of(node: fx.Node, seen: set[fx.Node]) -> Iterator[str]:
    """Yield, for each use of a stored tensor, why it is not a layer; empty where it is only added or joined."""
    for user in node.users:
        if user in seen:
            continue
        seen.add(user)
        name = name_of(user)
        if is_addition(user) or name in _JOINED:
            yield ""
        elif user.op != "output" and name in _UNCHANGED and user.args and _holds(user.args[0], node):
            yield from _reasons_of(user, seen)
        else:
            yield _reason_of_use(user, node, name)


def _holds(argument: object, node: fx.Node) -> bool:
    return argument is node or (isinstance(argument, list | tuple) and node in argument)


def _reason_of_use(user: fx.Node, node: fx.Node, name: str) -> str:
    """Say why the use of a stored tensor makes it no layer; empty where it is no weight in the sense of pruning."""
    if user.target in _FUNCTIONS:
        return _FUNCTIONS[user.target]
    if user.target is operator.matmul or name in _PRODUCTS:
        return f"a matrix used in '{name}', not by a layer"
    if user.target is F.scaled_dot_product_attention:
        return "" if len(user.args) > 3 and user.args[3] is node else "learnt tokens of an attention"
    first = user.args[0] if user.args else None
    module = module_of(user)
    if first is node and (isinstance(module, nn.Module) or user.target is F.linear):
        return "learnt tokens, an input of other layers" if isinstance(module, _LAYERS) or module is None else ""
    if user.target is F.linear or "conv" in name:
        return "its weight is computed, not stored"
    home = (getattr(user.target, "__module__", None) or "torch").partition(".")[0]
    if user.op == "call_function" and home not in ("torch", "_operator", "math", "builtins", "snows_core"):
        return _UNSEEN[1]
    return f"used in '{name}', not as the weight of a layer" if name else ""


def grouped(reasons: Iterable[tuple[str, str]], names: int = 4, length: int = 900) -> str:
    """Put (name, reason) pairs into one readable sentence, by reason.

    Args:
        reasons: layer names with the reason of each.
        names: how many to name for each reason.
        length: cut after about as many characters.

    Returns:
        ``"reason: a, b and 3 more; other reason: c"``.

    >>> grouped([("a", "x"), ("b", "y"), ("c", "x")])
    'x: a, c; y: b'
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons:
        groups.setdefault(reason, []).append(name)
    parts = []
    for reason, members in groups.items():
        more = f" and {len(members) - names} more" if len(members) > names else ""
        parts.append(f"{reason}: {', '.join(members[:names])}{more}")
    text = "; ".join(parts)
    return text if len(text) <= length else f"{text[: text.rfind(';', 0, length)]}; and more"
