"""A sparsity of its own for each layer: given budgets, by layer name or glob."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from snows_core.errors import closest, invalid_argument, number
from snows_core.masks.lowest import seed_of, without_lowest

_EXAMPLE = 'For instance {"layer1.*": 0.5, "layer2.conv1": 0.9}.'
_LONG = 40  # characters of a pattern that a line of progress has room for

# Digits are bounded: as a fraction, 1e-999999999 would have a billion of them.
_SHARE = re.compile(r"(-?[0-9]{0,20}\.?[0-9]{1,40}(?:e-?[0-9]{1,2})?)(%?)", re.IGNORECASE)


@dataclass(frozen=True)
class PerLayer:
    """Remove from each layer its own fraction of least salient weights.

    A name goes before globs, and of several globs that match the last one counts. A layer that no entry names stays
    dense; one with 0 loses nothing, and is re-fitted like the others.

    >>> shares = PerLayer({"layer1.*": 0.5, "layer1.conv2": 0.9}).resolved(["stem", "layer1.conv1", "layer1.conv2"])
    >>> str(shares)
    'layer1.conv1=0.5,layer1.conv2=0.9'

    Attributes:
        sparsities: layer name, or glob of such, to the fraction removed, in [0, 1).
    """

    sparsities: Mapping[str, float] = field(hash=False)

    def __post_init__(self) -> None:
        """Refuse names that are no texts, and fractions outside [0, 1)."""
        if not isinstance(self.sparsities, Mapping):
            what = "a mapping from layer names to sparsities"
            raise invalid_argument("pattern", type(self.sparsities).__name__, what, _EXAMPLE)
        read: dict[str, float] = {}
        for name, sparsity in self.sparsities.items():
            if not isinstance(name, str) or not name.strip():
                raise invalid_argument("pattern", f"the name {name!r}", "names or globs of layers", _EXAMPLE)
            read[name] = number(f"pattern of '{name}'", sparsity, below=1)
        if not any(read.values()):
            raise invalid_argument("pattern", str(read), "a sparsity above 0 for at least one layer", _EXAMPLE)
        object.__setattr__(self, "sparsities", read)

    def __str__(self) -> str:
        return ",".join(f"{name}={sparsity!r}" for name, sparsity in self.sparsities.items())

    @property
    def title(self) -> str:
        """The pattern in few words."""
        shares = self.sparsities.values()
        words = f"{len(shares)} layers, {min(shares):.3g} to {max(shares):.3g}"
        return str(self) if len(str(self)) <= _LONG else words

    def resolved(self, layers: Iterable[str]) -> PerLayer:
        """Return the pattern with names of layers in place of globs, in the order of the layers.

        Args:
            layers: names of all layers there are.

        Raises:
            SnowsError: on an entry that names none of them.
        """
        layers = list(layers)
        found: dict[str, float] = {}
        for entry, sparsity in self.sparsities.items():
            hits = self.named_by(entry, layers)
            if not hits:
                expected = f"names or globs of this model's {len(layers)} layers"
                raise invalid_argument("pattern", repr(entry), expected, closest(entry, layers))
            found |= dict.fromkeys(hits, sparsity)
        return PerLayer({name: self.sparsities.get(name, found[name]) for name in layers if name in found})

    @staticmethod
    def named_by(entry: str, layers: Iterable[str]) -> list[str]:
        """Return those of the ``layers`` that an ``entry`` names."""
        return [name for name in layers if name == entry or fnmatch.fnmatchcase(name, entry)]

    def of(self, name: str) -> PerLayer:
        """Return the pattern of the layer of one ``name`` alone."""
        return PerLayer._unchecked({name: self.sparsities[name]})

    def towards(self, fraction: float) -> PerLayer:
        """Return a milder pattern, in which each layer keeps ``(1 - sparsity) ^ fraction`` of its weights."""
        milder = {name: round(1 - (1 - s) ** fraction, 6) for name, s in self.sparsities.items()}
        return PerLayer._unchecked(milder)

    @staticmethod
    def _unchecked(sparsities: Mapping[str, float]) -> PerLayer:
        """Return a part of a pattern, which may hold zeros alone."""
        made = object.__new__(PerLayer)
        object.__setattr__(made, "sparsities", dict(sparsities))
        return made

    def misfit(self, weight: Tensor, groups: int = 1) -> str:
        """Return an empty string: every weight can take this pattern, whatever its ``groups``."""
        return ""

    def mask(self, scores: Tensor, seed: int = 0) -> Tensor:
        """Return the mask of the only layer of this pattern (:meth:`of`), or of a part of it.

        Args:
            scores: of any shape and real type.
            seed: of the lots that decide among equal scores.

        Returns:
            Bool tensor of the same shape, on the same device.

        Raises:
            SnowsError: where the pattern has several layers.
        """
        if len(self.sparsities) != 1:
            raise invalid_argument("pattern", str(self), "the pattern of one layer", "of(name) returns it.")
        return without_lowest(scores, next(iter(self.sparsities.values())), seed)

    def masks(self, scores: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
        """Return the mask of each layer.

        Args:
            scores: layer name to scores, for layers of this pattern, resolved.
            seed: of the lots that decide among equal scores.

        Returns:
            Layer name to mask.
        """
        return {
            name: without_lowest(score, self.sparsities[name], seed_of(seed, name)) for name, score in scores.items()
        }


def read_per_layer(text: str) -> PerLayer:
    """Read ``layer1.*=0.5,layer2.conv1=90%``.

    Args:
        text: names or globs of layers with their sparsities.

    Returns:
        The pattern.

    Raises:
        SnowsError: on an entry that is no name and sparsity, or a name given twice.

    >>> read_per_layer("layer1.*=0.5, layer2.conv1=90%").sparsities
    {'layer1.*': 0.5, 'layer2.conv1': 0.9}
    """
    found: dict[str, float] = {}
    for part in filter(str.strip, text.split(",")):
        name, _, share = (piece.strip() for piece in part.rpartition("="))
        number = _SHARE.fullmatch(share)
        if number is None:
            raise invalid_argument("pattern", repr(part), "name=sparsity", "For instance layer1.*=0.5.")
        value = float(Fraction(number[1]) / (100 if number[2] else 1))
        if name in found:
            raise invalid_argument("pattern", f"'{name}' twice", "each layer once")
        found[name] = value
    return PerLayer(found)
