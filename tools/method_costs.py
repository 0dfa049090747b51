"""Seconds of every layer-wise method against its cost formula: `python tools/method_costs.py` prints a table.

Rates of the machine are measured first, in the same run and on one thread (:mod:`snows_core.sweep.rates`); with them
the formula of a method (:mod:`snows_core.methods.cost`) tells the seconds that a small linear layer, a wide one of 4096
x 1024 and a depthwise convolution should take. A method is slow where "measured / formula" is above two on the wide
layer; on small ones calls count that no formula has. The losses of a report are computed for the method "snows" alone.
"""

from __future__ import annotations

import argparse
import math
import os

import pandas as pd
import torch
from torch import Tensor, nn

from snows_core.activations.cache import ActivationCache
from snows_core.devices import factor_bytes
from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS, Budget, LayerProblem, LayerValues, multiply_adds
from snows_core.methods.base import LayerMethod, LayerSolution, LayerStatistics
from snows_core.methods.problem import Before
from snows_core.network.graph import Network
from snows_core.settings import get_recipe
from snows_core.sweep.rates import measured_rates

K, SPARSITY = 1, 0.5
UNMEASURED = LayerStatistics(K, math.nan, math.nan, math.nan)


def linear(outputs: int, inputs: int) -> tuple[nn.Module, Tensor]:
    """Return a linear layer between two others, and 128 images of 16 tokens."""
    parts = nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, outputs), nn.ReLU(), nn.Linear(outputs, 16)
    return nn.Sequential(*parts), torch.randn(128, 16, inputs)


def depthwise(channels: int, side: int = 14) -> tuple[nn.Module, Tensor]:
    """Return a depthwise convolution between two of 1 x 1, and 64 images of so many positions a side."""
    middle = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    parts = nn.Conv2d(channels, channels, 1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(channels, 16, 1)
    return nn.Sequential(*parts), torch.randn(64, channels, side, side)


class Prepared:
    """A layer behind one that has lost a tenth of its weights' size.

    Args:
        model: three layers, of which the middle one is solved.
        images: calibration images.
        room: bytes for what a method holds of some rows at a time.
    """

    def __init__(self, model: nn.Module, images: Tensor, room: float) -> None:
        self.network, self.images, self.room = Network(model.eval()), images, room
        first, self.layer, _ = self.network.layers
        self.segment = self.network.segment(self.layer, K)
        self.weight = self.network.weight(self.layer)
        self.mask = Unstructured(SPARSITY).mask(self.weight.abs())
        self.pruned, self.dense = (ActivationCache(self.network, list(images.split(64))) for _ in range(2))
        self.pruned.weights[first.weight_name] = 0.9 * self.network.weight(first)
        taps = (*self.segment.taps, self.layer.node.all_input_nodes[0])
        self.dense.needed_until = dict.fromkeys(taps, len(self.network.nodes))
        self.pruned.advance(self.network.index[self.layer.node])
        self.dense.advance(len(self.network.nodes))

    def problem(self, pattern: NM | Unstructured | None) -> LayerProblem:
        """Return the problem anew, so that nothing is known beforehand; with a pattern, every weight may stay."""
        values = LayerValues(self.pruned, self.dense, [range(len(self.pruned.sizes))])
        mask = self.mask if pattern is None else torch.ones_like(self.mask)
        made = LayerProblem(self.network, [self.segment], mask, values, torch.Generator().manual_seed(0))
        made.pattern, made.before = pattern, Before(None, self.mask)
        made.budget = Budget(factor_bytes=factor_bytes(self.weight.device), working_bytes=self.room)
        return made

    def sizes(self) -> dict[str, float]:
        """Return what the symbols of a formula stand for."""
        problem = self.problem(None)
        positions, (outputs, inputs) = len(self.images) * problem.positions, self.weight.flatten(1).shape
        return {
            **{"n": positions, "o": float(outputs), "d": float(inputs), "g": float(problem.geometry.groups)},
            **{"k": float(self.mask.flatten(1).sum(1).float().mean()), "f": positions * outputs * inputs},
        }


def solved(method: type[LayerMethod], problem: LayerProblem) -> None:
    """Solve a layer, or choose its mask, without the losses that a report would show."""
    solver = method(get_recipe("fast"), K)
    solver.solution = lambda problem, weight, mask, stop: LayerSolution(weight, mask, UNMEASURED)  # type: ignore[method-assign]
    if method.updates_weights:
        solver.solve(problem)
    else:
        solver.choose(problem)


def seconds(method: type[LayerMethod], problem: LayerProblem) -> float:
    """Return the seconds that a solve computes: another process beside it, and pages of memory, do not count."""
    start = os.times().user
    solved(method, problem)
    return os.times().user - start


def rows(name: str, layer: Prepared, names: list[str]) -> list[dict[str, object]]:
    """Return one row for each method and what it is asked for on one layer."""
    rates, sizes, found = measured_rates(layer.weight.device), layer.sizes(), []
    for method in (METHODS[name] for name in names):
        patterns = [None, Unstructured(SPARSITY)] if method.chooses_masks else [None]
        patterns += [NM(2, 4)] if method.chooses_groups and method.chooses_masks and sizes["d"] % 4 == 0 else []
        for pattern in patterns[not method.updates_weights :]:
            problem = layer.problem(pattern)
            took = seconds(method, problem)
            foretold = multiply_adds(method.origin.cost, **sizes).seconds(rates)
            asked = "update" if pattern is None else str(pattern)
            row = {"layer": name, "method": next(n for n in names if METHODS[n] is method), "asked": asked}
            found.append(row | {"seconds": took, "formula": foretold, "measured / formula": took / foretold})
            print(pd.DataFrame(found[-1:]).round(3).to_string(index=False, header=len(found) == 1), flush=True)
    return found


def main() -> None:
    """Print the table, layer by layer as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(METHODS), help="names with commas between")
    parser.add_argument("--outputs", type=int, default=4096, help="rows of the wide layer")
    parser.add_argument("--layers", default="small,depthwise,wide", help="names with commas between")
    parser.add_argument("--room", type=float, default=5e8, help="bytes for what a method holds of some rows at a time")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = {
        "small": lambda: linear(256, 128),
        "depthwise": lambda: depthwise(256),
        "wide": lambda: linear(options.outputs, 1024),
    }
    tiny = Prepared(*linear(16, 16), options.room)
    for name in options.methods.split(","):  # what is loaded at a first use is not measured
        solved(METHODS[name], tiny.problem(Unstructured(SPARSITY) if METHODS[name].chooses_masks else None))
    for name in options.layers.split(","):
        rows(name, Prepared(*layers[name](), options.room), options.methods.split(","))


if __name__ == "__main__":
    main()
