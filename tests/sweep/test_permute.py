"""``snows.permute_channels``: the same function, masks that keep more, and a clear word on what cannot be permuted."""

import copy

import pytest
import timm
import torch
import torchvision
from spies import stop_after
from torch import nn
from toys import awake, random_images, same, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks import permutation
from snows_core.sweep import permute
from snows_core.sweep.prepare import checked_settings

NETWORKS = {
    "resnet": (lambda: small_resnet(width=8), 8, 2),
    "transformer": (small_vit, 4, 2),
    "resnet18": (lambda: awake(torchvision.models.resnet18()), 32, 8),
    "mobilenetv2": (lambda: awake(torchvision.models.mobilenet_v2(width_mult=0.25)), 32, 17),
    "vit": (lambda: awake(timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)), 32, 2),
}


def kept(model, name, pattern):
    """The share of a layer's magnitude that masks of the pattern keep."""
    weight = dict(model.named_parameters())[f"{name}.weight"].detach().abs()
    return float(weight[snows.NM(*map(int, pattern.split(":"))).mask(weight)].sum() / weight.sum())


@pytest.mark.parametrize("name, pattern", [*((name, "2:4") for name in NETWORKS), ("resnet", "1:4"), ("vit", "1:4")])
def test_the_function_stays_and_masks_keep_more(name, pattern, monkeypatch):
    monkeypatch.setattr(permutation, "MOST", 1e6)  # a short search
    make, size, least = NETWORKS[name]
    torch.manual_seed(0)
    model, images = make(), random_images(2, size)
    before = copy.deepcopy(model.state_dict())
    found, done = snows.permute_channels(model, images, pattern)
    assert same(model.state_dict(), before) and len(done) >= least
    with torch.no_grad():
        expected = model(images)
        assert float((found(images) - expected).abs().max()) < 1e-10 * float(expected.abs().max())
    for one in done:
        (consumer,) = one.consumers
        assert one.kept_before == pytest.approx(kept(model, consumer, pattern), rel=1e-9)
        assert one.kept_after == pytest.approx(kept(found, consumer, pattern), rel=1e-9)
        assert one.kept_after > one.kept_before and consumer != "classifier.1"


def test_a_choice_of_layers_is_permuted_alone():
    model, images = small_resnet(width=8), random_images(2)
    found, done = snows.permute_channels(model, images, "2:4", layers=["layer2.conv2"])
    assert [one.consumers for one in done] == [("layer2.conv2",)] and done[0].producer == "layer2.conv1"
    changed = {name for name, value in found.state_dict().items() if not torch.equal(value, model.state_dict()[name])}
    bn = {f"layer2.bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")}
    assert changed == {"layer2.conv1.weight", "layer2.conv2.weight", *bn}
    weight = model.layer2.conv1.weight[done[0].order]
    assert torch.equal(found.layer2.conv1.weight, weight)


def test_any_saliency_decides():
    model, images = small_resnet(width=8), random_images(2)
    scores = torch.rand(model.layer1.conv2.weight.shape, generator=torch.Generator().manual_seed(0)).double() ** 3
    _, done = snows.permute_channels(model, images, "2:4", ["layer1.conv2"], lambda name, weight: scores)
    order, mask = done[0].order, snows.NM(2, 4).mask
    for share, put in ((done[0].kept_before, scores), (done[0].kept_after, scores[:, order])):
        assert share == pytest.approx(float(put[mask(put)].sum() / scores.sum()), rel=1e-9)


def test_half_precision_and_wrappers():
    model = nn.DataParallel(small_resnet(width=8).to(torch.bfloat16))
    found, done = snows.permute_channels(model.eval(), random_images(2, dtype=torch.float32), "2:4")
    assert done and {p.dtype for p in found.parameters()} == {torch.bfloat16} and not isinstance(found, nn.DataParallel)


def test_a_network_without_free_channels_comes_back_as_it_is():
    model = awake(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax2d(), nn.Conv2d(4, 4, 1)))
    found, done = snows.permute_channels(model, random_images(2), "2:4")
    assert done == [] and same(found.state_dict(), model.state_dict()) and found is not model


