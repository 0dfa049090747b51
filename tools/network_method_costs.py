"""Seconds of every method for the whole network against its cost formula: `python tools/network_method_costs.py`.

As in tools/method_costs.py the rates of the machine are measured first, in the same run and on one thread. Two networks
of three layers are pruned as a whole, masks and the method's own weights: one around a linear layer of 4096 x 1024, one
around a depthwise convolution. A formula that ends in "of each layer that reads units" is added up over these layers. A
method is slow where "measured / formula" is above two.
"""

from __future__ import annotations

import argparse
import os

import pandas as pd
import torch
from method_costs import depthwise, linear
from torch import Tensor, nn

from snows_core.methods import NETWORK_METHODS, Rates, Work, multiply_adds
from snows_core.network.positions import output_positions
from snows_core.prune import prune
from snows_core.settings import PruneSettings
from snows_core.sweep.network_steps import NetworkSteps
from snows_core.sweep.prepare import Prepared, checked_settings, prepare
from snows_core.sweep.rates import measured_rates

UNSTRUCTURED, STRUCTURED, FLOPS = "global:0.5", "structured:0.5", 0.4
BY_LAYER = "of each layer that reads units"


def pooled(parts: tuple[nn.Module, Tensor]) -> tuple[nn.Module, Tensor]:
    """Return a convolutional network with one answer an image."""
    model, images = parts
    return nn.Sequential(*model.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), images


def vectors(outputs: int, inputs: int) -> tuple[nn.Module, Tensor]:
    """Return the linear layers on 128 vectors instead of tokens."""
    model, images = linear(outputs, inputs)
    return model, images[:, 0]


def settings_for(name: str, memory: int) -> PruneSettings:
    """Return what asks for a method's masks and weights."""
    method = NETWORK_METHODS[name]
    asked = {
        "pattern": UNSTRUCTURED if method.chooses_weights else STRUCTURED,
        "update": name if method.updates_weights and not method.layer_update else "none",
        "flops": FLOPS if method.bounds_flops else None,
    }
    return checked_settings(prune, mask=name, effort="quick", layers="*", k=1, max_memory=memory, **asked)


def formula(name: str, prepared: Prepared, images: Tensor, rates: Rates) -> float:
    """Return the seconds that the formula of a method foretells."""
    network, layers = prepared.network, [entry.layer for entry in prepared.layers]
    weights = {layer.name: network.weight(layer) for layer in layers}
    positions = output_positions(network, layers, images[:1])
    passes = len(images) * sum(positions[layer] * weight.numel() for layer, weight in weights.items())
    outputs = float(network.module(images[:1]).shape[1])
    cost, pattern = NETWORK_METHODS[name].origin.cost, prepared.schedule[-1]
    groups = getattr(pattern, "groups", ())
    sizes = {"f": float(passes), "n": float(len(images)), "o": outputs, "g": 1.0, "d": 0.0}
    sizes |= {"p": float(sum(w.numel() for w in weights.values())), "u": float(sum(group.count for group in groups))}
    if BY_LAYER not in cost:
        return multiply_adds(cost, **sizes).seconds(rates)
    total = multiply_adds(cost, **{**sizes, "n": 0.0, "o": 0.0}).seconds(rates)  # the passes alone
    for layer in (one for one in layers if any(part.layer == one.name for group in groups for part in group.readers)):
        rows, inputs = weights[layer.name].flatten(1).shape
        of_layer = {"n": len(images) * positions[layer.name], "o": float(rows), "d": float(inputs)}
        work: Work = multiply_adds(cost, **{**sizes, **of_layer, "f": 0.0})
        total += work.seconds(rates)
    return total


def row(name: str, title: str, model: nn.Module, images: Tensor, memory: int) -> dict[str, object]:
    """Return measured and foretold seconds of a method on one network."""
    settings = settings_for(name, memory)
    prepared = prepare(model.eval(), [images[:2]], settings)
    steps = NetworkSteps(prepared, images, settings)
    rates = measured_rates(images.device)
    start = os.times().user
    masks = steps.masks(prepared.schedule[-1], {})
    if settings.update == name:
        steps.weights(prepared.schedule[-1], {}, masks)
    took, foretold = os.times().user - start, formula(name, prepared, images, rates)
    asked = str(prepared.schedule[-1]) if settings.pattern != STRUCTURED else STRUCTURED
    return {"network": title, "method": name, "asked": asked, "seconds": took, "formula": foretold} | {
        "measured / formula": took / foretold
    }


def main() -> None:
    """Print the table, row by row as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default=",".join(NETWORK_METHODS), help="names with commas between")
    parser.add_argument("--outputs", type=int, default=4096, help="rows of the wide layer")
    parser.add_argument("--networks", default="depthwise,wide", help="names with commas between")
    parser.add_argument("--memory", type=float, default=4e9, help="bytes, as max_memory takes them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = {"depthwise": lambda: pooled(depthwise(256, 28)), "wide": lambda: vectors(options.outputs, 1024)}
    tiny = vectors(16, 16)
    first = True
    for name in options.methods.split(","):  # what is loaded at a first use is not measured
        row(name, "", *tiny, int(options.memory))
    for title in options.networks.split(","):
        for name in options.methods.split(","):
            found = pd.DataFrame([row(name, title, *networks[title](), int(options.memory))])
            print(found.round(3).to_string(index=False, header=first), flush=True)
            first = False


if __name__ == "__main__":
    main()
