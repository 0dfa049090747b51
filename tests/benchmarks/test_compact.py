"""What compaction is worth: seconds of the masked network over those of the compact one, side by side on one thread."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import snows_core as snows
from snows_core import zoo
from snows_core.export import compare_speed

BATCH = 128
ROUNDS = 30
NAMES = {"digits-resnet20": 1.15, "digits-vit-b": 1.3, "resnet20": 1.15}  # what it is worth at least, beside other work


def network(name):
    """Return a network and images: a shipped one, or ResNet-20 for 32 x 32 with random weights."""
    if name == "resnet20":
        torch.manual_seed(0)
        return zoo.resnet20().eval(), torch.randn(BATCH, 3, 32, 32)
    experiment = zoo.experiment(name)
    return experiment.load_model(), experiment.load_data().train.sample(BATCH, 0)[0]


def operations(model, images):
    with FlopCounterMode(display=False) as counter:
        model(images)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_masked_against_compact(benchmark, name, tmp_path):
    model, images = network(name)
    masked = snows.prune(model, images, "structured:0.5", update="none", effort="quick", progress=False).module
    small = snows.compact(masked, images)
    program = torch.export.load(small.save(tmp_path / "small") / "model.pt2").module()
    with torch.no_grad():
        found = {
            "masked / compact, seconds": compare_speed(masked, small.model, images, ROUNDS).ratio,
            "masked / model.pt2, seconds": compare_speed(masked, program, images, ROUNDS).ratio,
            "masked / dense, seconds": compare_speed(masked, model, images, ROUNDS).ratio,  # zeros alone bring nothing
            "masked / compact, operations": operations(masked, images) / operations(small.model, images),
        }
        benchmark(small.model, images)
    before, left = small.parameters
    benchmark.extra_info |= {key: round(value, 2) for key, value in found.items()}
    benchmark.extra_info["parameters"] = f"{before:,} to {left:,}"
    print(f"\n{name}, structured 0.5, {before:,} to {left:,} parameters, {BATCH} images: ", end="")
    print("; ".join(f"{key} {value:.2f}" for key, value in found.items()))
    assert left < 0.55 * before  # half of every inner layer
    assert min(found["masked / compact, seconds"], found["masked / model.pt2, seconds"]) > NAMES[name]
