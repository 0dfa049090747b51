"""Does the graph compute what the model computes, on a few images, and with numbers that can be worked with?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from snows_core.errors import SnowsError, invalid_argument
from snows_core.network.copies import LOW_PRECISION, compute_dtype, in_full_precision, plain_copy, unwrap
from snows_core.network.determinism import refused_kernel
from snows_core.network.example import run_on_example
from snows_core.network.graph import Layer, Network, Values
from snows_core.network.nodes import called_module, first_input


class Example(NamedTuple):
    """What a layer read and gave on a few images, and what it gives with its weight set to zero (its bias)."""

    x: Tensor
    y: Tensor
    offset: Tensor | None


def check_trace(network: Network, model: nn.Module, example: Tensor) -> dict[str, Example]:
    """Run model and graph on an example, compare them, and return each layer's input and output.

    Half-precision models are compared in single precision. Leaf modules that pass no gradient on are noted in
    ``network.undifferentiable``.

    Args:
        network: the traced model.
        model: the model itself, not changed.
        example: a few images, not changed.

    Returns:
        Layer name to what it did on the example.

    Raises:
        SnowsError: when the images do not fit the model, when a layer's input or output is not finite or so large that
            squares of it would not be, or when the graph does not compute what the model does.
    """
    model, dtype = unwrap(model), compute_dtype(network.module)
    if any(parameter.dtype in LOW_PRECISION for parameter in model.parameters()):
        model = in_full_precision(plain_copy(model))
    if example.dtype in LOW_PRECISION:
        example = example.to(dtype)
    with torch.inference_mode(False), torch.compiler.set_stance("force_eager"), without_fast_path():
        expected = run_on_example(model, example.detach().clone())  # a model may write into its input
        values: Values = {network.image: example.detach().clone()}
        with torch.no_grad():
            seen = _run(network, values, dtype)
        outputs = fx.map_arg(network.output, lambda node: values[node] if node in values else network.constant(node))
    _compare(list(tensors_in(expected)), list(tensors_in(outputs)), dtype)
    return seen


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Switch PyTorch's fast path of transformers off: in eval mode it takes masks of numbers for bool ones."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _run(network: Network, values: Values, dtype: torch.dtype) -> dict[str, Example]:
    """Run the graph, ``values`` becoming its outputs, and look at every layer on the way."""
    seen: dict[str, Example] = {}
    by_node = {layer.node: layer for layer in network.layers}
    for node in network.nodes[1:]:
        network.run((node,), values)
        if node in by_node:
            layer = by_node[node]
            seen[layer.name] = _observe(network, layer, values)
            _check_size(network, layer, seen[layer.name], dtype)
        elif node.op == "call_module" and not type(called_module(node)).__module__.startswith("torch.nn"):
            if not _passes_gradients(network, node, values):
                network.undifferentiable.add(node)
        network.liveness.drop(values, node)
    return seen


def _observe(network: Network, layer: Layer, values: Values) -> Example:
    """Return what a layer read and gave, and what it gives without its weight."""
    source = first_input(layer.node)
    x = values[source] if source in values else network.constant(source)
    offset = None
    if layer.weight_name:
        zero = {layer.weight_name: torch.zeros_like(network.weight(layer))}
        offset = network.run((layer.node,), dict(values), zero)[layer.node]
    return Example(x, values[layer.node], offset)


def _check_size(network: Network, layer: Layer, seen: Example, dtype: torch.dtype) -> None:
    """Refuse activations whose squares, summed over a batch, would leave the range of numbers.

    Raises:
        SnowsError: on the first such layer.
    """
    limit = torch.finfo(dtype).max ** 0.5 * 5e-5  # float32: 9e14
    for place, value in (("input", seen.x), ("output", seen.y)):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.numel() == 0:
            continue
        peak = float(value.abs().amax())
        if peak <= limit:
            continue
        if layer.weight_name and not torch.isfinite(network.weight(layer)).all():
            raise invalid_argument(
                "model",
                f"NaN or infinite weights in layer '{layer.name}'",
                "finite weights",
                "Load weights that were trained to the end.",
            )
        raise invalid_argument(
            "images",
            f"values up to {peak:.1e} at the {place} of layer '{layer.name}'",
            f"finite values below {limit:.0e}, whose squares {str(dtype).removeprefix('torch.')} can hold",
            "Normalise the images as in training.",
        )


def _passes_gradients(network: Network, node: fx.Node, values: Values) -> bool:
    """Tell whether a module that nobody looked into can be differentiated twice on its way from input to output."""
    mine = dict(values)
    free = []
    for source in node.all_input_nodes:
        if isinstance(value := mine.get(source), Tensor) and value.is_floating_point():
            mine[source] = value.detach().clone().requires_grad_()
            free.append(mine[source])
    if not free:
        return True
    try:
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            outputs = tensors_in(network.run((node,), mine)[node])
            total = _sum_of_squares(y for y in outputs if y.requires_grad)
            first = torch.autograd.grad(total, free, create_graph=True, allow_unused=True)
            torch.autograd.grad(_sum_of_squares(g for g in first if g is not None), free, allow_unused=True)
    except (RuntimeError, TypeError, AttributeError) as error:  # no output with a gradient is a sum of nothing
        if refused_kernel(error) is not None:
            raise
        return False
    return True


def _sum_of_squares(values: Iterable[Tensor]) -> Tensor:
    """Return the sum over all entries of several tensors; torch raises a RuntimeError where there is none."""
    return torch.stack([value.square().sum() for value in values]).sum()


def _compare(expected: list[Tensor], outputs: list[Tensor], dtype: torch.dtype) -> None:
    """Refuse a graph whose outputs are not the model's, to half the digits of the type computed in.

    Raises:
        SnowsError: when they differ.
    """
    tolerance = torch.finfo(dtype).eps ** 0.5
    same = len(expected) == len(outputs) and all(a.shape == b.shape for a, b in zip(expected, outputs, strict=True))
    gap = max(map(_gap, expected, outputs), default=0.0) if same else float("inf")
    if not gap <= tolerance:
        raise SnowsError(
            f"model: its traced graph differs from the model by {gap:.1e} (relative) on the calibration images; "
            f"expected equal outputs (up to {tolerance:.0e}). Is something in its forward random, decided by the "
            "values of the image, or computed in a lower precision (autocast)? Name that module in leaf_modules=."
        )


def _gap(want: Tensor, got: Tensor) -> float:
    """Return the largest difference relative to the largest finite value; equal infinities and NaN are equal."""
    got = got.to(want)
    same = (want == got) | (want.isnan() & got.isnan())
    finite = want[want.isfinite()]
    scale = max(float(finite.abs().max()) if finite.numel() else 0.0, 1e-12)
    return 0.0 if bool(same.all()) else float((want - got)[~same].abs().max()) / scale


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in what a network returns: tensors, containers, mappings, data classes."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
    else:
        leaves = pytree.tree_leaves(value)
        for leaf in leaves if len(leaves) != 1 or leaves[0] is not value else ():
            yield from tensors_in(leaf)
