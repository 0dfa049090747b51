"""Masks made elsewhere: dictionaries of masks, pruned models, and state dicts, in the names that other tools use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.errors import SnowsError, invalid_argument, shown
from snows_core.files import read_checkpoint
from snows_core.masks.computed_state import computed_state
from snows_core.masks.mask_values import is_binary, plain_values, read_mask
from snows_core.masks.names import Names, Role, read_spelling, without_wrappers

# Keys under which checkpoint files keep masks, or else weights.
WRAPPERS = ("masks", "mask", "state_dict", "model_state_dict", "model")
_EXTRA_STATE = "_extra_state"  # PyTorch's name for what a module's get_extra_state returns


@dataclass(frozen=True)
class _Entry:
    """One tensor of the source that belongs to a known name.

    Attributes:
        key: its name as given.
        target: layer name, or the known name of something else.
        role: "mask" where its name or its values say so, otherwise "weight".
        named: whether its name says so; such a mask stands above weights under the same name.
        value: the tensor.
    """

    key: str
    target: str
    role: Role
    named: bool
    value: Tensor


def foreign_masks(
    source: Mapping[str, Tensor] | nn.Module | Any,
    weights: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    known: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Read masks made elsewhere.

    A tensor is a mask when it is of type bool, when its name says so (``weight_mask``), or when every tensor given
    holds nothing but 0 and 1; otherwise it is a weight whose zeros define the mask. Names may be of layers or
    parameters, in the spelling of ``torch.nn.utils.prune`` or ``torch.nn.utils.parametrize``, and with the prefixes of
    DataParallel, ``torch.compile`` and other wrappers.

    Args:
        source: a dictionary of masks or weights, a state dict, a file of one of these, a model (pruned, with masks as
            hooks or parametrizations, wrapped), or a :class:`~snows_core.result.PruneResult`.
        weights: layer name to dense weight, for every layer that has one.
        aliases: parameter name to layer name.
        known: all names of the model's state dict: what a whole state dict holds beside weights is passed over, and any
            other name is an error. Without them, unknown names of weights are passed over.

    Returns:
        Masks in memory of their own, by layer name, of what the source prunes (a mask without a zero is left out).
        A mask for a known parameter of two or more dimensions that is no layer in ``weights`` comes under its module's
        name, for the caller to judge.

    Raises:
        SnowsError: on an unknown or ambiguous name, a wrong shape, values that are no mask, NaN, a layer left empty, or
            no zero at all.
    """
    entries, values = _read_entries(source)
    names = Names(_targets(weights, aliases, known))
    parameters = {without_wrappers(_base(name)) for name in aliases}
    all_masks = not isinstance(source, nn.Module) and bool(values) and _are_masks(values, weights)
    found: dict[str, list[_Entry]] = {}
    unknown: list[str] = []
    for key, value in values.items():
        entry = _place(key, value, names, parameters, all_masks)
        if entry is None:
            unknown.append(key)
        elif entry.role != "other":
            found.setdefault(entry.target, []).append(entry)
    _check_unknown(unknown, values, names, weights, strict=all_masks or bool(known) or not found)
    masks: dict[str, Tensor] = {}
    for target, group in found.items():
        mask = _mask_of(target, group, weights.get(target))
        if mask is not None and not mask.all():
            masks[target] = mask.to(weights[target].device) if target in weights else mask
    if not masks:
        raise _nothing(sorted(set(found) & set(weights)), len(weights), entries)
    return masks


def _read_entries(source: Any) -> tuple[int, dict[str, Tensor]]:
    """Return how many entries the source has, and its tensors by name."""
    if isinstance(source, str | Path):
        source = read_checkpoint(source, "masks", WRAPPERS)
    if isinstance(source, nn.Module):
        values: Mapping[Any, Any] = computed_state(source)
    elif isinstance(source, Mapping):
        values = source
    elif isinstance(masks := getattr(source, "masks", None), Mapping):
        named = getattr(source, "weight_names", None)
        values = {named.get(name, name) if isinstance(named, Mapping) else name: mask for name, mask in masks.items()}
    else:
        raise invalid_argument(
            "masks",
            f"a {type(source).__name__}",
            "a dict of masks, a pruned model, its state dict, a file of one of these dicts, or a result",
        )
    tensors = {}
    for key, value in values.items():
        if not isinstance(key, str):
            raise invalid_argument("masks", f"the name {shown(key)}", "names of layers or parameters, as texts")
        if isinstance(value, Tensor) and not value.is_meta:
            tensors[key] = plain_values(key, value)
        elif not str(key).endswith(_EXTRA_STATE):
            inside = isinstance(value, Mapping) and any(isinstance(part, Tensor) for part in value.values())
            fix = f"Pass the dictionary under '{key}' alone." if inside else ""
            got = "a tensor without data" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise invalid_argument("masks", f"{got} under '{key}'", "a dictionary of tensors", fix)
    return len(values), tensors


def _targets(weights: Mapping[str, Tensor], aliases: Mapping[str, str], known: Iterable[str]) -> dict[str, str]:
    """Return every name by which a layer, or something else of the model, may be called."""
    targets = {name: name for name in weights}
    for parameter, layer in aliases.items():
        if parameter:  # empty for a layer whose weight is computed, not stored
            targets.setdefault(parameter, layer)
    for name in known:
        module = _base(name).removesuffix(".weight")
        for spelling in (name, _base(name), module):
            targets.setdefault(spelling, module)
    return targets


