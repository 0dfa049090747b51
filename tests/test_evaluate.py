"""evaluate.py: accuracy, agreement and divergence on any batching; nothing of the networks is changed."""

import copy
import importlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
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
    with pytest.raises(SnowsError, match=r"which the model refuses .*channels"):
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


def test_batches_of_every_form_give_the_same_figures():
    model = small_resnet()
    expected = evaluate(model, IMAGES, LABELS)
    whole = {"pixel_values": IMAGES, "labels": LABELS}
    sources = [
        whole,
        [whole],
        [{"image": x, "label": y} for x, y in zip(IMAGES.split(5), LABELS.split(5), strict=True)],
        [
            (IMAGES[:9], LABELS[:9], "more"),
            (IMAGES[9:9], LABELS[9:9], "empty"),
            (IMAGES[9:], LABELS[9:].tolist(), "more"),
        ],
    ]
    for source in sources:
        assert evaluate(model, source) == expected
    assert evaluate(model, [(IMAGES[:9], LABELS[:9]), IMAGES[9:]]).images == 23


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images: got int; expected a tensor"),
        ("images.pt", "images: got a batch of type str; .*load_data"),
        (IMAGES[0], r"images: got shape \(3, 8, 8\); .*unsqueeze\(0\)"),
        ((IMAGES, LABELS), r"images: got shape \(23,\); .*evaluate\(model, images, labels\)"),
        (TensorDataset(IMAGES, LABELS), "images: got a single image .*DataLoader"),
        ([(IMAGES, ["cat"] * 23)], "labels: got a list of str in a batch"),
        ([(IMAGES, LABELS[:5])], r"labels: got 5 labels; expected one per image \(23\)"),
    ],
)
def test_what_are_no_batches_is_refused(images, message):
    with pytest.raises(SnowsError, match=message):
        evaluate(small_resnet(), images)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_batch_sizes_below_one_are_refused(size):
    with pytest.raises(SnowsError, match="batch_size: got"):
        evaluate(small_resnet(), IMAGES, batch_size=size)


def test_what_is_no_network_or_device_is_refused():
    with pytest.raises(SnowsError, match=r"model: got str; .*result\.model"):
        evaluate("resnet", IMAGES)
    with pytest.raises(SnowsError, match="reference: got dict"):
        evaluate(small_resnet(), IMAGES, reference={})
    for name in ("gpu", "cuda:99", "meta", "cpu:3", 2.5):
        with pytest.raises(SnowsError, match=f"device: got '{name}'"):
            evaluate(small_resnet(), IMAGES, device=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_take_single_precision_images(dtype):
    model = small_resnet().float()
    half = copy.deepcopy(model).to(dtype)
    found = evaluate(half, IMAGES.float(), LABELS, reference=model)
    assert found.agreement > 80 and 0 <= found.kl < 0.01
    with torch.no_grad():
        q = F.log_softmax(half(IMAGES.to(dtype)).float(), 1)
        p = F.log_softmax(model(IMAGES.float()), 1)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert next(half.parameters()).dtype == dtype


def test_inference_mode_and_autocast_around_the_call():
    model, dense = small_resnet(seed=4).float(), small_resnet().float()
    expected = evaluate(model, IMAGES, LABELS, reference=dense)
    with torch.inference_mode():
        assert evaluate(model, IMAGES.clone(), LABELS.clone(), reference=dense) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, IMAGES, LABELS, reference=dense).kl == pytest.approx(expected.kl, rel=0.1)
    assert not model(IMAGES[:1].float()).is_inference()


def test_a_network_that_writes_into_its_image_alters_nothing_of_the_callers():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, x):
            return self.net(x.mul_(2).sub_(1))

    images = IMAGES.clone()
    twin = Writes()
    first = evaluate(twin, images, LABELS, reference=twin)
    assert torch.equal(images, IMAGES) and first.agreement == 100 and first.kl == pytest.approx(0, abs=1e-12)
    batches = [(images, LABELS)]
    assert evaluate(twin, batches, reference=twin) == first == evaluate(twin, batches, reference=twin)
    assert torch.equal(images, IMAGES)


@pytest.fixture
def meta_counts_as_a_device(monkeypatch):
    module = importlib.import_module("snows_core.evaluate")
    monkeypatch.setattr(module, "resolve_device", lambda device, model_device: torch.device(device or model_device))


@pytest.mark.usefixtures("meta_counts_as_a_device")
def test_a_network_elsewhere_is_computed_on_a_copy_and_stays():
    """The device "meta" computes no numbers: it shows that the network came there as a copy."""
    model = small_resnet().train()
    model.bn1.eval()
    seen = []
    model.conv1.register_forward_hook(lambda module, inputs, output: seen.append((module, output.device.type)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((RuntimeError, NotImplementedError)):
        evaluate(model, IMAGES, device="meta")
    assert seen[0][1] == "meta" and seen[0][0] is not model.conv1
    assert {p.device.type for p in model.parameters()} == {"cpu"} and model.training and not model.bn1.training
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    evaluate(model, IMAGES, device="cpu")
    assert seen[-1][0] is model.conv1, "no copy where the network is on the device already"


@pytest.mark.usefixtures("meta_counts_as_a_device")
def test_a_copy_is_made_of_masked_networks_and_refused_where_it_cannot_be():
    model = small_resnet()
    prune.l1_unstructured(model.conv1, "weight", 0.5)
    model(IMAGES)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        evaluate(model, IMAGES, device="meta")
    model.lock = (i for i in range(3))
    with pytest.raises(SnowsError, match=r"cannot be copied there .*model.to\(device\)"):
        evaluate(model, IMAGES, device="meta")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_gives_the_figures_of_the_cpu_and_leaves_the_networks_there():
    model, dense = small_resnet(seed=4), small_resnet()
    found = evaluate(model, IMAGES, LABELS, reference=dense, device="cuda")
    expected = evaluate(model, IMAGES, LABELS, reference=dense)
    assert found.agreement == expected.agreement and found.kl == pytest.approx(expected.kl, rel=1e-6)
    assert {p.device.type for net in (model, dense) for p in net.parameters()} == {"cpu"}


def test_a_network_without_parameters():
    found = evaluate(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGES, LABELS)
    assert found.images == 23 and 0 <= found.accuracy <= 100


@pytest.mark.parametrize("kind", ["compiled", "parallel", "scripted"])
def test_wrapped_networks_are_measured_as_they_are(kind):
    dense = small_resnet()
    wrap = {
        "compiled": lambda net: torch.compile(net, backend="eager"),
        "parallel": nn.DataParallel,
        "scripted": lambda net: torch.jit.trace(net.eval(), IMAGES),
    }[kind]
    model = wrap(small_resnet())
    found = evaluate(model, IMAGES, LABELS, reference=dense)
    assert found.agreement == 100 and found.kl == pytest.approx(0, abs=1e-9)
