"""Results made up without a run, and layers whose state is hard to store."""

import warnings

import pandas as pd
from torch import nn
from toys import random_images, random_mask, small_resnet

import snows_core as snows

FILES = ["manifest.json", "masks.safetensors", "model.safetensors", "report.csv"]


def made_up(names=("a",), **columns):
    """Return a result with layers of any name, without a network."""
    mask = random_mask((2, 4))
    rows = [
        {
            "layer": name,
            "kind": "linear",
            "shape": "2x4",
            "weights": 8,
            "kept": int(mask.sum()),
            "sparsity": 1 - float(mask.float().mean()),
            "status": "pruned",
            "reason": "",
            "k": 5,
            "loss_end": 0.1 + i / 3,
            "stop": "the gradient is zero",
        }
        for i, name in enumerate(names)
    ]
    return snows.PruneResult(
        None,
        dict.fromkeys(names, mask),
        pd.DataFrame(rows).assign(**columns),
        {"pattern": "2:4"},
        {f"{name}.weight": mask * 1.0 for name in names},
        {name: f"{name}.weight" for name in names},
    )


class WithExtra(nn.Module):
    """A layer with extra state, an object or a tensor."""

    def __init__(self, extra, fails=False):
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.extra, self.fails = extra, fails

    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        if self.fails:
            raise TypeError("not mine")
        self.extra = state


def small_result():
    """Return the result of a short run on few images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return snows.prune(small_resnet(), random_images(8), k=2, progress=False, effort="quick")