class Flattened(nn.Module):
    """A convolution that another one reads, and a linear layer behind a flattening of 2 x 2 positions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Linear(32, 4)

    def forward(self, x):
        y = self.first(x).relu()
        return self.third(nn.functional.adaptive_avg_pool2d(y, 2).flatten(1)) + self.second(y).mean((2, 3))


def test_layers_behind_a_flattening_follow_and_do_not_decide():
    model, images = awake(Flattened()), random_images(2)
    everything = {"layers": ["second", "third"]}
    assert snows.permute_channels(model, images, "2:4", ["third"]).permutations == []
    found, (done,) = snows.permute_channels(model, images, "2:4", **everything)
    assert done.consumers == ("third", "second") and done.kept_after == pytest.approx(kept(found, "second", "2:4"))
    assert torch.equal(found.third.weight.view(4, 8, 4), model.third.weight.view(4, 8, 4)[:, done.order])
    assert torch.allclose(found(images), model(images), rtol=1e-10)


def test_a_copy_that_answers_otherwise_is_not_handed_out(monkeypatch):
    model, move = small_resnet(width=8), permute._move
    monkeypatch.setattr(permute, "_move", lambda moves, *rest: move(moves[:-1], *rest))
    with pytest.warns(UserWarning, match="permute: the outputs would change"):
        found, done = snows.permute_channels(model, random_images(2), "2:4")
    assert done == [] and same(found.state_dict(), model.state_dict())


RESNET, VIT = (lambda: small_resnet(width=8)), small_vit


@pytest.mark.parametrize(
    "make, size, pattern, layers, message",
    [
        (RESNET, 8, "2:4", ["layer2.conv1"], r"layers: got 'layer2.conv1'.*bound by a residual stream; expected "),
        (RESNET, 8, "2:4", ["layer2.conv1"], r"a residual stream are not possible.*are layer1.conv2, layer2.conv2"),
        (VIT, 4, "2:4", ["blocks.1.mlp.fc1"], r"'blocks.1.mlp.fc1'.*permutations across a residual stream"),
        (VIT, 4, "2:4", ["blocks.0.mlp.fc2", "blocks.0.attn.proj"], r"'blocks.0.attn.proj'.*bound by '"),
        (RESNET, 8, "2:4", ["conv1"], r"'conv1'.*bound by the image"),
        (RESNET, 8, "2:4", ["conv9"], r"layers: got 'conv9'.*Nearest"),
        (RESNET, 8, "0.5", None, r"pattern: got unstructured 0.5; expected N:M"),
        (RESNET, 8, "2:3", ["layer1.conv2"], r"'layer1.conv2' \(8 inputs do not divide into groups of 3\)"),
        (lambda: "resnet", 8, "2:4", None, r"model: got str"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(make, size, pattern, layers, message):
    with pytest.raises(SnowsError, match=message):
        snows.permute_channels(make(), random_images(2, size), pattern, layers=layers)


def test_prune_permutes_first_and_says_so(tmp_path):
    model, images = small_resnet(width=8), random_images(4)
    before = copy.deepcopy(model.state_dict())
    result = snows.prune(model, images, "2:4", effort="quick", k=0, permute=True, progress=False)
    assert same(model.state_dict(), before)
    found, done = snows.permute_channels(model, images, "2:4")
    said = result.manifest["permutations"]
    assert [one["consumers"] for one in said] == [list(one.consumers) for one in done]
    assert [one["order"] for one in said] == [one.order.tolist() for one in done]
    by_hand = snows.prune(found, images, "2:4", effort="quick", k=0, progress=False)
    assert by_hand.manifest["permutations"] is None
    assert all(torch.equal(value, by_hand.state[name]) for name, value in result.state.items())
    assert all(torch.equal(mask, by_hand.masks[name]) for name, mask in result.masks.items())
    result.save(tmp_path / "out")
    loaded = snows.load(tmp_path / "out", small_resnet(width=8))
    with torch.no_grad():
        assert torch.equal(loaded.model(images), result.model(images))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"effort": "best"}, True),
        ({"effort": "quick"}, False),
        ({"effort": "quick", "permute": True}, True),
        ({"permute": False}, False),
        ({"pattern": 0.5}, False),
        ({"recipe": "paper"}, False),
        ({"update": "layerwise"}, False),
        ({"mask": "wanda"}, False),
        ({"saliency": "obs"}, True),
        ({"saliency": lambda name, weight: weight.abs()}, False),  # it may know weights by their places
        ({"masks": {"a": torch.ones(1, dtype=torch.bool)}}, False),
    ],
)
def test_effort_permutes_for_masks_of_magnitude_alone(options, expected):
    assert checked_settings(snows.prune, **{"pattern": "2:4", **options}).permute is expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "swaps"),
        ({"effort": "best"}, "swaps"),
        ({"stages": 3}, "swaps"),
        ({"effort": "quick"}, "magnitude"),
        ({"mask": "magnitude"}, "magnitude"),
        ({"mask": "wanda"}, "wanda"),
        ({"pattern": 0.5}, "magnitude"),
        ({"recipe": "paper"}, "magnitude"),
        ({"update": "layerwise"}, "magnitude"),
        ({"saliency": "obs"}, "magnitude"),
        ({"saliency": lambda name, weight: weight.abs()}, "magnitude"),
        ({"masks": {"a": torch.ones(1, dtype=torch.bool)}}, "magnitude"),
    ],
)
def test_effort_improves_masks_of_magnitude_by_swaps(options, expected):
    assert checked_settings(snows.prune, **{"pattern": "1:4", **options}).mask == expected


def test_a_summary_says_that_the_order_is_new():
    model, images = small_resnet(width=8), random_images(4)
    said = [
        repr(snows.prune(model, images, "2:4", effort="quick", k=0, permute=permute, progress=False))
        for permute in (True, False)
    ]
    assert "2 layers are in a new order" in said[0] and "new order" not in said[1]


def test_an_interrupted_run_with_permuted_channels_goes_on(monkeypatch):
    model, images = small_resnet(width=8), random_images(4)
    options = {"effort": "quick", "k": 1, "permute": True, "progress": False}
    whole = snows.prune(model, images, "2:4", **options)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        part = snows.prune(model, images, "2:4", **options)
    assert not part.manifest["complete"]
    resumed = snows.prune(model, images, "2:4", resume=part, **options)
    assert all(torch.equal(value, resumed.state[name]) for name, value in whole.state.items())
    assert resumed.manifest["permutations"] == whole.manifest["permutations"]


def test_only_layers_that_are_pruned_have_a_say():
    model, images = small_resnet(width=8), random_images(4)
    result = snows.prune(
        model, images, "2:4", effort="quick", k=0, permute=True, layers=["layer2.conv2"], progress=False
    )
    assert [one["consumers"] for one in result.manifest["permutations"]] == [["layer2.conv2"]]


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pattern": 0.5}, "permute: got True with the pattern unstructured 0.5; expected an N:M pattern"),
        ({"masks": {"layer1.conv1": torch.ones(8, 8, 3, 3, dtype=torch.bool)}}, "permute: got True with masks="),
        ({"permute": "yes"}, "permute"),
    ],
)
def test_what_no_order_changes_is_refused(options, words):
    with pytest.raises(SnowsError) as error:
        snows.prune(small_resnet(width=8), random_images(4), **{"permute": True, **options})
    assert str(error.value).startswith(words)


def test_masks_of_a_copy_are_not_handed_out():
    with pytest.raises(SnowsError, match="permute: got True; expected False"):
        snows.make_masks(small_resnet(width=8), random_images(4), "2:4", permute=True)


class AsksItsSize(nn.Module):
    """A network that asks how large its images are, which a trace without an example cannot answer."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Linear(4, 3)

    def forward(self, x):
        if x.shape[-1] < 4:
            raise ValueError("too small")
        return self.head(self.second(torch.relu(self.first(x))).mean((2, 3)))


def test_a_network_that_asks_for_shapes_is_permuted(monkeypatch):
    monkeypatch.setattr(permutation, "MOST", 1e6)
    _, done = snows.permute_channels(awake(AsksItsSize()), random_images(2, 8), "2:4")
    assert [(one.producer, one.consumers) for one in done] == [("first", ("second",))]