def _base(name: str) -> str:
    """Return the plain name of a parameter that hooks or parametrizations keep."""
    spelling = read_spelling(name)
    return name if spelling is None or spelling.role == "mask" else spelling.base


def _place(key: str, value: Tensor, names: Names, parameters: set[str], all_masks: bool) -> _Entry | None:
    """Say what a tensor of the source belongs to and what it is, or None where its name is unknown."""
    plain = names.find(key)
    spelling = read_spelling(key)
    if spelling is not None:
        target = names.find(spelling.base)
        # The model may hold a buffer of such a name itself, for instance an attention's "attn_mask".
        own_buffer = plain is not None and without_wrappers(spelling.base) not in parameters
        if target is not None and not own_buffer:
            return _Entry(key, target, spelling.role, spelling.role == "mask", value)
    if plain is None:
        return None
    role: Role = "mask" if all_masks or value.dtype == torch.bool else "weight"
    return _Entry(key, plain, role, False, value)


def _check_unknown(
    unknown: list[str], values: Mapping[str, Tensor], names: Names, weights: Mapping[str, Tensor], strict: bool
) -> None:
    """Refuse names that mean nothing here: always those of masks, those of weights where ``strict``.

    Raises:
        SnowsError: on the first of them.
    """
    for key in unknown:
        spelling = read_spelling(key)
        is_mask = values[key].dtype == torch.bool or (spelling is not None and spelling.role == "mask")
        if strict or is_mask:
            near = weights if is_mask else names.targets
            base = key if spelling is None else spelling.base
            kind = "a mask" if is_mask or is_binary(values[key]) else "weights"
            raise invalid_argument(
                "masks",
                f"{kind} for '{key}'",
                "names of layers of this model",
                names.hint(base, near) or names.hint(base),
            )


def _mask_of(target: str, group: list[_Entry], weight: Tensor | None) -> Tensor | None:
    """Return the one mask that a layer's entries give, or None for values of what is no layer."""
    named = [entry for entry in group if entry.named]
    group = named or group
    if weight is None and not any(entry.role == "mask" for entry in group):
        return None  # a bias, a buffer, an embedding of a whole state dict
    read = {}
    for entry in group:
        if weight is not None and entry.value.shape != weight.shape:
            raise invalid_argument(
                "masks",
                f"shape {tuple(entry.value.shape)} for '{target}'",
                f"{tuple(weight.shape)}",
                "" if entry.key == target else f"It was given as '{entry.key}'.",
            )
        read[entry.key] = read_mask(entry.key, entry.value) if entry.role == "mask" else _zeros_of(entry)
    masks = list(read.values())
    if len({mask.shape for mask in masks}) > 1:
        raise invalid_argument(
            "masks", f"masks of several shapes for '{target}' ({', '.join(read)})", "one mask a layer"
        )
    stacked = all("parametrizations" in key for key in read)  # parametrizations that mask one after the other
    if not stacked and any(not torch.equal(masks[0].cpu(), other.cpu()) for other in masks[1:]):
        raise invalid_argument(
            "masks",
            f"different masks for '{target}' under the names {', '.join(read)}",
            "one mask a layer",
            "Leave all but one out.",
        )
    mask = masks[0].clone()
    for other in masks[1:]:
        mask &= other.to(mask.device)
    _check_usable(target, mask, weight)
    return mask


def _check_usable(target: str, mask: Tensor, weight: Tensor | None) -> None:
    """Refuse a mask that empties a layer, or that has zeros and belongs to nothing that can be pruned.

    Raises:
        SnowsError: on such a mask.
    """
    if weight is None and mask.ndim < 2 and not mask.all():
        raise invalid_argument(
            "masks", f"a mask with zeros for '{target}'", "masks of convolution and linear weights", "Leave it out."
        )
    if not mask.any():
        raise invalid_argument(
            "masks", f"a mask that leaves layer '{target}' empty", "at least one kept weight in every layer"
        )


def _zeros_of(entry: _Entry) -> Tensor:
    """Return the mask that the zeros of a pruned weight make.

    Raises:
        SnowsError: on NaN or infinite values.
    """
    value = entry.value
    if not torch.isfinite(value).all():
        raise invalid_argument("masks", f"weights '{entry.key}' with NaN or infinite values", "finite weights")
    return value != 0


def _are_masks(values: Mapping[str, Tensor], layers: Mapping[str, Tensor]) -> bool:
    """Tell whether tensors are meant as masks: of 0 and 1 or of integers alone, or by layer, with a bool among them."""
    if all(map(is_binary, values.values())) or not any(value.is_floating_point() for value in values.values()):
        return True
    return values.keys() <= layers.keys() and any(value.dtype == torch.bool for value in values.values())


def _nothing(matched: list[str], layers: int, entries: int) -> SnowsError:
    """Build the error for a source that prunes nothing, with what was looked at."""
    if not matched:
        looked = f"none of the {entries} entries given is the weight or mask of one of its {layers} layers"
    else:
        some = ", ".join(matched[:4]) + (f" and {len(matched) - 4} more" if len(matched) > 4 else "")
        looked = f"{len(matched)} of {layers} layers were given ({some}), and none of them has a zero"
    return SnowsError(f"masks: got no zeros in any layer of this model: {looked}; expected a pruned model, or masks.")
