"""Turn any eval-mode vision network into a torch.fx graph that can be cut, re-run in parts and differentiated twice.

The graph is taken from a private copy of the model, so nothing of the caller's is changed. Three rewrites make it fit
for the solver: in-place operations become ordinary ones (a live value must not change under us), self-attention of
``nn.MultiheadAttention`` is spelled out (its stacked projection can then be pruned and differentiated), and timm's
fused norm-activation layer is split into its two operations.
"""

from __future__ import annotations

import fnmatch
import inspect
import operator
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision import ops as vision_ops

from snows_core.copies import in_full_precision, plain_copy, unwrap
from snows_core.errors import SnowsError, bad, closest
from snows_core.operations import hard_sigmoid

_IN_PLACE_OPERATORS = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


class _Proxy(fx.Proxy):
    """A traced value that records ``x += y`` as the in-place operation it is (torch.fx would record ``x + y``)."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})

    def __itruediv__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.itruediv, (self, other), {})


class _Tracer(fx.Tracer):
    """fx tracer that knows leaf modules, spells out self-attention and remembers where it is."""

    def __init__(self, leaves: Sequence[type[nn.Module] | str]) -> None:
        wrapped = [function for function in get_notrace_functions() if callable(function)]
        super().__init__(autowrap_functions=tuple(wrapped))
        self.leaf_types = tuple(leaf for leaf in leaves if not isinstance(leaf, str)) + tuple(get_notrace_modules())
        self.leaf_names = [leaf for leaf in leaves if isinstance(leaf, str)]
        self.path = ""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self.leaf_types) or type(m).__module__.startswith(vision_ops.__name__ + ".roi"):
            return True
        if any(fnmatch.fnmatchcase(module_qualified_name, name) for name in self.leaf_names):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        outer, self.path = self.path, self.path_of_module(m)
        if isinstance(m, nn.MultiheadAttention) and _is_plain_self_attention(m, args, kwargs):
            result = _spelled_out_attention(m, args[0] if args else kwargs["query"])
        elif isinstance(m, nn.Hardsigmoid):
            result = self.create_proxy("call_function", hard_sigmoid, args, {**kwargs, "inplace": m.inplace})
        elif type(m) is BatchNormAct2d:
            result = m.act(m.drop(_batch_norm(m, args[0])))
        else:
            result = super().call_module(m, forward, args, kwargs)
        self.path = outer  # on an error the innermost path stays: the message names it
        return result


def _batch_norm(m: BatchNormAct2d, x: fx.Proxy) -> Any:
    return F.batch_norm(x, m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps)


def _is_plain_self_attention(m: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    q, k, v = (list(args) + [kwargs.get(name) for name in ("query", "key", "value")[len(args) :]])[:3]
    extras = [*args[3:], *(kwargs.get(name) for name in ("key_padding_mask", "attn_mask"))]
    return (
        q is k
        and k is v
        and m.in_proj_weight is not None
        and m.bias_k is None
        and not m.add_zero_attn
        and all(extra is None for extra in extras)
        and kwargs.get("need_weights", True) is False
    )


def _spelled_out_attention(m: nn.MultiheadAttention, x: fx.Proxy) -> tuple[Any, None]:
    """Compute self-attention by the operations that ``nn.MultiheadAttention`` performs inside, weights not returned."""
    if not m.batch_first:
        x = x.transpose(0, 1)
    stacked = F.linear(x, m.in_proj_weight, m.in_proj_bias)
    q, k, v = (part.unflatten(-1, (m.num_heads, m.head_dim)).transpose(1, 2) for part in _thirds(stacked))
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    out = m.out_proj(mixed)
    return (out if m.batch_first else out.transpose(0, 1)), None


def _thirds(stacked: fx.Proxy) -> list[Any]:
    parts = stacked.chunk(3, -1)
    return [parts[i] for i in range(3)]


def _out_of_place(graph_module: fx.GraphModule) -> None:
    """Replace in-place operators, functions, methods and module flags by their ordinary forms.

    What an in-place operation wrote over is read changed by everything after it, so later uses of its input are led
    to its result: the graph computes what the network computes, without writing over anything.
    """
    modules = dict(graph_module.named_modules())
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in _IN_PLACE_OPERATORS:
            if not _is_size(node.args[0]):
                _redirect_later_uses(node)
            node.target = _IN_PLACE_OPERATORS[node.target]
        elif node.op == "call_function" and (ordinary := _ordinary_form(node.target)) is not None:
            _redirect_later_uses(node)
            node.target = ordinary
        elif node.op == "call_method" and node.target.endswith("_") and hasattr(torch.Tensor, node.target[:-1]):
            _redirect_later_uses(node)
            node.target = node.target[:-1]
        elif node.op == "call_module" and getattr(modules[node.target], "inplace", False) is True:
            _redirect_later_uses(node)
        elif node.kwargs.get("inplace") is True:
            _redirect_later_uses(node)
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.target is F.hardsigmoid:
            node.target = hard_sigmoid
    for module in modules.values():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    graph_module.recompile()


def _ordinary_form(function: Any) -> Callable[..., Any] | None:
    """Return the out-of-place twin of an in-place function such as ``torch.relu_``; None for any other function."""
    name = getattr(function, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    for home in (torch, F):
        if getattr(home, name, None) is function:
            return getattr(home, name[:-1], None)
    return None


def _is_size(argument: Any) -> bool:
    """Tell whether a graph value is (part of) a shape: adding to it in place binds a name and changes no tensor."""
    while isinstance(argument, fx.Node) and argument.target in (operator.getitem, operator.floordiv, operator.mul):
        argument = argument.args[0]
    return not isinstance(argument, fx.Node) or argument.target in (getattr, "size")


def _redirect_later_uses(node: fx.Node) -> None:
    changed, past = node.args[0], False
    if not isinstance(changed, fx.Node):
        return
    for other in node.graph.nodes:
        if past:
            other.replace_input_with(changed, node)
        past = past or other is node


def _where(error: BaseException) -> str:
    """Name the last source line outside torch.fx on the way to an error."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/torch/" not in frame.filename.replace("\\", "/") and not frame.filename.endswith("snows_core/trace.py")
    ]
    if not frames:
        return "inside torch"
    last = frames[-1]
    return f"{'/'.join(last.filename.replace(chr(92), '/').split('/')[-3:])}, line {last.lineno}: {last.line}"


