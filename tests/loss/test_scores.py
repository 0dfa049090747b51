"""scores.py: outputs of every form, classes of pixels, networks of one logit, and what are no labels of theirs."""

import math
from collections import OrderedDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Wrapped, random_images, small_resnet

from snows_core.errors import SnowsError
from snows_core.evaluate import evaluate

IMAGES = random_images(23)
LABELS = torch.arange(23) % 3


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


WRONG_LABELS = {
    "one-hot": (F.one_hot(LABELS, 3), r"shape \(23, 3\); .*labels.argmax\(1\)"),
    "soft": (F.one_hot(LABELS, 3).double(), r"shape \(23, 3\); .*labels.argmax\(1\)"),
    "two columns": (LABELS.view(-1, 1).repeat(1, 2), r"shape \(23, 2\); expected class indices of shape \(23,\)"),
    "too large": (LABELS + 1, r"3 \(7 such labels\); expected class indices 0 to 2\. Classes are counted from 0"),
    "negative": (LABELS - 1, r"-1 \(8 such labels\)"),
    "ignored value": (LABELS - 100, r"-100 \("),
    "floats": (LABELS.float(), r"dtype torch.float32; .*labels.long\(\)"),
    "nan": (torch.full((23,), math.nan), "dtype torch.float32"),
    "bool": (LABELS > 3, "dtype torch.bool"),
    "too few": (LABELS[:5], r"5 labels; expected one per image \(23\)"),
    "transposed": (LABELS.view(1, -1), r"1 labels; expected one per image \(23\)"),
}


@pytest.mark.parametrize("name", WRONG_LABELS)
@pytest.mark.parametrize("loader", [False, True])
def test_labels_that_are_no_class_indices_are_refused(name, loader):
    labels, message = WRONG_LABELS[name]
    with pytest.raises(SnowsError, match=f"labels: got {message}"):
        evaluate(small_resnet(), *([[(IMAGES, labels)]] if loader else [IMAGES, labels]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_labels_of_any_whole_dtype_and_a_column_of_them(dtype):
    expected = evaluate(small_resnet(), IMAGES, LABELS).accuracy
    assert evaluate(small_resnet(), IMAGES, LABELS.to(dtype)).accuracy == expected
    assert evaluate(small_resnet(), IMAGES, LABELS.to(dtype).unsqueeze(1)).accuracy == expected


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
