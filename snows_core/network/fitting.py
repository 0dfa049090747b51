"""Weights and masks that are written into a model: everything is checked before anything is written."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.errors import SnowsError, closest, invalid_argument, shown
from snows_core.masks.mask_values import plain_values, read_mask
from snows_core.masks.names import Names, read_spelling
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, snapshot

EXTRA_STATE = "_extra_state"  # ends the names under which PyTorch keeps what a module's get_extra_state returns


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a saved state into a model, in the model's types; what the model keeps as extra state may stay as it is.

    Args:
        model: of the same architecture, also inside DataParallel or ``torch.compile``; not changed when refused.
        state: the weights.

    Raises:
        SnowsError: when a name is missing or unknown, or a shape differs; all of them in one sentence.
    """
    if not isinstance(model, nn.Module):
        raise invalid_argument(
            "model", f"a {type(model).__name__}", "a network (nn.Module) of the architecture that was pruned"
        )
    check_tensors(model)
    own = model.state_dict()
    tensors = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    names = Names({name: name for name in own}, "model")
    placed, unknown = {}, []
    for key, value in state.items():
        if (name := names.find(key)) is None:
            unknown.append(key)
        else:
            placed[name] = value
    missing = [name for name in tensors if name not in placed and not name.endswith(EXTRA_STATE)]
    shapes = [
        f"{name} {tuple(value.shape)} for {tuple(tensors[name].shape)}"
        for name, value in placed.items()
        if name in tensors and not name.endswith(EXTRA_STATE) and value.shape != tensors[name].shape
    ]
    faults = {"missing: ": missing, "not in the model: ": unknown, "other shapes: ": shapes}
    if found := "; ".join(what + _some(which) for what, which in faults.items() if which):
        raise _misfit(found)
    _load(model, placed, getattr(own, "_metadata", None))


def _load(model: nn.Module, state: Mapping[str, Tensor], versions: object) -> None:
    """Load what fits by name and shape, and undo it when a module refuses it for reasons of its own."""
    whole = OrderedDict(state)
    # The versions of the modules' formats stand in an attribute that torch adds; safetensors cannot hold them.
    whole._metadata = versions  # type: ignore[attr-defined] # no dictionary has it but a state dict
    before = snapshot(model)
    try:
        model.load_state_dict(whole, strict=False)
    except Exception as error:
        with torch.no_grad():
            for name, value in model.state_dict().items():
                if name in before and isinstance(value, Tensor) and not name.endswith(EXTRA_STATE):
                    value.copy_(before[name])
        raise _misfit(" ".join(str(error).split())) from error


def _misfit(reason: str) -> SnowsError:
    return invalid_argument(
        "model", f"a network that the saved weights do not fit ({reason})", "the architecture that was pruned"
    )


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def zero_by_masks(
    model: nn.Module, masks: Mapping[str, Tensor], weight_names: Mapping[str, str] | None = None
) -> nn.Module:
    """Return a copy of a model with zeros where masks are False; see :func:`snows_core.result.apply_masks`."""
    check_tensors(model)
    if not isinstance(masks, Mapping) or not masks:
        got = "an empty dictionary" if isinstance(masks, Mapping) else f"a {type(masks).__name__}"
        raise invalid_argument("masks", got, "a dictionary of masks by layer or parameter name")
    _check_weight_names(model, masks, weight_names)
    pruned = plain_copy(model)
    parameters = dict(pruned.named_parameters(remove_duplicate=False))  # a tied weight under all its names
    targets = {f".{name}".removesuffix(".weight")[1:]: name for name in parameters}  # of layers
    targets |= {name: name for name in parameters}
    names = Names(targets | {layer: name for layer, name in (weight_names or {}).items() if name in parameters})
    zeros: dict[int, tuple[Tensor, Tensor]] = {}  # a tied weight is one, under all its names
    for key, mask in masks.items():
        if not isinstance(key, str) or not isinstance(mask, Tensor):
            got = f"a {type(mask).__name__} for {shown(key)}"
            raise invalid_argument("masks", got, "a bool tensor, or one of 0 and 1, for each name")
        mask = plain_values(key, mask)
        name = names.find((weight_names or {}).get(key, key))
        spelling = read_spelling(key)
        if name is None and spelling is not None and spelling.role == "mask":
            name = names.find(spelling.base)
        if name is None or parameters[name].shape != mask.shape:
            fix = closest(key, targets) if name is None else f"'{name}' is of shape {tuple(parameters[name].shape)}."
            raise invalid_argument(
                "masks", f"'{key}' of shape {tuple(mask.shape)}", "names and shapes of this model's weights", fix
            )
        removed = ~read_mask(key, mask).to(parameters[name].device)
        if not torch.equal(removed, zeros.setdefault(id(parameters[name]), (parameters[name], removed))[1]):
            raise invalid_argument("masks", f"another mask under '{key}' for the same weight", "one mask a weight")
    with torch.no_grad():
        for parameter, removed in zeros.values():
            parameter.copy_(torch.where(removed, torch.zeros_like(parameter), parameter))
    return pruned


def _check_weight_names(model: nn.Module, masks: Mapping[str, Tensor], weight_names: Any) -> None:
    """Refuse names of weights that are not a mapping from masks to parameters of the model.

    Raises:
        SnowsError: on the first that is none.
    """
    if weight_names is None:
        return
    expected = "layer name to parameter name, for layers of masks and parameters of this model"
    if not isinstance(weight_names, Mapping):
        raise invalid_argument("weight_names", f"a {type(weight_names).__name__}", expected)
    names = Names({name: name for name, _ in model.named_parameters(remove_duplicate=False)}, "weight_names")
    for layer, name in weight_names.items():
        if not isinstance(name, str) or names.find(name) is None:
            raise invalid_argument("weight_names", f"{shown(name)} for {shown(layer)}", expected)
