"""Names of weights as other tools write them, and which weight of a model each one means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from snows_core.errors import closest, invalid_argument

Role = Literal["mask", "weight", "other"]

# DataParallel, torch.compile, FSDP and activation checkpointing put these between the parts of a name.
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

# torch.nn.utils.parametrize, then the buffers of NVIDIA's ASP (apex, contrib/sparsity/asp.py; the second holds what was
# pruned), then torch.nn.utils.prune; the last matches layers that keep a mask of their own.
_SPELLINGS: tuple[tuple[re.Pattern[str], Role], ...] = (
    (re.compile(r"(?P<module>.*\.|)parametrizations\.(?P<name>[^.]+)\.original1?"), "weight"),  # 1: v of weight_norm
    (re.compile(r"(?P<module>.*\.|)parametrizations\.(?P<name>[^.]+)\.\d+\.(?:.*[._])?mask"), "mask"),
    (re.compile(r"(?P<module>.*\.|)parametrizations\.(?P<name>[^.]+)\..+"), "other"),
    (re.compile(r"(?P<module>.*\.|)__(?P<name>[^.]+)_mma_mask"), "mask"),
    (re.compile(r"(?P<module>.*\.|)__(?P<name>[^.]+)_mma_pruned_p"), "other"),
    (re.compile(r"(?P<module>.*\.|)(?P<name>[^.]+)_mask"), "mask"),
    (re.compile(r"(?P<module>.*\.|)(?P<name>[^.]+)_orig"), "weight"),
    (re.compile(r"(?P<module>.*)\.mask"), "mask"),
)


class Spelling(NamedTuple):
    """What a name says.

    Attributes:
        base: the layer or parameter that it belongs to.
        role: whether it holds a mask of it, its values, or something else.
    """

    base: str
    role: Role


def read_spelling(key: str) -> Spelling | None:
    """Read a name as torch.nn.utils.prune, torch.nn.utils.parametrize and ASP write it.

    Returns:
        What it says; None for a plain name.

    >>> read_spelling("conv.weight_mask")
    Spelling(base='conv.weight', role='mask')
    >>> read_spelling("conv.parametrizations.weight.original").base
    'conv.weight'
    """
    for pattern, role in _SPELLINGS:
        if found := pattern.fullmatch(key):
            return Spelling(found["module"] + (found.groupdict().get("name") or ""), role)
    return None


def without_wrappers(name: str) -> str:
    """Return a name without the parts that wrappers put into it.

    >>> without_wrappers("module.layer1._orig_mod.conv1.weight")
    'layer1.conv1.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Names:
    """Finds what a given name means: itself where it is known, otherwise the known name that it is without wrappers.

    Args:
        targets: known name to what it stands for; several names may stand for one thing.
        argument: of the caller, for messages.
    """

    def __init__(self, targets: Mapping[str, str], argument: str = "masks") -> None:
        self.targets = dict(targets)
        self.argument = argument
        self._bare: dict[str, list[str]] = {}
        for name in self.targets:
            self._bare.setdefault(without_wrappers(name), []).append(name)

    def find(self, name: str) -> str | None:
        """Return what a name stands for, or None where it is unknown.

        Raises:
            SnowsError: when it may mean several things.
        """
        if name in self.targets:
            return self.targets[name]
        near = self._bare.get(without_wrappers(name), [])
        near = [known for known in near if name.endswith(f".{known}")] or near
        meant = {self.targets[known] for known in near}
        if len(meant) > 1:
            raise invalid_argument(
                self.argument, f"the name '{name}', which may be any of {', '.join(sorted(near))}", "full names"
            )
        return meant.pop() if meant else None

    def hint(self, name: str, among: Iterable[str] | None = None) -> str:
        """Return a hint with the known names nearest to an unknown one, or an empty string."""
        bare = without_wrappers(name)
        return closest(bare, self.targets if among is None else among)
