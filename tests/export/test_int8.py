"""INT8 by PyTorch's current path: integers are folded weights, rounded; zeros stay zeros; the function stays near."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from toys import awake

import snows_core as snows
from snows_core import zoo
from snows_core.errors import SnowsError
from snows_core.export.storage import int8
from snows_core.export.storage.int8 import compare_int8, to_int8
from snows_core.masks.patterns import NM
from snows_core.provenance import state_digest

RECORDED = Path(__file__).resolve().parents[2] / "figures" / "int8" / "efficientnet-lite0.csv"


def small_network(*more):
    """A convolution with batch norm, one channel by channel, one of 1 x 1, and a classifier; 2:4 where that fits."""
    layers = (nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
    layers += (nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 16, 1), nn.ReLU())
    model = awake(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *more, nn.Linear(16, 5))).float()
    with torch.no_grad():
        for layer in (model[0], model[5], model[-1]):
            layer.weight.mul_(NM(2, 4).mask(layer.weight.abs()))
    return model


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    model, images = small_network(), torch.randn(96, 4, 8, 8)
    return model, images, to_int8(model, images)


def test_integers_are_the_folded_weights_rounded_with_one_scale_an_output(small):
    """The largest weight of an output is 127.5 scales, half the width of the 256 integers; zero points are zero."""
    model, _, found = small
    norm = model[1]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    folded = {"0.weight": model[0].weight * factor.view(-1, 1, 1, 1)}
    folded |= {name: model.get_parameter(name) for name in ("3.weight", "5.weight", "9.weight")}
    assert found.weights.keys() == folded.keys()
    for name, weight in folded.items():
        weight, integers = weight.detach(), found.weights[name]
        largest = weight.flatten(1).abs().amax(1)
        torch.testing.assert_close(found.scales[name], largest / 127.5)
        scale = found.scales[name].view(-1, *[1] * (weight.ndim - 1))
        assert integers.dtype == torch.int8 and integers.shape == weight.shape
        assert float((scale * integers - weight).abs().div(scale).max()) <= 0.5 + 1e-4  # half a step, and rounding


def test_zeros_stay_zeros_and_the_pattern_holds(small):
    model, _, found = small
    table = found.table.set_index("weight")
    for name, integers in found.weights.items():
        zero = model.get_parameter(name) == 0
        assert not integers[zero].any()
        assert table.loc[name, "zeros"] == int(zero.sum())
        assert table.loc[name, "int8_zeros"] == int((integers == 0).sum())
    for name in ("0.weight", "5.weight", "9.weight"):
        groups = found.weights[name].movedim(1, -1).reshape(-1, 4)
        assert int((groups != 0).sum(1).max()) <= 2
    assert table["int8_two_of_four"].to_dict() == {
        "0.weight": True,
        "3.weight": False,
        "5.weight": True,
        "9.weight": True,
    }
    assert table["filled"].sum() == 0 and "0 zeros became another number" in repr(found)


def test_a_zero_that_were_filled_would_be_counted(small, monkeypatch):
    model, images, _ = small
    read = int8._integers

    def with_one_more(*arguments):
        weights, scales = read(*arguments)
        groups = weights["5.weight"].view(-1, 4)  # of a 1 x 1 convolution
        groups[0][groups[0] == 0] = 1
        groups[1][groups[1].nonzero()[:2]] = 0  # as many small weights become zero, which makes up for nothing
        return weights, scales

    monkeypatch.setattr(int8, "_integers", with_one_more)
    table = to_int8(model, images).table.set_index("weight")
    assert table.loc["5.weight", "filled"] == 2 and not table.loc["5.weight", "int8_two_of_four"]
    assert table.loc["9.weight", "filled"] == 0 and table.loc["5.weight", "two_of_four"]


def test_the_quantised_network_is_near_and_takes_any_number_of_images(small):
    model, images, found = small
    with torch.no_grad():
        for count in (1, 2, 33):
            wanted, got = model(images[:count]), found.model(images[:count])
            assert float((got - wanted).abs().max() / wanted.abs().max()) < 0.05  # 8 bits over four layers
    assert not torch.equal(got, wanted)


def test_the_callers_network_is_as_it_was():
    model, images = small_network(), torch.randn(64, 4, 8, 8)
    model.train()
    before = state_digest(model)
    to_int8(model, images.split(32))
    assert state_digest(model) == before and model.training


def test_sizes_follow_from_the_formulas(small):
    """Float: 4 n; 2:4 packed: 2 n and n / 8 of places. INT8: n and 4 an output; packed 5 n / 8 and 4 an output."""
    model, images, _ = small
    dense = small_network()
    rows = compare_int8(dense, model, images, images[:20])
    holds, other, outputs = 8 * 4 * 9 + 16 * 8 + 5 * 16, 8 * 9, 8 + 16 + 5 + 8
    assert rows.loc["pruned", ["bytes", "packed_bytes"]].tolist() == [
        4 * (holds + other),
        2 * holds + holds // 8 + 4 * other,
    ]
    assert rows.loc["pruned INT8", ["bytes", "packed_bytes"]].tolist() == [
        holds + other + 4 * outputs,
        holds * 5 // 8 + other + 4 * outputs,
    ]
    assert rows["images"].tolist() == [20] * 4 and rows["accuracy"].isna().all()


def test_the_shipped_resnet20_pruned_and_quantised():
    """What the notebook shows: prune, quantise, measure; no image of the calibration is among those that judge."""
    experiment = zoo.experiment("digits-resnet20")
    model, data = experiment.load_model(), experiment.load_data()
    images, _, _ = data.train.sample(64, 0)
    test, labels = data.test.tensors()
    masks = snows.make_masks(model, images, "2:4", exclude=list(experiment.exclude))
    pruned = snows.apply_masks(model, masks)
    rows = compare_int8(model, pruned, images, test[:200], labels[:200])
    assert rows.index.tolist() == ["dense", "pruned", "dense INT8", "pruned INT8"]
    for name in ("dense", "pruned"):
        assert abs(rows.loc[f"{name} INT8", "accuracy"] - rows.loc[name, "accuracy"]) <= 1.5  # three of 200
    assert rows.loc["dense INT8", "kl"] < 0.01 and rows["filled"].eq(0).all()
    inner = 2304 * 6 + 4608 + 9216 * 5 + 18432 + 36864 * 5  # all but the first, the shortcuts and the classifier
    assert rows.loc["pruned", "zeros"] == pytest.approx(100 * inner / 2 / 270608, abs=0.01)  # few were zero before


def test_the_recorded_table_keeps_its_promises():
    """EfficientNet-Lite0: eight bits fill no zero, keep 2:4, and cost a point or two of agreement where they begin."""
    rows = pd.read_csv(RECORDED)
    assert rows["filled"].eq(0).all() and rows["images"].eq(500).all()
    for _, group in rows.groupby("pattern"):
        found = group.set_index("network")
        assert found.index.tolist() == ["dense", "pruned", "dense INT8", "pruned INT8"]
        assert found.loc["dense INT8", "agreement"] > 97
        assert abs(found.loc["pruned INT8", "agreement"] - found.loc["pruned", "agreement"]) < 2
        assert found.loc["pruned INT8", "zeros"] >= found.loc["pruned", "zeros"]
    packed = rows.set_index(["pattern", "network"])["packed_bytes"]
    assert packed["2:4", "pruned INT8"] < 0.8 * packed["2:4", "dense INT8"]


class Undecided(nn.Module):
    """A forward pass that asks for the values of its image, which no recording answers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.first(x if float(x.sum()) > 0 else -x).mean((2, 3))


def test_what_cannot_be_quantised_is_refused_in_one_sentence(small, monkeypatch):
    model, images, _ = small
    with pytest.raises(SnowsError, match=r"model: got a network that torch\.export cannot export"):
        to_int8(Undecided(), images)
    with pytest.raises(SnowsError, match="images: got shape"):
        to_int8(model, images[:, :3])
    with pytest.raises(SnowsError, match="model: got int"):
        to_int8(3, images)
    monkeypatch.setattr("snows_core.errors.find_spec", lambda name: None)
    with pytest.raises(SnowsError, match=r'needs torchao.*pip install "snows-core\[export\]"'):
        to_int8(model, images)
