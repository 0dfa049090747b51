"""Which models cannot be worked with, whatever their forward does: each is refused with the way out."""

from __future__ import annotations

import fnmatch
import inspect
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from snows_core.errors import closest, invalid_argument
from snows_core.network.copies import unwrap

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)
"""Modules that multiply by a weight."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Number formats that a network is computed in."""
_COMPLEX = (torch.complex32, torch.complex64, torch.complex128)  # layers of such weights stay dense
_IMAGE_NAMES = ("image", "images", "img", "imgs", "x", "input", "inputs", "pixel_values")


def check_model(model: nn.Module, name: str = "model") -> None:
    """Refuse models that no tracing can follow, and weights that no layer can be solved with.

    Args:
        model: the network, without wrappers.
        name: of the argument, for messages.

    Raises:
        SnowsError: on train mode, scripted, quantised or uninitialised modules, forwards of no input or several, and
            weights without values or with NaN or infinite ones.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise invalid_argument(
            name,
            "a scripted (TorchScript) network",
            "the torch.nn.Module that it was made from",
            "Prune the original network, then script result.model.",
        )
    modules = [(path, m) for path, m in model.named_modules() if not isinstance(m, torch.jit.ScriptModule)]
    for path, module in modules:
        if "quantized" in type(module).__module__ or _has_integer_weight(module):
            raise invalid_argument(
                name,
                f"a quantised module ('{path}', {type(module).__name__})",
                "a floating-point network",
                "Prune the network it was made from, then quantise result.model.",
            )
    check_tensors(model, name)
    if training := [path for path, module in modules if module.training]:
        what = f"a part in train mode ('{training[0]}')" if training[0] else "a model in train mode"
        raise invalid_argument(name, what, "a model in eval mode", "Call model.eval() first.")
    _check_inputs(model, name)
    _check_finite(model, name)


def check_tensors(model: nn.Module, name: str = "model") -> None:
    """Refuse parameters and buffers that hold no values, or not in the open.

    Args:
        model: any network.
        name: of the argument, for messages.

    Raises:
        SnowsError: on what is no network, lazy parameters, the meta device, and sparse weights.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise invalid_argument(name, what, "a torch.nn.Module", "Of a result of prune, pass result.model.")
    for path, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise invalid_argument(
                name,
                f"lazy parameters without a shape yet ('{path.rpartition('.')[0]}')",
                "an initialised network",
                "Run it once on a few images, model(images[:2]), and load its weights.",
            )
        if tensor.is_meta:
            fix = 'Bring it to a device with model.to_empty(device="cpu"), then load its weights.'
            raise invalid_argument(name, f"'{path}' on the meta device, without values", "a network with values", fix)
        if tensor.layout is not torch.strided and isinstance(tensor, nn.Parameter):
            got = f"'{path}' of layout {str(tensor.layout).removeprefix('torch.')}"
            raise invalid_argument(name, got, "dense tensors of weights", "Use tensor.to_dense().")


def formats_fault(model: nn.Module) -> str:
    """Return what is odd about the number formats of a network's weights, for messages; empty where nothing is."""
    kinds = {parameter.dtype for parameter in unwrap(model).parameters()}
    odd = sorted(str(kind) for kind in kinds if kind not in FLOATS)
    mixed = sorted(map(str, kinds)) if len(kinds) > 1 else []
    return f"weights of type {', '.join(odd or mixed)}" if odd or mixed else ""


def _check_finite(model: nn.Module, name: str) -> None:
    """Refuse parameters, and statistics of normalisations, with NaN or infinite values; masks may have some."""
    statistics = (pair for pair in model.named_buffers() if pair[0].endswith(("running_mean", "running_var")))
    for path, tensor in itertools.chain(model.named_parameters(), statistics):
        if tensor.dtype in FLOATS and not bool(torch.isfinite(tensor.detach()).all()):
            layer, _, own = path.rpartition(".")
            got = f"NaN or infinite weights in layer '{layer}' ({own})"
            raise invalid_argument(name, got, "finite weights", "Load weights that were trained to the end.")


def _has_integer_weight(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(module, LAYERS) and isinstance(weight, Tensor) and weight.dtype not in (*FLOATS, *_COMPLEX)


def _check_inputs(model: nn.Module, name: str) -> None:
    """Refuse a forward of no input or with several required ones; of several, say how to make it one of the image."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # a built-in function does not say what it takes
        return
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in stars]
    if not any(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        raise invalid_argument(name, "a network whose forward takes no input", "a network of the image")
    if len(needed) < 2:
        return
    image = next((name for name in needed if name in _IMAGE_NAMES), needed[0])
    others = [one for one in needed if one != image]
    given = ", ".join(f"{one}={one}" if one == image else f"{one}=self.{one}" for one in needed)
    raise invalid_argument(
        name,
        f"a network whose forward needs {len(needed)} inputs ({', '.join(needed)})",
        "a network of the image alone",
        f"Wrap it, with values for {' and '.join(others)} that suit every batch of images:\n\n"
        f"    class OfImageAlone(torch.nn.Module):\n"
        f"        def __init__(self, network, {', '.join(others)}):\n"
        f"            super().__init__()\n"
        f"            self.network = network\n"
        + "".join(f"            self.{one} = {one}\n" for one in others)
        + f"\n        def forward(self, {image}):\n"
        f"            return self.network({given})\n\n"
        f"    snows.prune(OfImageAlone(model, {', '.join(others)}).eval(), images)",
    )


def check_leaves(model: nn.Module, leaves: Iterable[Any]) -> None:
    """Refuse leaf modules that are no module of the model.

    Args:
        model: the network, without wrappers.
        leaves: names, globs or classes.

    Raises:
        SnowsError: on the first of them.
    """
    modules = {path: module for path, module in model.named_modules() if path}
    for leaf in leaves:
        if not isinstance(leaf, str | type):
            raise invalid_argument("leaf_modules", type(leaf).__name__, "classes, names, or globs of names")
        if isinstance(leaf, str) and not fnmatch.filter(modules, leaf):
            raise invalid_argument(
                "leaf_modules", repr(leaf), "names or globs of this model's modules", closest(leaf, modules)
            )
        if isinstance(leaf, type) and not any(isinstance(module, leaf) for module in modules.values()):
            raise invalid_argument("leaf_modules", f"the class {leaf.__name__}", "classes of this model's modules")
