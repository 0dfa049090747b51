"""What a group of units is: channels, neurons or heads that many tensors hold, and the layers that read them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from snows_core.network.graph import Layer


@dataclass(frozen=True, eq=False)
class UnitPart:
    """The places of one tensor that belong to each unit.

    Attributes:
        tensor: qualified name of the parameter or buffer.
        axis: along which axis.
        places: (units, n) int64, places of that axis.
    """

    tensor: str
    axis: int
    places: Tensor


@dataclass(frozen=True, eq=False)
class Reading:
    """How a layer reads units.

    Attributes:
        layer: the consumer.
        part: the columns of its weight.
        constant: (units,) bool, whether all inputs of a unit are the same numbers for every image and position.
        value: (units, n) those numbers, in the order of ``part.places``; without meaning where not constant.
    """

    layer: Layer
    part: UnitPart
    constant: Tensor
    value: Tensor


@dataclass(frozen=True, eq=False)
class UnitGroup:
    """Units that come and go together.

    Attributes:
        name: of the first producer, or of the attention module.
        kind: "channels", "neurons" or "heads".
        units: how many.
        producers: the layers that compute them.
        parts: every tensor that holds them but the weights of the readers.
        readings: the layers that read them.
        bound: why none can be taken out, empty where nothing keeps them; ``parts`` and ``readings`` are empty then.
        is_residual: whether an addition joined the channels of several layers, as in a residual stream.
    """

    name: str
    kind: str
    units: int
    producers: tuple[Layer, ...]
    parts: tuple[UnitPart, ...]
    readings: tuple[Reading, ...]
    bound: str = ""
    is_residual: bool = False
