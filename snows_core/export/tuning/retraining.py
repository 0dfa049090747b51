"""A short training of a network whose zeros stay: SGD with a cosine schedule, on labels or a teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from torch.utils import _pytree as pytree
from tqdm.auto import tqdm

from snows_core.activations.calibration import near_equal
from snows_core.errors import SnowsError, integer, invalid_argument, number, one_of, switch
from snows_core.interruption import shielded
from snows_core.loss.features import feature_vectors
from snows_core.loss.scores import divergence, read_labels, read_scores
from snows_core.network.copies import snapshot
from snows_core.settings import Augment
from snows_core.solvers.passes import passes

CLIP = 1.0  # largest norm of the gradient, as where the digits networks are trained


@dataclass(frozen=True)
class FinetuneOptions:
    """How a network is fine-tuned.

    Attributes:
        epochs: passes over all images.
        lr: learning rate of the first step; it falls to nothing along half a cosine.
        batch_size: images a step; sizes of batches differ by one at most.
        momentum: of SGD.
        weight_decay: of SGD, on all parameters.
        batch_norm: "train" normalises by each batch, as in training, and at the end takes the statistics anew as means
            over all images: running ones would lag behind in so few steps. "frozen" normalises by the statistics that
            are there, and keeps them; "auto" is "frozen" where a method has re-fitted the weights to these statistics,
            and "train" where zeros alone were set, which moves them.
        augment: changes a batch at random: a function of (images, generator), for instance ``flip_and_shift``.
        seed: of the order of the images, and of all that is random in the network.
        device: where to compute; default: where the network is.
        progress: whether to show a bar.
    """

    epochs: int = 3
    lr: float = 0.01
    batch_size: int = 64
    momentum: float = 0.9
    weight_decay: float = 1e-4
    batch_norm: Literal["auto", "train", "frozen"] = "auto"
    augment: Augment | None = None
    seed: int = 0
    device: torch.device | str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        integer("epochs", self.epochs, 1, "a number of passes")
        number("lr", self.lr, above=0.0)
        integer("batch_size", self.batch_size, 1, "a number of images")
        number("momentum", self.momentum, below=1.0)
        number("weight_decay", self.weight_decay)
        one_of("batch_norm", self.batch_norm, ["auto", "train", "frozen"])
        if self.augment is not None and not callable(self.augment):
            got = f"a {type(self.augment).__name__}"
            raise invalid_argument("augment", got, "a function of (images, generator), or None")
        integer("seed", self.seed)
        switch("progress", self.progress)

    def record(self) -> dict[str, Any]:
        """Return for a manifest what decides the result."""
        said = asdict(self) | {"optimiser": "SGD, cosine schedule", "clip": CLIP}
        del said["device"], said["progress"]
        augment = self.augment
        return said | {"augment": None if augment is None else getattr(augment, "__name__", str(augment))}


@dataclass(frozen=True)
class Lesson:
    """What a network is fine-tuned on.

    Attributes:
        images: (N, C, H, W), in its number format.
        labels: class indices (N, ...), or None beside a teacher.
        teacher: a function from images to the dense network's outputs, or None beside labels.
        features: whether outputs are features, one vector an image, instead of logits.
    """

    images: Tensor
    labels: Tensor | None
    teacher: Callable[[Tensor], Any] | None
    features: bool

    def loss(self, output: Any, images: Tensor, chosen: Tensor) -> Tensor:
        """Return the mean loss of a batch: cross-entropy, or KL(teacher || network); of features one minus cosine.

        Args:
            output: what the network returned.
            images: the batch, as the network saw it.
            chosen: positions of its images (n,).

        Returns:
            One number; NaN where an output is not finite.
        """
        if not all(bool(torch.isfinite(leaf).all()) for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)):
            return torch.tensor(math.nan)
        count = len(images)
        if self.teacher is None:
            assert self.labels is not None  # one of the two is there
            scores = read_scores(output, count)
            wanted, counted = read_labels(self.labels[chosen], scores)
            each = F.cross_entropy(scores.logits, wanted, reduction="none")
            return each.mean() if counted is None else (each * counted).sum() / counted.sum().clamp(min=1)
        target = self.teacher(images)
        if self.features:
            own, ideal = feature_vectors(output, count), feature_vectors(target, count, "teacher")
            return 1 - F.cosine_similarity(own, ideal.to(own)).mean()
        scores = read_scores(output, count)
        return divergence(scores, read_scores(target, count, "teacher")) / scores.logits[:, 0].numel()


@dataclass(frozen=True)
class Retrained:
    """How far a training came.

    Attributes:
        losses: mean of each finished pass, as its steps were made.
        interrupted: whether it ended before the last pass; the network is then that of the last finished one.
    """

    losses: list[float]
    interrupted: bool


def retrain(student: nn.Module, lesson: Lesson, pruned: Mapping[str, Tensor], options: FinetuneOptions) -> Retrained:
    """Train a network in place, zeros excepted: no gradient reaches them, and after every step they are set to zero.

    Args:
        student: in single precision at least, where it is computed; left in eval mode.
        lesson: images on the CPU or there, and what is right.
        pruned: parameter name to bool tensor, True where a weight stays zero.
        options: how.

    Returns:
        Losses, and whether Ctrl-C ended it.

    Raises:
        SnowsError: where the loss does not stay finite.
        KeyboardInterrupt: before the first pass was finished.
    """
    parameters = dict(student.named_parameters())
    held = [(parameters[name], zero.to(parameters[name].device)) for name, zero in pruned.items()]
    sizes = _batches(student, len(lesson.images), options)
    generator = torch.Generator().manual_seed(options.seed)
    optimiser = torch.optim.SGD(
        parameters.values(), lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
    )
    optimiser.register_step_post_hook(lambda *_: set_to_zero(held))
    steps = options.epochs * len(sizes)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    place = next(iter(parameters.values())).device
    bar = tqdm(desc="fine-tuning", unit="batch", total=steps, disable=not options.progress)

    def step(chosen: Tensor) -> float:
        images = lesson.images[chosen]
        images = (images if options.augment is None else options.augment(images, generator)).to(place)
        loss = lesson.loss(student(images), images, chosen)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise _diverged(options.lr, value)
        optimiser.zero_grad()
        loss.backward()
        for parameter, zero in held:  # neither the norm nor the momentum shall know of them
            if parameter.grad is not None:
                parameter.grad.masked_fill_(zero, 0.0)
        nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimiser.step()
        schedule.step()
        bar.update()
        return value

    losses, kept = list[float](), dict[str, Tensor]()
    _training_mode(student, options)
    try:
        with bar:
            for loss in passes(len(lesson.images), sizes, options.epochs, generator, step):
                with shielded():
                    losses, kept = [*losses, loss], snapshot(student)
                bar.set_postfix(loss=f"{loss:.4f}")
    except KeyboardInterrupt:
        if not losses:
            raise
        with torch.no_grad():
            for name, value in student.state_dict().items():
                if name in kept:
                    value.copy_(kept[name])
    if options.batch_norm == "train":
        update_bn(torch.split(lesson.images, sizes), student, place)  # nothing where there is no batch norm
    student.eval()
    if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters.values()):
        raise _diverged(options.lr, math.nan)
    return Retrained(losses, len(losses) < options.epochs)


@torch.no_grad()
def set_to_zero(held: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Set parameters to zero where their tensor of bools is True; numbers that are not finite become zero, too."""
    for parameter, zero in held:
        parameter.masked_fill_(zero, 0.0)


def _training_mode(student: nn.Module, options: FinetuneOptions) -> None:
    """Put a network into training mode, its batch norms into eval mode where they are frozen."""
    student.train()
    if options.batch_norm == "frozen":
        for module in student.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _batches(student: nn.Module, count: int, options: FinetuneOptions) -> list[int]:
    """Return the sizes of the batches; batch norm cannot normalise by a batch of one."""
    sizes = near_equal(count, options.batch_size)
    normed = options.batch_norm == "train" and any(isinstance(module, _BatchNorm) for module in student.modules())
    if normed and min(sizes) < 2:
        got, fix = (
            f"{options.batch_size} for {count} images, which makes a batch of one",
            "Or pass batch_norm='frozen'.",
        )
        raise invalid_argument("batch_size", got, "batches of two images or more, as the network has batch norm", fix)
    return sizes


def _diverged(lr: float, value: float) -> SnowsError:
    got, expected = f"{lr:g}, with which the loss or a weight became {value}", "a rate with which all stays finite"
    return invalid_argument("lr", got, expected, f"For instance lr={lr / 10:g}.")
