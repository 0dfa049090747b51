"""evaluate.py: accuracy, agreement and divergence on any batching; nothing of the networks is changed."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from toys import random_images, small_resnet

from snows_core.errors import SnowsError
from snows_core.evaluate import evaluate

IMAGES = random_images(23)
LABELS = torch.arange(23) % 3


class Fixed(nn.Module):
    """Returns the image's first three numbers, scaled, as logits."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        return self.scale * x.flatten(1)[:, :3]


def test_accuracy_counts_in_percent():
    images = torch.zeros(4, 3, 2, 2)
    images.flatten(1)[torch.arange(4), torch.tensor([0, 1, 2, 2])] = 1.0
    assert evaluate(Fixed(), images, torch.tensor([0, 1, 2, 0])).accuracy == 75.0


def test_agreement_and_divergence_against_the_formula():
    dense, other = small_resnet(), small_resnet(seed=4)
    metrics = evaluate(other, IMAGES, LABELS, reference=dense, batch_size=10)
    p, q = (F.softmax(net(IMAGES), 1) for net in (dense, other))
    kl = float((p * (p.log() - q.log())).sum(1).mean().detach())
    assert metrics.kl == pytest.approx(kl, rel=1e-9)
    assert metrics.agreement == pytest.approx(100 * float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert metrics.accuracy == pytest.approx(100 * float((q.argmax(1) == LABELS).double().mean()))
    assert metrics.images == 23 and metrics.as_dict()["images"] == 23


def test_a_network_agrees_with_itself():
    model = small_resnet()
    metrics = evaluate(model, IMAGES, reference=model)
    assert metrics.agreement == 100.0 and metrics.kl == pytest.approx(0.0, abs=1e-12) and metrics.accuracy is None


def test_tensors_loaders_and_ragged_batches_agree():
    model, dense = small_resnet(seed=4), small_resnet()
    whole = evaluate(model, IMAGES, LABELS, reference=dense)
    pairs = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=7)
    for source in (pairs, list(pairs), ((x, y) for x, y in pairs)):
        metrics = evaluate(model, source, reference=dense)
        assert metrics.accuracy == whole.accuracy and metrics.kl == pytest.approx(whole.kl, rel=1e-9)
    unlabelled = evaluate(model, DataLoader(IMAGES, batch_size=5), reference=dense)
    assert unlabelled.accuracy is None and unlabelled.agreement == whole.agreement


def test_modes_and_statistics_are_restored_also_on_error():
    model = small_resnet().train()
    mean = model.bn1.running_mean.clone()
    evaluate(model, IMAGES)
    with pytest.raises(RuntimeError):
        evaluate(model, IMAGES[:, :1])
    assert model.training and model.layer1.training and torch.equal(model.bn1.running_mean, mean)


def test_parts_in_another_mode_keep_it():
    model = small_resnet().train()
    model.bn1.eval()
    evaluate(model, IMAGES)
    assert model.training and not model.bn1.training


def test_no_gradients_are_kept():
    model = Fixed()
    evaluate(model, IMAGES.float(), LABELS)
    assert model.scale.grad is None


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (IMAGES[:0], None, r"images: got no images; expected at least one image"),
        ([], None, r"images: got no images"),
        (IMAGES, LABELS[:5], r"labels: got 5 labels; expected one per image \(23\)"),
        ([IMAGES], LABELS, r"labels: got a tensor beside a loader; expected None"),
    ],
)
def test_bad_input_is_refused(images, labels, message):
    with pytest.raises(SnowsError, match=message):
        evaluate(small_resnet(), images, labels)


def test_divergence_of_certain_wrong_answers_is_large_and_finite():
    metrics = evaluate(Fixed(-50), IMAGES.float(), reference=Fixed(50))
    assert metrics.kl > 10 and math.isfinite(metrics.kl)
