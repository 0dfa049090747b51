"""A race of minimisers on the K-step losses of layers, and the tables that are read off it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from torch import Tensor

from snows_core.book.contests.fits import LayerFit
from snows_core.book.contests.meter import PROBE, Meter, Uncurved
from snows_core.book.contests.minimisers import adam_descend, descend
from snows_core.solvers.mixed_curvature import MixedCurvature

Arm = Callable[[LayerFit, float], tuple[Meter, Tensor]]
"""Minimises the loss of a layer within a budget; returns what it spent, and where it ended."""

NEWTON, NO_CURVATURE = "Newton-CG", "preconditioned gradient"
LOOKS: Mapping[str, str] = {
    NEWTON: "SNOWS",
    "Newton-CG without M": "paper",
    "empirical Fisher": "Fisher",
    NO_CURVATURE: "dense",
    "Adam, constant rate": "Adam",
    "Adam, falling rate": "layer-wise",
}
"""How each arm is drawn, as :func:`snows_core.book.plots.style` knows it, in the order of legends."""


@dataclass(frozen=True)
class Tuned:
    """The settings of the arms that have any.

    Attributes:
        parts: by whether Adam's rate falls: into how many mini-batches its images are cut.
        rates: by whether it falls: Adam's rate, relative to the size of the weights.
        share: of the empirical Fisher in its mixture with M.
    """

    parts: Mapping[bool, int]
    rates: Mapping[bool, float]
    share: float


def newton_arm(
    fit: LayerFit, budget: float, preconditioned: bool = True, progress: float = 5e-3
) -> tuple[Meter, Tensor]:
    """Run Newton-CG on a layer.

    Args:
        fit: the layer.
        budget: in units.
        preconditioned: by the layer's M, whose scale takes one probe.
        progress: tolerance of CG, see :func:`.descend`.

    Returns:
        What it spent, and where it ended.
    """
    meter = Meter(fit, paid=PROBE if preconditioned else 0.0)
    return meter, descend(meter, fit, meter, budget, preconditioned=preconditioned, progress=progress)


def gradient_arm(fit: LayerFit, budget: float) -> tuple[Meter, Tensor]:
    """Run the preconditioned gradient on a layer ``fit`` within a ``budget``: the same loop with M in place of H."""
    meter = Meter(fit, paid=PROBE)
    return meter, descend(Uncurved(meter, fit), fit, meter, budget, lengthen=True)


def fisher_arm(fit: LayerFit, budget: float, share: float) -> tuple[Meter, Tensor]:
    """Run the same loop with the empirical Fisher.

    Args:
        fit: the layer.
        budget: in units.
        share: of the Fisher in its mixture with M, below 1.

    Returns:
        What it spent, and where it ended.
    """
    meter = Meter(fit, fit.loss.with_fisher(), paid=PROBE)
    mixed = MixedCurvature(meter, fit.times, fit.solve, share)
    return meter, descend(mixed, fit, meter, budget, lengthen=True)


def adam_arm(fit: LayerFit, budget: float, rate: float, parts: int, falling: bool) -> tuple[Meter, Tensor]:
    """Run Adam on a layer.

    Args:
        fit: the layer.
        budget: in units.
        rate: relative to the size of the kept weights.
        parts: mini-batches in a pass over the images.
        falling: whether the rate falls to nothing over the budget.

    Returns:
        What it spent, and where it ended.
    """
    meter = Meter(fit)
    return meter, adam_descend(fit, meter, budget, rate=rate, parts=parts, falling=falling)


def arms(tuned: Tuned) -> dict[str, Arm]:
    """Return all arms of the race by name, in the order of ``LOOKS``.

    Args:
        tuned: settings of those that have any.
    """

    def adam(falling: bool) -> Arm:
        return lambda fit, budget: adam_arm(fit, budget, tuned.rates[falling], tuned.parts[falling], falling)

    return {
        NEWTON: newton_arm,
        "Newton-CG without M": lambda fit, budget: newton_arm(fit, budget, preconditioned=False),
        "empirical Fisher": lambda fit, budget: fisher_arm(fit, budget, tuned.share),
        NO_CURVATURE: gradient_arm,
        "Adam, constant rate": adam(False),
        "Adam, falling rate": adam(True),
    }


def race(
    fits: Iterable[LayerFit], contestants: Mapping[str, Arm], budget: float, seed: int
) -> tuple[pd.DataFrame, dict[tuple[str, str], Tensor]]:
    """Let every arm fit every layer.

    Args:
        fits: the layers.
        contestants: arms by name.
        budget: in units, of each arm on each layer.
        seed: of the calibration images, for the table.

    Returns:
        One row a point on the way: seed, layer, method, units, image_products, seconds, loss (relative to the start);
        and the last weights by layer and method.
    """
    rows: list[dict[str, Any]] = []
    ends = {}
    for fit in fits:
        for method, run in contestants.items():
            meter, ends[fit.name, method] = run(fit, budget)
            start = meter.trace[0].loss
            key = {"seed": seed, "layer": fit.name, "method": method}
            rows += [key | vars(point) | {"loss": point.loss / start} for point in meter.trace]
    return pd.DataFrame(rows), ends


def lowest(points: pd.DataFrame) -> dict[Hashable, float]:
    """Return the lowest loss that any arm reached, by seed and layer.

    Args:
        points: of :func:`race`, seeds one below the other.
    """
    return points.groupby(["seed", "layer"], sort=False)["loss"].min().to_dict()


def layer_table(points: pd.DataFrame) -> pd.DataFrame:
    """Return what each arm needed on each layer until shares of the attainable decrease.

    Attainable is the decrease from the start to :func:`lowest`.

    Args:
        points: of :func:`race`.

    Returns:
        One row a seed, layer and method: units_90, products_90, seconds_90 (until nine tenths), units_99, NaN where
        that was never reached; end, the share reached at the end, and end_loss, the loss there relative to the start.
    """
    rows = []
    floor = lowest(points)
    for key, part in points.groupby(["seed", "layer", "method"], sort=False):
        seed, layer, method = cast("tuple[int, str, str]", key)
        best = part["loss"].min()
        reached = (1 - part["loss"]) / (1 - floor[seed, layer])
        row = {"seed": seed, "layer": layer, "method": method, "end": reached.max(), "end_loss": best}
        row["first"] = reached.iloc[min(1, len(reached) - 1)]
        for percent in (90, 99):
            there = part[reached >= percent / 100]
            first = there.iloc[0] if len(there) else pd.Series(dtype=float)
            row[f"units_{percent}"] = first.get("units", np.nan)
            if percent == 90:
                row["products_90"], row["seconds_90"] = (
                    first.get(name, np.nan) for name in ("image_products", "seconds")
                )
        rows.append(row)
    return pd.DataFrame(rows)


def curves(points: pd.DataFrame, budget: float, step: float = 0.5) -> pd.DataFrame:
    """Return the share of the attainable decrease reached after each number of units, over layers and seeds.

    Args:
        points: of :func:`race`.
        budget: where the curves end, in units.
        step: between the numbers of units.

    Returns:
        One row a method and number of units: method, units, median, low and high (the quartiles), all in percent.
    """
    grid = np.arange(0, budget + step / 2, step)
    floor, rows = lowest(points), []
    for method, arm in points.groupby("method", sort=False):
        reached = []
        for key, part in arm.groupby(["seed", "layer"], sort=False):
            best = np.minimum.accumulate(part["loss"].to_numpy())
            last = np.searchsorted(part["units"].to_numpy(), grid, side="right") - 1
            reached.append((1 - best[last]) / (1 - floor[key]))
        low, median, high = np.quantile(100 * np.array(reached), [0.25, 0.5, 0.75], axis=0)
        columns = {"units": grid, "median": median, "low": low, "high": high}
        rows.append(pd.DataFrame({"method": method, **columns}))
    return pd.concat(rows, ignore_index=True)


def summary(layers: pd.DataFrame) -> pd.DataFrame:
    """Return one row a method: medians over layers and seeds; infinite where most never reached the share.

    Args:
        layers: of :func:`layer_table`.

    Returns:
        Columns units_90, products_90, seconds_90 (relative to Newton-CG), units_99, reached_99 (how many of the fits
        got there) and end, in the order of ``LOOKS``.
    """
    needed = ["units_90", "products_90", "seconds_90", "units_99"]
    grouped = layers.fillna(dict.fromkeys(needed, np.inf)).groupby("method", sort=False)
    table = grouped[needed].median()
    table["seconds_90"] /= table.loc[NEWTON, "seconds_90"]
    table["reached_99"] = grouped["units_99"].agg(lambda column: int(np.isfinite(column).sum()))
    table["end"] = grouped["end"].median()
    return table.reindex([name for name in LOOKS if name in table.index])
