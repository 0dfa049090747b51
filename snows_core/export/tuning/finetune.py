"""A few epochs of training behind pruning, in which every pruned weight stays zero."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.labelled import checked_batches
from snows_core.devices import resolve_device
from snows_core.errors import closest, invalid_argument, shown
from snows_core.evaluate import evaluate, in_eval_mode
from snows_core.export.tuning.given import given_result
from snows_core.export.tuning.retraining import FinetuneOptions, Lesson, Retrained, retrain
from snows_core.interruption import interruptible
from snows_core.loss.features import gives_features, holds_features
from snows_core.network.copies import compute_dtype, in_full_precision, plain_copy, snapshot, unwrap
from snows_core.network.example import run_on_example
from snows_core.provenance import images_digest
from snows_core.result import PruneResult

_AT_A_TIME = 256  # images that are read from a tensor at a time


@interruptible()
def finetune(
    model: PruneResult | nn.Module,
    images: Tensor | Iterable[Any],
    labels: Tensor | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    teacher: nn.Module | None = None,
    test: Any = None,
    **options: Any,
) -> PruneResult:
    """Train a pruned network for a few epochs with its masks held: no pruned weight is ever anything but zero.

    All other parameters learn, those of layers that were left dense and of norms included: by cross-entropy on labels,
    or without labels by the divergence KL(teacher || network) from the dense network; where outputs are features, by
    one minus their cosine. SGD with momentum; the rate falls along half a cosine. Statistics of batch norms stay where
    a method has re-fitted the weights, and are taken anew where zeros alone were set (``batch_norm``). On one machine
    the same seed gives the same weights (on a GPU as far as its kernels do). Ctrl-C keeps the epochs that are done.

    To keep zeros in a training loop of your own, with any optimiser, these lines stand before it:

    .. code-block:: python

        zeros = [(p, p == 0) for p in model.parameters() if p.ndim > 1]  # where the pruned weights are
        def keep_zeros(*_):
            for p, zero in zeros:
                p.data.masked_fill_(zero, 0)
        optimiser.register_step_post_hook(keep_zeros)  # PyTorch calls it after each optimiser.step()

    Args:
        model: a result, or a pruned network in eval mode, whose zeros stay; not changed.
        images: training images (N, C, H, W), a DataLoader or batches, normalised as the network expects; all are held
            in memory.
        labels: class indices (N,) beside a tensor of images; a loader may yield pairs. Left out beside a teacher.
        masks: layer or parameter name to mask, True = kept, beside a network; a result holds its own.
        teacher: the dense network, to learn from instead of labels; not changed.
        test: images to measure accuracy on before and after: a pair (images, labels) of tensors, or a loader that can
            be read twice.
        **options: fields of :class:`FinetuneOptions`: epochs (3), lr (0.01), batch_size (64), momentum (0.9),
            weight_decay (1e-4), batch_norm ("auto", "train" or "frozen"), augment, seed (0), device, progress.

    Returns:
        A new result with the same masks; ``manifest["finetune"]`` says how it was trained, with the loss of each epoch
        and, beside ``test``, what was measured "before" and "after".

    Raises:
        SnowsError: on arguments that cannot work, or a loss that does not stay finite; nothing is changed then.
    """
    before = _result_of(model, masks)
    chosen = _read_options(options)
    if chosen.batch_norm == "auto":
        refitted = before.manifest.get("update", "none") != "none"
        chosen = replace(chosen, batch_norm="frozen" if refitted else "train")
    student = plain_copy(unwrap(before.module))
    dtypes = {name: value.dtype for name, value in snapshot(student).items()}
    in_full_precision(student)
    own = next(iter(student.parameters())).device
    place = resolve_device(chosen.device, own)
    student.to(place).eval()
    xs, ys = _read_images(images, labels, teacher is not None)
    xs = xs.to(compute_dtype(student))
    example = run_on_example(student, xs[:2].to(place))
    features = gives_features(student) or holds_features(example)
    if features and teacher is None:
        got, fix = "a network that gives features, without a teacher", "Pass teacher=, the dense network."
        raise invalid_argument("teacher", got, "the dense network, as there are no classes to learn", fix)
    measured = None if test is None else _measure(before.module, test, teacher, chosen)
    pruned = {before.weight_names[layer]: ~mask for layer, mask in before.masks.items()}
    with ExitStack() as stack:
        taught = None if teacher is None else stack.enter_context(in_eval_mode(teacher, place, "teacher"))
        done = _trained(student, Lesson(xs, ys, taught, features), pruned, chosen)
    _as_before(student, dtypes)
    result = _gathered(before, student.to(own), _record(chosen, done, xs, teacher))
    if measured is not None:
        after = _measure(result.module, test, teacher, chosen)
        result.manifest["finetune"] |= {"before": measured, "after": after}
    return result


def _read_options(options: Mapping[str, Any]) -> FinetuneOptions:
    known = [field.name for field in fields(FinetuneOptions)]
    if odd := next((name for name in options if name not in known), None):
        raise invalid_argument("options", f"'{odd}'", f"one of {', '.join(known)}", closest(odd, known))
    return FinetuneOptions(**options)


def _result_of(model: PruneResult | nn.Module, masks: Mapping[str, Tensor] | None) -> PruneResult:
    """Return what is to be fine-tuned as a result, and refuse one that is not whole."""
    if not isinstance(model, PruneResult):
        return given_result(model, masks)
    if masks is not None:
        raise invalid_argument("masks", "masks beside a result", "None: the result holds its own masks")
    if model.interrupted:
        fix = "Run the same prune again, which goes on where it was."
        raise invalid_argument("model", "a result whose run was interrupted", "one that is complete", fix)
    if not model.masks:
        raise invalid_argument("model", "a result without pruned layers", "one with masks")
    return model


def _read_images(images: Any, labels: Any, taught: bool) -> tuple[Tensor, Tensor | None]:
    """Return all images and, where they are to be learnt, their labels, in one tensor each."""
    if taught and labels is not None:
        raise invalid_argument("labels", "labels beside a teacher", "one of the two", "Leave labels or teacher out.")
    parts = list(checked_batches(images, labels, _AT_A_TIME))
    if not parts:
        raise invalid_argument("images", "no images", "at least one image")
    shapes = {x.shape[1:] for x, _ in parts}
    if len(shapes) > 1 or not parts[0][0].is_floating_point():
        got = f"images of {len(shapes)} shapes" if len(shapes) > 1 else f"dtype {parts[0][0].dtype}"
        raise invalid_argument("images", got, "floating-point images of one shape, normalised as in training")
    xs = torch.cat([x.detach() for x, _ in parts])
    if taught:
        return xs, None
    if any(y is None for _, y in parts):
        fix = "Pass labels, a loader of (images, labels), or teacher=, the dense network, which needs none."
        raise invalid_argument("labels", shown(labels), "a class index for each image", fix)
    return xs, torch.cat([y for _, y in parts if y is not None])


def _trained(student: nn.Module, lesson: Lesson, pruned: Mapping[str, Tensor], options: FinetuneOptions) -> Retrained:
    """Train a network; what it leaves as it was are random numbers of the caller's, and which parameters may learn."""
    wishes = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    place = wishes[0][0].device
    with torch.random.fork_rng([place] if place.type == "cuda" else []), torch.enable_grad():
        torch.manual_seed(options.seed)
        for parameter, _ in wishes:
            parameter.requires_grad_(parameter.is_floating_point())
        done = retrain(student, lesson, pruned, options)
    for parameter, wish in wishes:
        parameter.requires_grad_(wish)
        parameter.grad = None
    return done