def _with_one_input(network: nn.Module) -> nn.Module:
    """Give a network whose forward has optional extras (masks, flags) a forward of the image alone."""
    forward = type(network).forward
    if len(inspect.signature(forward).parameters) > 2:

        def forward_of_image(self: nn.Module, x: Any) -> Any:
            return forward(self, x)

        network.__class__ = type(type(network).__name__, (type(network),), {"forward": forward_of_image})
    return network


def trace(
    model: nn.Module, leaf_modules: Iterable[type[nn.Module] | str] = (), example: Tensor | None = None
) -> fx.GraphModule:
    """Trace a network in eval mode into a graph of out-of-place operations over a private copy of its weights.

    Args:
        model: network with one image input, in eval mode.
        leaf_modules: modules not to look into: classes, qualified names, or globs of names. Their weights stay dense.
        example: a few images; what the forward pass asks of shapes and types is answered with them.

    Returns:
        A GraphModule with the same parameter names as ``model`` for all that the forward pass uses.

    Raises:
        SnowsError: when the model is in train mode or its forward pass cannot be traced; the message names the module,
            the source line and the ways out.
    """
    if not isinstance(model, nn.Module):
        raise bad("model", type(model).__name__, "a torch.nn.Module", "Pass the network itself, not its name.")
    model = unwrap(model)
    if model.training:
        raise bad("model", "a model in train mode", "a model in eval mode", "Call model.eval() first.")
    for name, module in model.named_modules():
        if module.training:
            raise bad("model", f"a part in train mode ('{name}')", "a model in eval mode", "Call model.eval() first.")
    leaf_modules = [leaf_modules] if isinstance(leaf_modules, str | type) else list(leaf_modules)
    names = [name for name, _ in model.named_modules() if name]
    for leaf in leaf_modules:
        if isinstance(leaf, str) and not fnmatch.filter(names, leaf):
            raise bad("leaf_modules", repr(leaf), "names or globs of this model's modules", closest(leaf, names))
    twin = _with_one_input(in_full_precision(plain_copy(model)).requires_grad_(False))
    tracer = _Tracer(leaf_modules)
    try:
        graph = tracer.trace(twin)
    except Exception as error:
        path = tracer.path or "the model's own forward"
        kind = type(twin.get_submodule(tracer.path)).__name__
        raise SnowsError(
            f"model: torch.fx cannot trace module '{path}' ({kind}) at {_where(error)} "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). "
            f"Mark it as a leaf, leaf_modules=['{path}'] or leaf_modules=[{kind}] (its weights then stay dense), "
            f"or register it with timm.layers.register_notrace_module."
        ) from error
    graph_module = fx.GraphModule(twin, graph)
    graph_module.eval()
    _out_of_place(graph_module)
    return graph_module
