"""What compaction is worth: seconds of the masked network over those of the compact one, side by side on one thread."""

import pytest
import torch
from clock import best

import snows_core as snows
from snows_core import zoo

BATCH = 128


@pytest.mark.parametrize("name", ["digits-resnet20", "digits-vit-b"])
def test_masked_against_compact(benchmark, name):
    experiment = zoo.experiment(name)
    model, bundle = experiment.load_model(), experiment.load_data()
    images, _, _ = bundle.train.sample(BATCH, 0)
    masked = snows.prune(model, images, "structured:0.5", update="none", effort="quick", progress=False).module
    small = snows.compact(masked, images)
    with torch.no_grad():
        after = best(lambda: small.model(images), 10)
        ratio = best(lambda: masked(images), 10) / after
        benchmark(small.model, images)
    before, left = small.parameters
    benchmark.extra_info |= {"masked / compact, seconds": round(ratio, 2), "parameters": f"{before:,} to {left:,}"}
    print(f"\n{name}, structured 0.5: masked / compact = {ratio:.2f}; {before:,} to {left:,} parameters")
    assert left < 0.55 * before  # half of every inner layer
    assert ratio > 1.1
