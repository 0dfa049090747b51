"""What came of holding weights against what is promised of them: a table, all violations, and words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from snows_core.export.verification.stored import StoredWeight
from snows_core.export.verification.violations import Checked, Finding, found_pattern

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("layer", "weight", "shape", "axis", "promised", "found", "sparsity", "violations", "note")
FIRST, EACH = 12, 3  # violations that are printed, in all and of one kind in one layer
ADVICE = "Hold them to something with pattern='2:4', or against='<folder of a result>'."


@dataclass(frozen=True, eq=False, repr=False)
class Verification:
    """What came of holding weights against what is promised of them.

    Attributes:
        source: what was verified, in words.
        origin: where the promise is from, in words; empty where nothing is promised.
        table: one row a layer: layer, weight (name in the file), shape (in the file), axis (of the file's tensor, along
            which the inputs run), promised, found (the pattern that it has), sparsity, violations, note.
        findings: what does not hold.
        advice: where a promise may be found, if there is none.
    """

    source: str
    origin: str
    table: pd.DataFrame
    findings: tuple[Finding, ...]
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Whether no promise is broken; also where nothing is promised, which :attr:`promised` tells."""
        return not self.findings

    @property
    def promised(self) -> int:
        """Of how many layers something is promised."""
        return int((self.table["promised"] != "").sum())

    @property
    def violations(self) -> pd.DataFrame:
        """All violations: layer, weight, kind, index (in the file's tensor; of a group its first place), words.

        The kind is "pattern", "mask", "support" (zeros stand elsewhere than when the file was written), "cap", "not
        finite", "shape", "missing" or "promise" (which contradicts itself). The index is empty where the weight as a
        whole is meant.
        """
        import pandas as pd

        rows = [row for finding in self.findings for row in finding.rows()]
        return pd.DataFrame(rows, columns=["layer", "weight", "kind", "index", "words"])

    def __repr__(self) -> str:
        if not self.promised:
            words = f"nothing is promised of {self.source}, so nothing was verified; the table says what there is"
            return f"{words}. {self.advice or ADVICE}"
        layers = f"{self.promised} layer{'s' if self.promised > 1 else ''}"
        if self.ok:
            return f"{self.source}: all that is promised of {layers} holds ({self.origin})"
        broken = len({finding.layer for finding in self.findings})
        count = sum(finding.count for finding in self.findings)
        what = f"{count:,} violation{'s' if count > 1 else ''}, in {broken} of {layers}"
        lines = [f"{self.source}: what is promised does not hold ({self.origin}): {what}"]
        first = [row for finding in self.findings for row in islice(finding.rows(), EACH)][:FIRST]
        lines += [f"  {row['layer']}: {row['words']}" for row in first]
        if count > len(first):
            lines.append(f"  and {count - len(first):,} more")
        dense = self.table.loc[(self.table["violations"] > 0) & (self.table["found"] == "dense"), "layer"]
        if len(dense):
            named = f"{', '.join(dense[:EACH])}{f' and {len(dense) - EACH} more' if len(dense) > EACH else ''}"
            lines.append(f"without any zero: {named}. Leave out by exclude= what was meant to stay dense.")
        return "\n".join(lines)


def layer_table(
    checked: Sequence[Checked],
    order: Sequence[StoredWeight],
    together: Sequence[Finding],
    notes: Mapping[str, str],
) -> pd.DataFrame:
    """Return one row for each weight, and for each that is missing one at the end.

    Args:
        checked: the weights with what was found in each.
        order: all weights of the source, in its order.
        together: what was found when all were taken together.
        notes: layer name to a note.
    """
    import pandas as pd

    places = {id(weight): number for number, weight in enumerate(order)}
    rows = []
    for one in sorted(checked, key=lambda one: places.get(id(one.weight), len(places))):
        row = _row(one)
        more = [finding for finding in together if (finding.layer, finding.weight) == (row["layer"], row["weight"])]
        row["violations"] = sum(finding.count for finding in (*one.findings, *more))
        row["note"] = notes.get(row["layer"], "") if one.weight is not None else "missing"
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(one: Checked) -> dict[str, Any]:
    """Return what a table says of a weight and its promise, without violations."""
    promise, weight = one.promise, one.weight
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "")
    if weight is not None:
        size = weight.values.numel()
        row |= {
            "layer": weight.layer,
            "weight": weight.weight,
            "shape": "x".join(map(str, weight.shape)),
            "axis": f"{weight.axis} ({weight.kind})" if weight.kind else str(weight.axis),
            "found": found_pattern(weight.values),
            "sparsity": weight.zeros / size if size else 0.0,
        }
    if promise is not None:
        row |= {"layer": promise.layer, "promised": promise.words, "weight": row["weight"] or promise.weight}
    return row
