"""evaluate.py: accuracy, agreement and divergence on any batching; nothing of the networks is changed."""

import copy
import math
from collections import OrderedDict, namedtuple

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


class Wrapped(nn.Module):
    """Gives a network's output another form."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        return self.form(self.net(x))


def dense_predictor(classes=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, classes, 1)).double().eval()


def one_logit(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 1)).double().eval()


Named = namedtuple("Named", "logits auxiliary")
FORMS = {
    "logits": lambda y: {"logits": y, "features": y * 2},
    "out": lambda y: OrderedDict(out=y, aux=y * 2),
    "any key": lambda y: {"prediction": y, "loss": None},
    "tuple": lambda y: (y, None),
    "list": lambda y: [y],
    "named tuple": lambda y: Named(y, y * 2),
    "trailing axes": lambda y: y[:, :, None, None],
}


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_found_in_every_usual_output(form):
    model, dense = small_resnet(seed=4), small_resnet()
    found = evaluate(Wrapped(model, FORMS[form]), IMAGES, LABELS, reference=Wrapped(dense, FORMS[form]))
    expected = evaluate(model, IMAGES, LABELS, reference=dense)
    assert found == expected and 0 < found.agreement <= 100


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda y: (y, y), r"of type tuple with 2 tensors; .*\(N, classes\), or \(N,\)"),
        (lambda y: {"a": y, "b": y}, "of type dict with 2 tensors and the keys a, b; "),
        (lambda y: None, "of type NoneType with no tensors"),
        (lambda y: y.argmax(1), r"of shape \(23,\) and torch.int64 for 23 images"),
        (lambda y: y.mean(), r"of shape \(\) and"),
        (lambda y: y[:5], r"of shape \(5, 3\) and .* for 23 images"),
        (lambda y: y[:, :0], r"of shape \(23, 0\)"),
    ],
)
def test_outputs_without_logits_are_refused(form, message):
    with pytest.raises(SnowsError, match=f"model: got an output {message}") as caught:
        evaluate(Wrapped(small_resnet(), form), IMAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused_by_name(poison):
    def poisoned(y):
        y[3, 1] = poison
        return y

    good, odd = small_resnet(), Wrapped(small_resnet(), poisoned)
    with pytest.raises(SnowsError, match="model: got NaN or infinite logits for 1 of 23 images"):
        evaluate(odd, IMAGES, reference=good)
    with pytest.raises(SnowsError, match="reference: got NaN or infinite logits for 1 of 23 images"):
        evaluate(good, IMAGES, reference=odd)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_largest_differences_leave_no_nan(dtype):
    high = torch.finfo(dtype).max
    model, reference = (Wrapped(nn.Flatten(), lambda y, s=s: (s * high * y[:, :2].sign()).to(dtype)) for s in (1, -1))
    images = torch.tensor([[1.0, -1.0]], dtype=torch.float64).view(1, 2, 1, 1)
    metrics = evaluate(model, images, reference=reference)
    assert metrics.agreement == 0 and metrics.kl > 1e4


@pytest.mark.parametrize("last", [nn.Identity(), nn.Flatten(0)])
def test_one_logit_decides_by_its_sign_and_diverges_as_bernoulli(last):
    model, dense = nn.Sequential(*one_logit(1), last), nn.Sequential(*one_logit(), last)
    z, w = (net(IMAGES).detach().flatten() for net in (model, dense))
    labels = (z > 0).long()
    labels[:6] = 1 - labels[:6]
    found = evaluate(model, IMAGES, labels, reference=dense, batch_size=10)
    p, q = torch.sigmoid(w), torch.sigmoid(z)
    kl = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-9) and found.kl > 0.01
    assert found.agreement == pytest.approx(100 * float(((z > 0) == (w > 0)).double().mean())) and found.agreement < 100
    assert found.accuracy == pytest.approx(100 * 17 / 23)
    for other in (labels.bool(), labels.float(), labels.unsqueeze(1), labels.unsqueeze(1).half(), labels.tolist()):
        assert evaluate(model, IMAGES, other).accuracy == found.accuracy


@pytest.mark.parametrize("labels", [LABELS, LABELS - 1, torch.full((23,), math.nan), torch.full((23,), 0.5)])
def test_one_logit_refuses_labels_other_than_0_and_1(labels):
    with pytest.raises(SnowsError, match=r"labels: got .* such labels\); expected class indices 0 to 1\."):
        evaluate(one_logit(), IMAGES, labels)


def test_pixels_are_counted_in_percent_of_pixels():
    model, dense = dense_predictor(seed=1), dense_predictor()
    q, p = (F.log_softmax(net(IMAGES).detach(), 1) for net in (model, dense))
    truth = dense(IMAGES).argmax(1)
    found = evaluate(model, IMAGES, truth, reference=dense, batch_size=10)
    equal = 100 * float((q.argmax(1) == truth).double().mean())
    assert found.accuracy == found.agreement == pytest.approx(equal) and 0 < equal < 100
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-9)
    itself = evaluate(dense, IMAGES, truth.unsqueeze(1), reference=dense)
    assert itself.accuracy == itself.agreement == 100 and itself.images == 23
    series = Wrapped(dense, lambda y: y.flatten(2))
    assert evaluate(series, IMAGES, truth.flatten(1), reference=series).accuracy == 100


@pytest.mark.parametrize("left_out", [255, -100])
def test_pixels_without_a_label_do_not_count(left_out):
    dense = dense_predictor()
    truth = dense(IMAGES).argmax(1)
    labels = truth.clone()
    labels[:, :4] = (truth[:, :4] + 1) % 4
    assert evaluate(dense, IMAGES, labels).accuracy == 50
    labels[:, :4] = left_out
    assert evaluate(dense, IMAGES, labels).accuracy == 100
    assert evaluate(dense, IMAGES, torch.full_like(labels, left_out)).accuracy is None


def test_class_255_counts_where_there_is_one():
    dense = dense_predictor(classes=256)
    assert evaluate(dense, IMAGES, torch.full((23, 8, 8), 255)).accuracy is not None


def test_masks_of_one_logit_a_pixel():
    dense = dense_predictor(classes=1)
    truth = dense(IMAGES) > 0
    assert 0 < truth.double().mean() < 1
    found = evaluate(dense, IMAGES, truth, reference=dense)
    assert (found.accuracy, found.agreement) == (100, 100) and found.kl == pytest.approx(0, abs=1e-12)
    assert evaluate(dense, IMAGES, truth.squeeze(1).float()).accuracy == 100
    assert evaluate(dense, IMAGES, ~truth.squeeze(1)).accuracy == 0
    with pytest.raises(SnowsError, match=r"labels: got 255 .*a mask of 0 and 255 is divided by 255"):
        evaluate(dense, IMAGES, truth.long() * 255)


GOOD = LABELS
WRONG_LABELS = {
    "one-hot": (F.one_hot(GOOD, 3), r"shape \(23, 3\); .*labels.argmax\(1\)"),
    "soft": (F.one_hot(GOOD, 3).double(), r"shape \(23, 3\); .*labels.argmax\(1\)"),
    "two columns": (GOOD.view(-1, 1).repeat(1, 2), r"shape \(23, 2\); expected class indices of shape \(23,\)"),
    "too large": (GOOD + 1, r"3 \(7 such labels\); expected class indices 0 to 2\. Classes are counted from 0"),
    "negative": (GOOD - 1, r"-1 \(8 such labels\)"),
    "ignored value": (GOOD - 100, r"-100 \("),
    "floats": (GOOD.float(), r"dtype torch.float32; .*labels.long\(\)"),
    "nan": (torch.full((23,), math.nan), "dtype torch.float32"),
    "bool": (GOOD > 3, "dtype torch.bool"),
    "too few": (GOOD[:5], r"5 labels; expected one per image \(23\)"),
    "transposed": (GOOD.view(1, -1), r"1 labels; expected one per image \(23\)"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
@pytest.mark.parametrize("loader", [False, True])
def test_labels_that_are_no_class_indices_are_refused(name, loader):
    labels, message = WRONG_LABELS[name]
    with pytest.raises(SnowsError, match=f"labels: got {message}"):
        evaluate(small_resnet(), *([[(IMAGES, labels)]] if loader else [IMAGES, labels]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_labels_of_any_whole_dtype_and_a_column_of_them(dtype):
    expected = evaluate(small_resnet(), IMAGES, GOOD).accuracy
    assert evaluate(small_resnet(), IMAGES, GOOD.to(dtype)).accuracy == expected
    assert evaluate(small_resnet(), IMAGES, GOOD.to(dtype).unsqueeze(1)).accuracy == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(23, 4, 4, dtype=torch.long), "one height and width"),
        (torch.zeros(23, dtype=torch.long), r"shape \(23,\); expected class indices of shape \(23, 8, 8\)"),
        (torch.zeros(23, 4, 8, 8, dtype=torch.long), r"labels.argmax\(1\).*one logit a pixel"),
        (torch.full((23, 8, 8), 4), "class indices 0 to 3"),
    ],
)
def test_labels_of_pixels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(SnowsError, match=f"labels: got .*{message}"):
        evaluate(dense_predictor(), IMAGES, labels)


def test_a_reference_of_another_shape_is_refused():
    for other in (dense_predictor(), dense_predictor(3), one_logit()):
        with pytest.raises(SnowsError, match=r"reference: got outputs of shape \(23, .*expected \(23, 3\), as the"):
            evaluate(small_resnet(), IMAGES, reference=other)
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    with pytest.raises(SnowsError, match=r"\(one logit\); expected \(23, 2\)"):
        evaluate(two, IMAGES, reference=one_logit())


def test_batches_of_every_form_give_the_same_figures():
    model = small_resnet()
    expected = evaluate(model, IMAGES, GOOD)
    whole = {"pixel_values": IMAGES, "labels": GOOD}
    sources = [
        whole,
        [whole],
        [{"image": x, "label": y} for x, y in zip(IMAGES.split(5), GOOD.split(5), strict=True)],
        [(IMAGES[:9], GOOD[:9], "more"), (IMAGES[9:9], GOOD[9:9], "empty"), (IMAGES[9:], GOOD[9:].tolist(), "more")],
    ]
    for source in sources:
        assert evaluate(model, source) == expected
    assert evaluate(model, [(IMAGES[:9], GOOD[:9]), IMAGES[9:]]).images == 23


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "images: got int; expected a tensor"),
        ("images.pt", "images: got a batch of type str; .*load_data"),
        (IMAGES[0], r"images: got shape \(3, 8, 8\); .*unsqueeze\(0\)"),
        ((IMAGES, GOOD), r"images: got shape \(23,\); .*evaluate\(model, images, labels\)"),
        (TensorDataset(IMAGES, GOOD), "images: got a single image .*DataLoader"),
        ([(IMAGES, ["cat"] * 23)], "labels: got a list of str in a batch"),
        ([(IMAGES, GOOD[:5])], r"labels: got 5 labels; expected one per image \(23\)"),
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
    for name in ("gpu", "cuda:99", 2.5):
        with pytest.raises(SnowsError, match=f"device: got '{name}'"):
            evaluate(small_resnet(), IMAGES, device=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_networks_take_single_precision_images(dtype):
    model = small_resnet().float()
    half = copy.deepcopy(model).to(dtype)
    found = evaluate(half, IMAGES.float(), GOOD, reference=model)
    assert found.agreement > 80 and 0 <= found.kl < 0.01
    with torch.no_grad():
        q = F.log_softmax(half(IMAGES.to(dtype)).float(), 1)
        p = F.log_softmax(model(IMAGES.float()), 1)
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert next(half.parameters()).dtype == dtype


def test_inference_mode_and_autocast_around_the_call():
    model, dense = small_resnet(seed=4).float(), small_resnet().float()
    expected = evaluate(model, IMAGES, GOOD, reference=dense)
    with torch.inference_mode():
        assert evaluate(model, IMAGES.clone(), GOOD.clone(), reference=dense) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, IMAGES, GOOD, reference=dense).kl == pytest.approx(expected.kl, rel=0.1)
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
    first = evaluate(twin, images, GOOD, reference=twin)
    assert torch.equal(images, IMAGES) and first.agreement == 100 and first.kl == pytest.approx(0, abs=1e-12)
    batches = [(images, GOOD)]
    assert evaluate(twin, batches, reference=twin) == first == evaluate(twin, batches, reference=twin)
    assert torch.equal(images, IMAGES)


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
    found = evaluate(model, IMAGES, GOOD, reference=dense, device="cuda")
    expected = evaluate(model, IMAGES, GOOD, reference=dense)
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
    found = evaluate(model, IMAGES, GOOD, reference=dense)
    assert found.agreement == 100 and found.kl == pytest.approx(0, abs=1e-9)
