"""Random settings of a run, and the memory that a run with them takes: each in a fork of one process.

Run as a script with seeds, it prints a line of JSON for each: the setting, what was promised, and what was taken.
"""

import json
import os
import random
import re
import resource
import sys
import traceback
import warnings

import torch
from timm.models.vision_transformer import VisionTransformer
from toys import SmallResNet, TorchAttention

import snows_core as snows

NETWORKS = {
    "resnet": lambda size, width: SmallResNet(width=width),
    "vit": lambda size, width: VisionTransformer(
        img_size=size, patch_size=4, embed_dim=width, depth=3, num_heads=4, mlp_ratio=4, num_classes=3
    ),
    "attention": lambda size, width: TorchAttention(dim=width, heads=4),
}
CHOICES = {
    "network": list(NETWORKS),
    "width": [16, 32, 48],
    "size": [16, 24, 32],
    "images": [40, 100, 200],
    "k": [0, 1, 2, 4, 8, "auto"],
    "pattern": ["2:4", "1:4", "0.6"],
    "max_memory": [2e7, 5e7, 1e8, 2e8, 4e8],
    "stages": [1, 1, 2],
    "recipe": ["fast", "fast", "paper"],
}


def random_setting(seed):
    draw = random.Random(seed)
    return {name: draw.choice(values) for name, values in CHOICES.items()}


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measured(setting):
    """Prune with one setting; return the bytes promised for it, and those taken beside network, result and images."""
    torch.manual_seed(0)
    model = NETWORKS[setting["network"]](setting["size"], setting["width"]).eval()
    images = torch.randn(setting["images"], 3, setting["size"], setting["size"])
    options = {name: setting[name] for name in ("k", "pattern", "max_memory", "stages", "recipe")}
    before = resident()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        result = snows.prune(model, images, progress=False, effort="quick", steps=1, cg_iterations=3, **options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    copies = 4 * sum(p.numel() * 4 for p in model.parameters()) + images.numel() * 4  # traced, in the result, shuffled
    more = [found for w in said if (found := re.search(r"less than the (\d+) MB", str(w.message)))]
    promised = max([setting["max_memory"], *(1e6 * float(found[1]) for found in more)])
    return {"promised": promised, "taken": peak - before - copies, "memory": result.manifest["memory"]}


def in_a_fork(setting):
    """Measure in a child process, whose peak begins at what its parent holds; no parent may have used autograd."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            measured(setting | {"images": 40, "size": 16, "width": 16})  # what is loaded once and kept
            os.write(writer, json.dumps(measured(setting)).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        found = file.read()
    assert os.waitpid(child, 0)[1] == 0, setting
    return json.loads(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in map(int, sys.argv[1:]):
        drawn = random_setting(seed)
        print(json.dumps(drawn | in_a_fork(drawn)), flush=True)