def _measure(model: nn.Module, test: Any, teacher: nn.Module | None, options: FinetuneOptions) -> dict[str, Any]:
    """Return what a network reaches on the test images, beside the teacher where there is one."""
    pair = isinstance(test, tuple | list) and len(test) == 2 and all(isinstance(part, Tensor) for part in test)
    images, labels = test if pair else (test, None)
    return evaluate(model, images, labels, reference=teacher, device=options.device).as_dict()


@torch.no_grad()
def _as_before(student: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    """Give parameters and buffers the number formats back that they had."""
    for name, tensor in (*student.named_parameters(), *student.named_buffers()):
        if name in dtypes and tensor.dtype != dtypes[name]:
            tensor.data = tensor.data.to(dtypes[name])


def _record(chosen: FinetuneOptions, done: Retrained, images: Tensor, teacher: nn.Module | None) -> dict[str, Any]:
    asked = chosen.record()
    return asked | {
        "objective": "labels" if teacher is None else "dense network",
        "images": {"count": len(images), "digest": images_digest([images])},
        "epochs": len(done.losses),
        "epochs_asked": asked["epochs"],
        "loss": done.losses,
        "interrupted": done.interrupted,
    }


def _gathered(before: PruneResult, model: nn.Module, record: dict[str, Any]) -> PruneResult:
    """Return the new result; what was measured of the old weights is not true of the new ones."""
    manifest = copy.deepcopy({name: value for name, value in before.manifest.items() if name != "evaluation"})
    if earlier := manifest.get("finetune"):
        record["earlier"] = earlier
    manifest["finetune"] = record
    masks = {name: mask.clone() for name, mask in before.masks.items()}
    return PruneResult(model, masks, before.report.copy(), manifest, snapshot(model), dict(before.weight_names))
