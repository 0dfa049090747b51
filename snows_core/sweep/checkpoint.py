"""What a run keeps on disk as it goes, so that a killed one goes on where it was.

Records come in this order: ``allocation`` (sparsities that were measured), then for each stage ``stage`` (all layers as
the stages before left them), ``masks`` (where they are made in the stage) and one ``layer`` after the other, and at
last ``joint`` (the joint stage at some step). A ``stage`` record replaces all before it but the allocation, which it
repeats, and a ``joint`` record replaces the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snows_core.distributed import on_main
from snows_core.files.journal import Journal, Record
from snows_core.masks.patterns import Masks
from snows_core.methods.base import LayerSolution, LayerStatistics
from snows_core.provenance import tensor_digest
from snows_core.settings import PruneSettings
from snows_core.sweep.joint_problem import Position
from snows_core.sweep.prepare import Prepared

JOINT_SECONDS = 10.0  # at least between two records of the joint stage
JOINT_SHARE = 0.05  # of the time, at most, goes into writing them


@dataclass(frozen=True)
class Reached:
    """How far an interrupted run had come.

    Attributes:
        stage: number of the stage it was in, from 1.
        records: of the stages before it.
        solutions: of the layers solved in that stage, and in the one before for the others; costs are those of all
            stages.
        solved: names of the former.
        pending: masks of the others in that stage, where it had begun and stages make their masks.
        before: layer name to the weight after the stage before, for all layers; None where they are not known.
        alone: solutions of the layers solved in that stage, with its costs alone; empty where they are not known.
        batch_size: images per batch that the stage had come down to; None where it is not known.
        gradients: what the manifest says of gradients and operations of methods that look at the whole network.
    """

    stage: int = 1
    records: tuple[Mapping[str, Any], ...] = ()
    solutions: Mapping[str, LayerSolution] = field(default_factory=dict)
    solved: frozenset[str] = frozenset()
    pending: Mapping[str, Tensor] = field(default_factory=dict)
    before: Mapping[str, Tensor] | None = None
    alone: Mapping[str, LayerSolution] = field(default_factory=dict)
    batch_size: int | None = None
    gradients: Mapping[str, Any] = field(default_factory=dict)


class Checkpoint:
    """The records of one run.

    Args:
        folder: where they are.
        records: those of an earlier run, in order.
        journal: writes others; None in the processes of a run that are not the first one.

    Attributes:
        allocation: what the manifest says of measured sparsities; None before they were measured.
        position: how far the joint stage had come; None before its first record.
        found: how many layers of the last stage, and which step of the joint stage, were there when the run began.
    """

    def __init__(self, folder: str | Path, records: Sequence[Record], journal: Journal | None) -> None:
        self.folder, self.journal = folder, journal
        self.allocation: Mapping[str, Any] | None = None
        self.position: Position | None = None
        self._stage = Record("stage", {"stage": 1, "records": []})
        self._masks: Record | None = None
        self._layers: list[Record] = []
        for record in records:
            self._note(record)
        self._written, self._cost = time.monotonic(), 0.0
        self.found = {
            "stage": int(self._stage.values["stage"]),
            "layers": len(self._layers),
            "joint_step": None if self.position is None else self.position.values["step"],
        }

    def _note(self, record: Record) -> None:
        if record.kind == "allocation":
            self.allocation = record.values
        elif record.kind == "stage":
            self._stage, self._masks, self._layers = record, None, []
            self.allocation = record.values["allocation"]
        elif record.kind == "masks":
            self._masks = record
        elif record.kind == "layer":
            self._layers.append(record)
        else:
            self.position = Position(dict(record.values), dict(record.tensors))

    @property
    def is_new(self) -> bool:
        """Whether nothing was kept before this run."""
        return not (self.allocation or self._masks or self._layers or self.position or self._stage.tensors)

    def words(self, stages: int) -> str:
        """Say where the run goes on, of so many ``stages``."""
        where = "" if stages == 1 else f" of stage {self.found['stage']} of {stages}"
        step = self.found["joint_step"]
        joint = "" if step is None else f", and step {step} of the joint stage"
        return f"{self.folder}: goes on behind {self.found['layers']} solved layers{where}{joint}"

    def reached(self, device: torch.device) -> Reached:
        """Return how far the run had come, on a device, and forget it: memory holds it once."""
        stage = self._stage.values
        before = {
            name: _solution(stage["layers"][name], self._stage.tensors, device, name) for name in _layers_of(stage)
        }
        alone = {
            record.values["layer"]: _solution(record.values["statistics"], record.tensors, device)
            for record in self._layers
        }
        pending: Masks = {}
        gradients: Mapping[str, Any] = {}
        if self._masks is not None:
            pending = {name: mask.to(device) for name, mask in self._masks.tensors.items() if name not in alone}
            gradients = self._masks.values
        sizes = [record.values["batch_size"] for record in self._layers]
        reached = Reached(
            int(stage["stage"]),
            tuple(stage["records"]),
            before | {name: with_costs(done, before.get(name)) for name, done in alone.items()},
            frozenset(alone),
            pending,
            {name: done.weight for name, done in before.items()},
            alone,
            min(sizes, default=None),
            gradients,
        )
        self._stage, self._masks, self._layers = Record("stage"), None, []
        return reached

    def _add(self, record: Record, replaces: Sequence[str] = ()) -> None:
        if self.journal is not None:
            self.journal.add(record, replaces)

    def keep_allocation(self, record: Mapping[str, Any]) -> None:
        """Keep measured sparsities."""
        self.allocation = record
        self._add(Record("allocation", record))

    def keep_stage(self, number: int, records: list[Mapping[str, Any]], solutions: Mapping[str, LayerSolution]) -> None:
        """Keep all layers as the stages before ``number`` left them, and what the manifest says of those stages."""
        layers = {name: asdict(done.statistics) for name, done in solutions.items()}
        values = {"stage": number, "records": records, "layers": layers, "allocation": self.allocation}
        tensors: dict[str, Tensor] = {}
        for name, done in solutions.items():
            tensors |= {f"weight/{name}": done.weight, f"mask/{name}": done.mask}
        self._add(Record("stage", values, tensors), ("allocation", "stage", "masks", "layer"))

    def keep_masks(self, masks: Masks, gradients: Mapping[str, Any]) -> None:
        """Keep the masks of a stage, and what the manifest says of the gradients that they are from."""
        self._add(Record("masks", gradients, masks))

    def keep_layer(self, name: str, done: LayerSolution, batch_size: int) -> None:
        """Keep a layer that is solved; its statistics are of this stage alone."""
        values = {"layer": name, "statistics": asdict(done.statistics), "batch_size": batch_size}
        self._add(Record("layer", values, {"weight/": done.weight, "mask/": done.mask}))

    @property
    def is_due(self) -> bool:
        """Whether the joint stage has gone on for so long that its position is worth a record."""
        return time.monotonic() - self._written >= max(JOINT_SECONDS, self._cost / JOINT_SHARE)

    def keep_joint(self, position: Position) -> None:
        """Keep how far the joint stage has come."""
        start = time.monotonic()
        self._add(Record("joint", position.values, position.tensors), ("joint",))
        self._written = time.monotonic()
        self._cost = self._written - start


@contextmanager
def opened_checkpoint(
    folder: str | Path | None, record: Mapping[str, Any], prepared: Prepared, settings: PruneSettings
) -> Iterator[Checkpoint | None]:
    """Open the folder of a run, for it alone.

    Args:
        folder: new, empty, or with a run of the same configuration; None for no checkpoint.
        record: see :func:`configuration`.
        prepared: likewise.
        settings: likewise.

    Yields:
        The checkpoint.

    Raises:
        SnowsError: see :class:`~snows_core.files.journal.Journal`.
    """
    if folder is None:
        yield None
        return
    journals: list[Journal] = []

    def records() -> list[Record]:
        journals.append(Journal(folder, configuration(record, prepared, settings)))
        found, journals[0].records = journals[0].records, []
        return found

    try:
        found = on_main(records)  # the first process reads and writes, and tells the others
        yield Checkpoint(folder, found, journals[0] if journals else None)
    finally:
        for journal in journals:
            journal.close()


def configuration(record: Mapping[str, Any], prepared: Prepared, settings: PruneSettings) -> dict[str, Any]:
    """Return what must be the same for a run to go on: whatever changes its numbers.

    Args:
        record: what the manifest says of the run before it begins.
        prepared: network and layers.
        settings: of the run, its steps of refinement known.
    """
    masks = {name: tensor_digest(mask) for name, mask in prepared.masks.items()} if settings.masks is not None else None
    augment = settings.augment
    return {
        **{name: value for name, value in record.items() if name not in ("allocation", "permutations")},
        "allocation": settings.allocation,
        "permute": settings.permute,
        "seed": settings.seed,
        "layers": {entry.name: "x".join(map(str, entry.shape)) for entry in prepared.layers},
        "masks": masks,
        "flops": settings.flops,
        "refine": settings.refine,
        "refine_solver": settings.refine_solver,
        "moving_masks": settings.moving_masks,
        "augment": None if augment is None else getattr(augment, "__name__", type(augment).__name__),
        "dtype": str(next(prepared.network.module.parameters()).dtype),
    }


def with_costs(solution: LayerSolution, before: LayerSolution | None) -> LayerSolution:
    """Return a solution whose costs include those of the stages before."""
    if before is None:
        return solution
    own, old = solution.statistics, before.statistics
    total = replace(
        own,
        products=own.products + old.products,
        image_products=own.image_products + old.image_products,
        seconds=own.seconds + old.seconds,
    )
    return replace(solution, statistics=total)


def _layers_of(stage: Mapping[str, Any]) -> list[str]:
    return list(stage.get("layers", ()))


def _solution(
    statistics: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device, name: str = ""
) -> LayerSolution:
    weight, mask = (tensors[f"{kind}/{name}"].to(device) for kind in ("weight", "mask"))
    return LayerSolution(weight, mask, LayerStatistics(**statistics))
