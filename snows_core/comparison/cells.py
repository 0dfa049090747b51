"""The cells of a comparison: every mask with every update at every pattern, and which of them can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from snows_core.errors import SnowsError, closest, invalid_argument
from snows_core.masks.patterns import Pattern, parse_pattern
from snows_core.methods import METHODS, NETWORK_METHODS
from snows_core.settings import PruneSettings, get_recipe
from snows_core.sweep.layer_steps import layer_steps

MAGNITUDE = "magnitude"
UPDATES = {name: method.updates_weights for name, method in METHODS.items()}
UPDATES |= {name: method.updates_weights for name, method in NETWORK_METHODS.items()}
"""Name of every method to whether it re-fits weights."""
OWN = "own"
"""The update of the method that chose the mask, both in one sweep: the method itself."""
OWN_SNOWS = "own+snows"
"""SNOWS from the weights of the method that chose the mask, layer by layer."""


@dataclass(frozen=True)
class Cell:
    """One way to prune.

    Attributes:
        pattern: the sparsity pattern, as it is written.
        mask: name of what chooses masks.
        update: name of what re-fits the kept weights, or "own".
    """

    pattern: str
    mask: str
    update: str

    def __str__(self) -> str:
        """Return its three names.

        >>> print(Cell("1:4", "wanda", "snows"))
        1:4 wanda snows
        """
        return f"{self.pattern} {self.mask} {self.update}"

    @property
    def method(self) -> str:
        """The name of the method that re-fits the weights."""
        return {OWN: self.mask, OWN_SNOWS: "snows"}.get(self.update, self.update)

    @property
    def chooses_in_its_sweep(self) -> bool:
        """Whether its mask is chosen behind layers that it has re-fitted, even where masks are fixed."""
        return self.update in (OWN, OWN_SNOWS)


def known_masks() -> list[str]:
    """Return the names of all that chooses masks."""
    return [MAGNITUDE, *(name for name, method in METHODS.items() if method.chooses_masks), *NETWORK_METHODS]


def known_updates() -> list[str]:
    """Return the names of all that re-fits weights, "own" and "own+snows"."""
    return [*(name for name, updates in UPDATES.items() if updates), OWN, OWN_SNOWS]


def read_names(argument: str, names: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Read the names of one side of the grid.

    Args:
        argument: its name, for messages.
        names: several, or one text of them with commas between.
        known: what there is.

    Returns:
        The names in the order given.

    Raises:
        SnowsError: on no name, an unknown one, or one given twice.

    >>> read_names("updates", "none, snows", known_updates())
    ('none', 'snows')
    """
    try:
        listed = [part.strip() for part in names.split(",") if part.strip()] if isinstance(names, str) else list(names)
    except TypeError:
        raise invalid_argument(argument, repr(names), "names of methods") from None
    for name in listed:
        if name not in known:
            raise invalid_argument(argument, repr(name), f"names among {list(known)}", closest(str(name), known))
    return _each_once(argument, listed)


def read_patterns(patterns: Any) -> dict[str, Pattern]:
    """Read one pattern or several.

    Args:
        patterns: what :func:`snows_core.prune.prune` takes as ``pattern``, or a list or tuple of such.

    Returns:
        The pattern as it is written, to the pattern.

    Raises:
        SnowsError: on no pattern, one that cannot be read, or one given twice.

    >>> list(read_patterns(["2:4", 0.8]))
    ['2:4', '0.8']
    """
    several = patterns if isinstance(patterns, list | tuple) else [patterns]
    read = [parse_pattern(pattern) for pattern in several]
    _each_once("patterns", [str(pattern) for pattern in read])
    typed = [
        str(one) if isinstance(one, str | float) else str(pattern) for one, pattern in zip(several, read, strict=True)
    ]
    return dict(zip(typed, read, strict=True))


def check_grid(patterns: Any, masks: str | Sequence[str], updates: str | Sequence[str]) -> None:
    """Refuse names that there are not, before any network is loaded; no patterns may still come.

    Args:
        patterns: see :func:`read_patterns`.
        masks: see :func:`read_names`.
        updates: likewise.

    Raises:
        SnowsError: as these two.
    """
    if patterns:
        read_patterns(patterns)
    read_names("masks", masks, known_masks())
    read_names("updates", updates, known_updates())


def _each_once(argument: str, names: list[str]) -> tuple[str, ...]:
    if not names:
        raise invalid_argument(argument, "none", "at least one")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise invalid_argument(argument, f"'{twice[0]}' twice", "each one once")
    return tuple(names)


def cells_of(patterns: Mapping[str, Pattern], masks: Sequence[str], updates: Sequence[str]) -> list[Cell]:
    """Return all cells, those of a pattern one after the other, and in them those of a mask."""
    return [Cell(pattern, mask, update) for pattern in patterns for mask in masks for update in updates]


def misfit(cell: Cell, pattern: Pattern, settings: PruneSettings) -> str:
    """Return why a cell cannot be had whatever the network is, or an empty text.

    Args:
        cell: the cell.
        pattern: its pattern.
        settings: of the comparison.
    """
    if cell.chooses_in_its_sweep and (cell.mask == MAGNITUDE or not UPDATES[cell.mask]):
        return f"{cell.mask} re-fits no weights"
    try:
        layer_steps(cell_settings(cell, pattern, settings))
    except SnowsError as error:
        return str(error)
    return ""


def cell_settings(cell: Cell, pattern: Pattern, settings: PruneSettings) -> PruneSettings:
    """Return the settings of one cell; bounds on operations, and labels, are for methods that know them.

    Args:
        cell: the cell.
        pattern: its pattern.
        settings: of the comparison.
    """
    bounded = cell.mask in NETWORK_METHODS and NETWORK_METHODS[cell.mask].bounds_flops
    whole = [NETWORK_METHODS[name] for name in (cell.mask, cell.method) if name in NETWORK_METHODS]
    recipe = get_recipe(settings.recipe)
    return replace(
        settings,
        pattern=pattern,
        mask=cell.mask,
        update=cell.method,
        flops=settings.flops if bounded else None,
        labels=settings.labels if any(method.reads_labels for method in whole) else None,
        recipe=replace(recipe, warm_start="own") if cell.update == OWN_SNOWS else recipe,
    )
