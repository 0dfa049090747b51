"""Turn any eval-mode vision network into a torch.fx graph that can be cut, re-run in parts and differentiated twice.

The graph is taken from a private copy of the model, so nothing of the caller's is changed. Three rewrites make it fit
for the solver: in-place operations become ordinary ones (a live value must not change under us, :mod:`aliases
<snows_core.network.aliases>`), modules that hide layers are written as the operations that they perform
(:mod:`spelled_out
<snows_core.network.spelled_out>`), and what cannot be traced becomes one node, its layers left dense.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import traceback
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from snows_core.errors import SnowsError, invalid_argument
from snows_core.network.aliases import out_of_place
from snows_core.network.check_model import LAYERS, check_leaves, check_model
from snows_core.network.copies import compute_dtype, in_full_precision, plain_copy, remembered, unwrap
from snows_core.network.example import run_on_example
from snows_core.network.sharing import CannotRewrite
from snows_core.network.traced_module import TracedModule
from snows_core.network.tracer import Tracer

LeafModules = Iterable[type[nn.Module] | str]
_NOT_THE_USERS = tuple(f"{Path(file).parent}{os.sep}" for file in (torch.__file__, __file__))


def trace(
    model: nn.Module,
    leaf_modules: LeafModules | type[nn.Module] | str = (),
    example: Tensor | None = None,
) -> fx.GraphModule:
    """Trace a network in eval mode into a graph of out-of-place operations over a private copy of its weights.

    Half-precision weights become single precision in the copy. A module that cannot be traced becomes one node of the
    graph, with a warning where it holds layers; ``graph_module.meta["opaque"]`` maps its name to where it fails.

    Args:
        model: network with one image input, in eval mode.
        leaf_modules: modules not to look into: classes, qualified names, or globs of names. Their weights stay dense.
        example: a few images; what the forward pass asks of shapes and types is answered with them.

    Returns:
        A GraphModule with the same parameter names as ``model`` (inside of compiled and data-parallel wrappers, and
        with plain names for weights masked by ``torch.nn.utils.prune``) for all that the forward pass uses.

    Raises:
        SnowsError: when the model is in train mode, of a kind that cannot be traced (scripted, quantised, with lazy
            parameters, of several inputs), has weights that are not finite, or its outermost forward pass cannot be
            traced: the message says what to do.
    """
    if not isinstance(model, nn.Module):
        raise invalid_argument(
            "model", type(model).__name__, "a torch.nn.Module", "Pass the network itself, not its name."
        )
    model = unwrap(model)
    check_model(model)
    leaves = [leaf_modules] if isinstance(leaf_modules, str | type) else list(leaf_modules)
    check_leaves(model, leaves)
    with torch.inference_mode(False), torch.no_grad():
        twin = _of_one_image(in_full_precision(plain_copy(model)).requires_grad_(False))
        if example is not None:
            example = example.detach().to(compute_dtype(twin))
        graph_module, opaque = _trace_around(twin, leaves, example)
    graph_module.meta["opaque"] = opaque
    _warn_of_hidden_layers(twin, opaque)
    return graph_module


def _trace_around(twin: nn.Module, leaves: list[Any], example: Tensor | None) -> tuple[fx.GraphModule, dict[str, str]]:
    """Trace, turning into leaves the modules that cannot be traced or whose in-place work cannot be taken out."""
    holds_all = _holder_of_all_layers(twin)
    written: dict[str, str] = {}
    restore = remembered(twin)
    while True:
        restore()
        tracer = Tracer([*leaves, *written], holds_all, example)
        try:
            graph_module = _traced_by(tracer, twin, example)
            return graph_module, {path: _where(error) for path, error in tracer.refused.items()} | written
        except CannotRewrite as error:
            path = _innermost(error.node, twin, holds_all, written)
            if path is None:
                raise _cannot_be_traced(twin, "", f"node '{error.node.name}' of its graph", error) from error
            written[path] = str(error)
        finally:
            tracer.let_go()


def _traced_by(tracer: Tracer, twin: nn.Module, example: Tensor | None) -> TracedModule:
    """Trace once, and take in-place work out."""
    try:
        graph = tracer.trace(twin)
    except Exception as error:
        _check_images(twin, example)
        raise _cannot_be_traced(twin, tracer.path, _where(error), error) from error
    _open_outputs(graph)
    if tracer.refused:
        _check_images(twin, example)
    graph_module = TracedModule(twin, graph)
    graph_module.eval()
    out_of_place(graph_module, tracer.shapes)
    return graph_module


def _open_outputs(graph: fx.Graph) -> None:
    """Let a graph return the fields of data classes and named tuples as dictionaries and tuples of its values."""

    def opened(node: fx.Node) -> Any:
        if dataclasses.is_dataclass(node.target):
            return {name: fx.map_arg(value, opened) for name, value in node.kwargs.items()}
        return tuple(fx.map_arg(node.args, opened)) if hasattr(node.target, "_fields") else node

    output = next(iter(reversed(graph.nodes)))
    output.args = (fx.map_arg(output.args[0], opened),)


def _check_images(model: nn.Module, example: Tensor | None) -> None:
    """Refuse images that the model itself refuses, before anything is said about its forward."""
    if example is not None:
        run_on_example(model, example.clone())


def _innermost(node: fx.Node, twin: nn.Module, holds_all: Callable[[nn.Module], bool], known: Any) -> str | None:
    """Return the innermost module around a node that may become a leaf, or None."""
    for path, _ in reversed(list(node.meta.get("nn_module_stack", {}).values())):
        if path and path not in known and not holds_all(twin.get_submodule(path)):
            return path
    return None


def _holder_of_all_layers(model: nn.Module) -> Callable[[nn.Module], bool]:
    """Return the test whether a module holds all layers of a model (all matrices where it has no layer modules)."""
    layers = [module for module in model.modules() if isinstance(module, LAYERS)]
    weights = [p for layer in layers for p in layer.parameters() if p.ndim > 1]
    wanted = {id(p) for p in weights or model.parameters()}
    return lambda module: wanted <= {id(p) for p in module.parameters()}


def _warn_of_hidden_layers(model: nn.Module, opaque: dict[str, str]) -> None:
    """Say which modules are one node of the graph though they hold layers: those stay dense."""
    said = []
    for path, where in opaque.items():
        module = model.get_submodule(path)
        layers = sum(isinstance(inner, LAYERS) for inner in module.modules())
        count = layers or sum(p.ndim > 1 for p in module.parameters())  # of a scripted module only the weights are seen
        if count:
            said.append(f"'{path}' ({type(module).__name__}, {count} layer{'s' if count > 1 else ''}; {where})")
    if said:
        more = f" and {len(said) - 3} more" if len(said) > 3 else ""
        warnings.warn(
            f"model: modules that cannot be traced keep their layers dense: {', '.join(said[:3])}{more}", stacklevel=4
        )


def _cannot_be_traced(twin: nn.Module, path: str, where: str, error: Exception) -> SnowsError:
    """Build the error for a network whose forward cannot be recorded, with the line at fault and the way out."""
    kind = type(twin.get_submodule(path)).__name__
    module = f"module '{path}' ({kind}), which holds all of its layers," if path else f"the forward of {kind}"
    reason = str(error).splitlines()[0] if str(error) else "no message"
    return SnowsError(
        f"model: {module} cannot be traced at {where} ({type(error).__name__}: {reason}). Move that line out of this "
        f"forward: into a submodule without layers (which then stays as it is), or into a wrapper around the network "
        f"that prepares the images before and reads the outputs after; then prune the network inside."
    )


def _where(error: BaseException) -> str:
    """Name the last source line outside of PyTorch and this package on the way to an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_USERS)]
    if not frames:
        return "inside torch"
    last = frames[-1]
    return f"{'/'.join(Path(last.filename).parts[-3:])}, line {last.lineno}: {last.line}"


def _of_one_image(network: nn.Module) -> nn.Module:
    """Give a network a method that calls it with the image alone: optional extras at their defaults, hooks included."""
    call = nn.Module._call_impl

    def traced(self: nn.Module, image: Any) -> Any:
        return call(self, image)

    # In the namespace of the network's own forward: torch.fx looks there for functions that are to be one node.
    namespace = getattr(inspect.unwrap(network.forward), "__globals__", globals())
    method = types.FunctionType(traced.__code__, namespace, traced.__name__, None, traced.__closure__)
    network.__class__ = type(type(network).__name__, (type(network),), {Tracer.traced_func_name: method})
    return network
