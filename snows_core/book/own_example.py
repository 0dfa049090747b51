"""What a reader of the notebook on one's own network would bring: trained weights in a file, and a folder of images.

The digits stand in for both. Of the 1,200 training digits 900 train, and on the other 300 the accuracy is measured that
goes with the weights; the folder has the 597 test digits. So no image of the folder had a part in either.
"""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from snows_core.evaluate import evaluate
from snows_core.zoo import load_data

TRAINED = 900  # of the training digits; the others give the accuracy that is stated
BATCH, RATE, WEIGHT_DECAY, WARMUP = 64, 5e-3, 0.05, 0.2


def write_example_folder(root: Path) -> Path:
    """Write the test digits as ``val/<digit>/<number>.png``, 16 x 16 pixels in grey.

    Args:
        root: where ``val`` is to be.

    Returns:
        The same path.
    """
    bundle = load_data("digits")
    images, labels = bundle.test_tensors()
    pixels = ((images * bundle.std[0] + bundle.mean[0]) * 255).round().clamp(0, 255).to(torch.uint8)
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        file = root / "val" / bundle.classes[label] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(file)
    return root


def train_example(network: nn.Module, file: Path, epochs: int = 8, seed: int = 0) -> None:
    """Train a network on digits, and save it as many projects do, with the accuracy that it reaches beside it.

    The file holds ``{"state_dict": ..., "accuracy": percent, "images": how many it was measured on}``. One thread
    computes, so that the order of sums, and with it the result, depends less on the machine.

    Args:
        network: maps images (N, 1, 16, 16) to logits (N, 10); trained in place, and in eval mode afterwards.
        file: where to save it.
        epochs: passes over the images.
        seed: of the order of the images and of their shifts.
    """
    x, y = load_data("digits").train.tensors()
    assert y is not None  # the digits have labels
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _fit(network, x[:TRAINED], y[:TRAINED], epochs, torch.Generator().manual_seed(seed))
        stated = evaluate(network, x[TRAINED:], y[TRAINED:])
    finally:
        torch.set_num_threads(threads)
    torch.save({"state_dict": network.state_dict(), "accuracy": stated.accuracy, "images": stated.images}, file)


def _fit(network: nn.Module, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=RATE, total_steps=steps, pct_start=WARMUP)
    network.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x), generator=generator).split(BATCH):
            shift = torch.randint(-1, 2, (2,), generator=generator).tolist()
            optimiser.zero_grad()
            F.cross_entropy(network(x[chosen].roll(shift, (2, 3))), y[chosen]).backward()
            optimiser.step()
            schedule.step()
    network.eval()
