"""Train the digits networks that the package ships; every number of a shipped file comes from this code."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from snows_core.errors import closest, invalid_argument
from snows_core.evaluate import Metrics, evaluate
from snows_core.files import try_to_write, write_text, write_whole
from snows_core.provenance import versions
from snows_core.solvers.passes import passes
from snows_core.zoo.digits import load_digits
from snows_core.zoo.networks import DIGITS_NETWORKS
from snows_core.zoo.weights import read_state


@dataclass(frozen=True)
class TrainRecipe:
    """How one network is trained: AdamW with a one-cycle learning rate on cross-entropy, random shifts of the images.

    Attributes:
        epochs: passes over the 1,200 training digits.
        rate: peak learning rate.
        weight_decay: of AdamW.
        warmup: part of the steps in which the rate rises.
        batch: images a step.
        shift: largest shift in pixels, each direction.
        clip: largest norm of the gradient.
        smoothing: label smoothing.
        stored_as: number format of the shipped weights; accuracy is measured after that rounding.
    """

    epochs: int
    rate: float
    weight_decay: float
    warmup: float
    batch: int = 64
    shift: int = 2
    clip: float = 1.0
    smoothing: float = 0.0
    stored_as: str = "float32"


RECIPES = {
    "digits-resnet20": TrainRecipe(epochs=15, rate=5e-3, weight_decay=0.05, warmup=0.2),
    "digits-resnet50": TrainRecipe(epochs=30, rate=3e-3, weight_decay=0.05, warmup=0.2),
    "digits-vit-b": TrainRecipe(epochs=120, rate=1e-3, weight_decay=0.05, warmup=0.2, stored_as="float16"),
    "digits-vit-l": TrainRecipe(epochs=100, rate=1e-3, weight_decay=0.05, warmup=0.2, stored_as="float16"),
}


def shifted(images: Tensor, largest: int, background: float, generator: torch.Generator) -> Tensor:
    """Shift every image (N, C, H, W) by its own random amount up to ``largest`` pixels; the rim is background."""
    n, _, height, width = images.shape
    padded = F.pad(images, [largest] * 4, value=background)
    down, right = torch.randint(0, 2 * largest + 1, (2, n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = (right + torch.arange(width))[:, None, None, :]
    picked = torch.arange(n)[:, None, None, None], torch.arange(images.shape[1])[None, :, None, None]
    return padded[picked[0], picked[1], rows, columns]


def fit(model: nn.Module, recipe: TrainRecipe, seed: int, progress: bool = True, name: str = "training") -> nn.Module:
    """Train a network on the training digits, in place; seeded, so one machine repeats it exactly.

    Args:
        model: maps images (N, 1, 16, 16) to logits (N, 10).
        recipe: epochs, rates and so on.
        seed: of the batches and shifts.
        progress: whether to show a bar.
        name: what the bar is called.

    Returns:
        The same model, in eval mode.
    """
    bundle = load_digits()
    images, labels = bundle.train.tensors()
    assert labels is not None  # the digits have labels
    generator = torch.Generator().manual_seed(seed)
    background = -bundle.mean[0] / bundle.std[0]
    steps = -(-len(images) // recipe.batch)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=recipe.rate, total_steps=recipe.epochs * steps, pct_start=recipe.warmup
    )
    model.train()

    def step(chosen: Tensor) -> float:
        batch = shifted(images[chosen], recipe.shift, background, generator)
        loss = F.cross_entropy(model(batch), labels[chosen], label_smoothing=recipe.smoothing)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimiser.step()
        schedule.step()
        return float(loss.detach())

    losses = passes(len(images), recipe.batch, recipe.epochs, generator, step)
    bar = tqdm(losses, desc=name, unit="epoch", total=recipe.epochs, disable=not progress)
    for loss in bar:
        bar.set_postfix(loss=f"{loss:.4f}")
    return model.eval()


def train(name: str, out: str | Path | None = None, seed: int = 0, progress: bool = True) -> Metrics:
    """Train one of the shipped digits networks from scratch and write it beside a record of how.

    Runs on the CPU with one thread, whatever the caller's setting, because the order of sums changes the result.
    ``snows train digits-resnet20 --out FOLDER`` is this function.

    Args:
        name: "digits-resnet20", "digits-resnet50", "digits-vit-b" or "digits-vit-l".
        out: folder for ``<name>.safetensors`` and ``<name>.json``; default the current one.
        seed: of initial weights, batches and shifts; the shipped files have seed 0.
        progress: whether to show a bar.

    Returns:
        Accuracy on the 597 test digits of the weights as they were written.

    Raises:
        SnowsError: on an unknown name, or a folder that cannot be written.
    """
    if name not in RECIPES:
        raise invalid_argument("name", name, f"one of {', '.join(RECIPES)}", closest(name, RECIPES))
    folder = Path(out) if out is not None else Path.cwd()
    try:
        try_to_write(folder)
    except (OSError, ValueError) as error:
        got = f"{folder}, which cannot be written ({getattr(error, 'strerror', None) or error})"
        raise invalid_argument("out", got, "a folder that can be made", "Choose another place.") from error
    recipe, threads = RECIPES[name], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = fit(DIGITS_NETWORKS[name](), recipe, seed, progress, name)
        metrics = _write(model, name, folder, recipe, seed)
    finally:
        torch.set_num_threads(threads)
    return metrics


def _write(model: nn.Module, name: str, folder: Path, recipe: TrainRecipe, seed: int) -> Metrics:
    """Store weights and record; return what the stored weights reach on the test digits."""
    stored = getattr(torch, recipe.stored_as)
    state = {
        key: (value.to(stored) if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    weights = folder / f"{name}.safetensors"
    write_whole(weights, lambda path: save_file(state, path))
    model.load_state_dict(read_state(weights))
    metrics = evaluate(model, *load_digits().test.tensors())
    assert metrics.accuracy is not None  # the digits have labels
    record = {
        "name": name,
        "accuracy": round(metrics.accuracy, 2),
        "test_images": metrics.images,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": weights.stat().st_size,
        "command": f"snows train {name} --seed {seed}",
        "seed": seed,
        "threads": torch.get_num_threads(),
        "recipe": asdict(recipe),
        "versions": {package: version for package, version in versions().items() if version != "not installed"},
    }
    write_text(folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
    return metrics
