"""What the rules of eligibility.yaml mean, and which of them decides about a layer.

The file says for each backend what a layer must meet, in the order in which it is asked, and cites a source for each
rule (:mod:`snows_core.export.kernels.rule_file` reads it); the first rule that is not met decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

DTYPES = ("float16", "bfloat16", "float32", "int8")
"""Number formats that can be asked about."""
PATTERNS = ("2:4", "1:2")
"""Patterns that hardware computes with: of 16-bit and 8-bit numbers, and of 32-bit ones."""
WORDS = (
    *("capability", "dtype", "kind", "outputs", "inputs", "rows", "columns", "needed", "held", "batch_side"),
    *("multiple", "least"),
)
"""What stands in braces in the reasons of the file."""


@dataclass(frozen=True)
class Target:
    """What is asked about.

    Attributes:
        capability: compute capability of the GPU, (major, minor).
        dtype: number format of the weights, one of ``DTYPES``.
        batch: images in a batch.
    """

    capability: tuple[int, int]
    dtype: str
    batch: int = 1


@dataclass(frozen=True)
class Facts:
    """What of a layer the rules look at.

    Attributes:
        kind: one of the kinds of :mod:`snows_core.export.kernels.weighted_layers`.
        outputs: rows of its weight.
        inputs: input channels or features that an output reads (of its group).
        patterns: which of ``PATTERNS`` the weight holds.
        held: what it holds, in words.
        positions: output positions of an image; 0 where that is not known.
    """

    kind: str
    outputs: int
    inputs: int
    patterns: Collection[str]
    held: str
    positions: float = 0


@dataclass(frozen=True)
class Rule:
    """One rule of a backend.

    Attributes:
        id: its name in tables.
        check: which of ``CHECKS`` (or ``NOTES``) it is.
        allows: what is accepted; its form depends on the check.
        because: why a layer that does not meet it is out, by kind of layer; "others" for those not named.
        sources: what it was read from.
    """

    id: str
    check: str
    allows: Any
    because: Mapping[str, str]
    sources: tuple[str, ...]

    def is_met(self, facts: Facts, target: Target) -> bool:
        """Tell whether a layer meets this rule on a target."""
        return (CHECKS | NOTES)[self.check](self.allows, facts, target)

    def reason(self, facts: Facts, target: Target) -> str:
        """Return why a layer that does not meet it is out."""
        own: Any = self.allows.get(target.dtype) if isinstance(self.allows, dict) else self.allows
        rows, columns = own if self.check == "shape" else (0, 0)
        text = self.because.get(facts.kind) or self.because["others"]
        return text.format(
            capability="{}.{}".format(*target.capability),
            dtype=target.dtype,
            kind=facts.kind,
            outputs=facts.outputs,
            inputs=facts.inputs,
            rows=rows,
            columns=columns,
            needed=own,
            held=facts.held,
            batch_side=f"{facts.positions * target.batch:g}",
            multiple=own,
            least=own,
        )


@dataclass(frozen=True)
class Backend:
    """A way to compute with zeros.

    Attributes:
        key: its name in the file.
        name: its name for readers.
        rules: in the order in which they are asked.
        notes: what does not decide, and yet is worth knowing of a layer that is taken.
    """

    key: str
    name: str
    rules: tuple[Rule, ...]
    notes: tuple[Rule, ...]

    def decide(self, facts: Facts, target: Target) -> Rule | None:
        """Return the first rule that a layer does not meet; None where it is taken."""
        return next((rule for rule in self.rules if not rule.is_met(facts, target)), None)


@dataclass(frozen=True)
class Rules:
    """The whole file.

    Attributes:
        sources: key of a source to what it is.
        gpus: name of a GPU to its compute capability.
        backends: in the order of the file.
        checklist: sentences, each with keys of its sources.
    """

    sources: Mapping[str, str]
    gpus: Mapping[str, tuple[int, int]]
    backends: tuple[Backend, ...]
    checklist: tuple[tuple[str, tuple[str, ...]], ...]


def _has_capability(allows: list[str], facts: Facts, target: Target) -> bool:
    """Compare with "8.0" (that one), "8.x" (any minor) and "8.0+" (that one or later)."""
    major, minor = target.capability
    for text in allows:
        wanted_major, wanted_minor = text.rstrip("+").split(".")
        wanted = (int(wanted_major), minor if wanted_minor == "x" else int(wanted_minor))
        if (major, minor) == wanted or (text.endswith("+") and (major, minor) > wanted):
            return True
    return False


def _fits_batch(allows: Mapping[str, int], facts: Facts, target: Target) -> bool:
    return facts.positions * target.batch % allows.get(target.dtype, 1) == 0


CHECKS: dict[str, Callable[[Any, Facts, Target], bool]] = {
    "capability": _has_capability,
    "dtype": lambda allows, facts, target: target.dtype in allows,
    "layer": lambda allows, facts, target: facts.kind in allows,
    "shape": lambda allows, facts, target: (
        facts.outputs % allows[target.dtype][0] == facts.inputs % allows[target.dtype][1] == 0
    ),
    "channels": lambda allows, facts, target: facts.inputs % allows == 0,
    "pattern": lambda allows, facts, target: allows[target.dtype] in facts.patterns,
}
"""Checks that decide: what is allowed, the layer, the target to whether it is met."""
NOTES: dict[str, Callable[[Any, Facts, Target], bool]] = {
    "batch": _fits_batch,
    "narrow": lambda allows, facts, target: min(facts.outputs, facts.inputs) >= allows,
}
"""Checks that only give notes."""
