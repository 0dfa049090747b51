"""Which units of a network can be taken out so that it computes the same, and why others cannot.

A unit can go where no layer that reads it depends on it: the columns of its weight are zero, or the unit is one number
for every image and position, which can be added to the layer's bias (nothing has to be added for the number zero; a
convolution that pads its input with zeros would see another number at the border). Every layer of the unit's group
must allow it. One unit of a group always stays, because PyTorch's layers cannot be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snows_core.network.constants import has_no_borders
from snows_core.network.graph import Network
from snows_core.network.nodes import module_of
from snows_core.network.unit_group import Reading, UnitGroup

BORDERS = "they are not zero behind bias and activation, and '{}' pads with zeros"
READ = "'{}' reads them, and they change with the image"
LAST = "one of them stays: a layer cannot be empty"


@dataclass(frozen=True)
class Removal:
    """What is taken out of one group.

    Attributes:
        group: the group.
        dropped: (units,) bool, the units that go.
        idle: how many units have zero weights in every layer that computes them, and yet stay.
        why: what keeps those.
    """

    group: UnitGroup
    dropped: Tensor
    idle: int
    why: str

    @property
    def count(self) -> int:
        """How many units go."""
        return int(self.dropped.sum())

    @property
    def kept(self) -> Tensor:
        """The units that stay, in their order."""
        return (~self.dropped).nonzero().flatten()


def removals(network: Network, groups: Sequence[UnitGroup]) -> list[Removal]:
    """Decide for every group which units go.

    Args:
        network: the traced network.
        groups: from :func:`snows_core.network.units.unit_groups`.

    Returns:
        One removal a group, in the same order; those of bound groups drop nothing.
    """
    return [_removal(network, group) for group in groups]


def _removal(network: Network, group: UnitGroup) -> Removal:
    nothing = torch.zeros(group.units, dtype=torch.bool)
    if group.bound:
        return Removal(group, nothing, int(_without_weights(network, group).sum()), group.bound)
    dropped = torch.stack([_can_go(network, reading) for reading in group.readings]).all(0)
    last = bool(dropped.all())
    if last:
        dropped[0] = False
    zero = _without_weights(network, group) & ~dropped
    why = ""
    if zero.any():
        why = LAST if last else _reason(network, group, zero)
    return Removal(group, dropped, int(zero.sum()), why)


def _can_go(network: Network, reading: Reading) -> Tensor:
    """Return which units a reader does not depend on, (units,)."""
    node = reading.layer.node
    may_add = has_no_borders(node, network.weight(reading.layer)) and isinstance(module_of(node), nn.Linear | nn.Conv2d)
    zero = reading.constant & ~reading.value.any(1)
    return _zero_columns(network, reading) | zero | (reading.constant & may_add)


def _zero_columns(network: Network, reading: Reading) -> Tensor:
    weight = network.weight(reading.layer).movedim(1, 0).flatten(1)  # (in, out * kernel)
    return ~weight.any(1).cpu()[reading.part.places].any(1)


def _without_weights(network: Network, group: UnitGroup) -> Tensor:
    """Return the units whose rows are zero in every layer that computes them; none where that is not known."""
    found = []
    rows: Mapping[str, Tensor] = {part.tensor: part.places for part in group.parts if part.axis == 0}
    for layer in group.producers:
        if not layer.weight_name:  # computed
            continue
        weight = ~network.weight(layer).flatten(1).any(1).cpu()
        places = rows.get(layer.weight_name)
        if places is not None:
            found.append(weight[places].all(1))
        elif len(weight) == group.units:
            found.append(weight)
    return torch.stack(found).all(0) if found else torch.zeros(group.units, dtype=torch.bool)


def _reason(network: Network, group: UnitGroup, units: Tensor) -> str:
    """Say which reader keeps the first of the units that could not go."""
    unit = int(units.nonzero()[0])
    for reading in group.readings:
        if not bool(_can_go(network, reading)[unit]):
            return (BORDERS if bool(reading.constant[unit]) else READ).format(reading.layer.name)
    return ""
