"""Corrections without a re-fit, against train mode, hooks and closed forms: statistics of batch norms, variances."""

import copy

import pytest
import torch
from spies import noted
from timm.layers import BatchNormAct2d
from torch import nn
from toys import awake, random_images, same, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.sweep import corrections

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def thinned(model, keep=0.5, seed=5):
    """Zero weights by lot in all layers."""
    generator = torch.Generator().manual_seed(seed)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in pruned.parameters():
            if parameter.ndim > 1:
                mask = torch.rand(parameter.shape, generator=generator) < keep
                mask.flatten(1)[:, 0] = True  # no row is empty
                parameter.mul_(mask)
    return pruned


def in_train_mode(model, images):
    """All images as one batch in train mode: the output, and the model with that batch's statistics, by PyTorch."""
    model, counts = copy.deepcopy(model).train(), {}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
            module.register_forward_pre_hook(lambda m, args: counts.update({m: args[0].numel() / args[0].shape[1]}))
    with torch.no_grad():
        output = model(images)
    for module, count in counts.items():
        module.running_var *= (count - 1) / count  # PyTorch keeps the unbiased one, and divides by the other
    return output, model.eval()


def functional():
    layers = nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU()
    return awake(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5), nn.BatchNorm1d(5)))


def states_agree(got, expected):
    for name, value in expected.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.allclose(got.state_dict()[name], value, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("make", [small_resnet, functional])
def test_statistics_are_those_of_one_batch_of_all_images_in_train_mode(make, monkeypatch):
    monkeypatch.setattr(corrections, "BATCH", 5)
    model, images = thinned(make()), 2.0 + 3.0 * random_images(17)
    before = copy.deepcopy(model.state_dict())
    got = snows.reestimate_batch_norms(model, images)
    output, expected = in_train_mode(model, images)
    states_agree(got, expected)
    assert torch.allclose(got(images), output, rtol=1e-9, atol=1e-10)
    assert same(model.state_dict(), before) and not got.training
    assert not torch.allclose(got(images), model(images))


def test_batches_of_unlike_size_from_a_loader_and_values_on_disk(monkeypatch):
    model, images = thinned(small_resnet()), random_images(9)
    whole = snows.reestimate_batch_norms(model, images)
    monkeypatch.setattr(corrections, "memory_budget", lambda *_: 1.0)
    opened = noted(monkeypatch, "snows_core.sweep.corrections", "ActivationCache")
    states_agree(snows.reestimate_batch_norms(model, iter([images[:2], images[2:]])), whole)
    assert [args[2:] for args, _ in opened] == [(), ("disk",)]


def test_a_batch_norm_that_is_used_twice_keeps_its_statistics():
    norm = nn.BatchNorm2d(4)
    model = awake(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), norm, nn.ReLU(), nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        )
    )
    with pytest.warns(UserWarning, match="used more than once"):
        got = snows.reestimate_batch_norms(model, random_images(6))
    assert torch.equal(got[1].running_mean, model[1].running_mean)
    assert not torch.allclose(got[6].running_mean, model[6].running_mean)


def moments(model, names, images):
    """Mean and biased variance of each output channel of modules, by hooks."""
    found, hooks = {}, []
    for name in names:
        module = model.get_submodule(name)
        axis = -1 if isinstance(module, nn.Linear) else 1
        hook = lambda m, args, out, name=name, axis=axis: found.update({name: out.detach().movedim(axis, 0).flatten(1)})  # noqa: E731
        hooks.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return {name: (value.mean(1), value.var(1, correction=0)) for name, value in found.items()}


# Each batch norm follows a layer without a bias: what comes out of it has the dense mean and variance.
RESNET = {"conv1": "bn1", **{f"layer{i}.conv{j}": f"layer{i}.bn{j}" for i in (1, 2) for j in (1, 2)}, "fc": "fc"}
VIT = {f"blocks.{i}.{name}": f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.proj", "mlp.fc1", "mlp.fc2")}
MATCHED = {
    "residual units": (small_resnet, 8, RESNET | {"layer2.downsample.0": "layer2.downsample.1"}),
    "transformer": (small_vit, 4, VIT | {"blocks.0.attn.qkv": "blocks.0.attn.qkv"}),
    "functions": (functional, 8, {"0": "0", "2": "2", "7": "7"}),
}


@pytest.mark.parametrize("name", MATCHED)
def test_means_and_variances_of_every_channel_are_the_dense_ones(name, monkeypatch):
    monkeypatch.setattr(corrections, "BATCH", 4)
    make, size, places = MATCHED[name]
    dense, images = make(), random_images(11, size)
    pruned = thinned(dense)
    before = copy.deepcopy(pruned.state_dict())
    got = snows.match_variances(pruned, dense, images)
    assert same(pruned.state_dict(), before)
    wanted, have, had = (moments(model, places.values(), images) for model in (dense, got, pruned))
    for place in places.values():
        for i in (0, 1):
            assert torch.allclose(have[place][i], wanted[place][i], rtol=1e-8, atol=1e-10), place
        assert not torch.allclose(had[place][1], wanted[place][1], rtol=0.05)
    for layer in places:
        was, now = pruned.get_submodule(layer).weight, got.get_submodule(layer).weight
        assert torch.equal(was == 0, now == 0)
        ratio = (now / was).flatten(1).nanmean(1).view(-1, *[1] * (was.ndim - 1))
        assert (ratio > 0).all() and torch.allclose(now, was * ratio)


def test_without_a_bias_or_a_batch_norm_only_the_variance_is_matched():
    dense = awake(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    pruned, images = thinned(dense), 1.0 + random_images(8)
    got = snows.match_variances(pruned, dense, images)
    wanted, have = (moments(model, ["0", "2"], images) for model in (dense, got))
    assert torch.allclose(have["0"][1], wanted["0"][1], rtol=1e-8)
    assert not torch.allclose(have["0"][0], wanted["0"][0], rtol=1e-3)
    assert all(torch.allclose(*pair, rtol=1e-8) for pair in zip(have["2"], wanted["2"], strict=True))


def test_channels_that_are_constant_keep_their_scale_and_take_the_mean():
    dense = awake(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)))
    pruned, images = thinned(dense), random_images(8)
    with torch.no_grad():
        pruned[0].weight[1] = 0.0
    got = snows.match_variances(pruned, dense, images)
    assert not got[0].weight[1].any() and all(bool(torch.isfinite(p).all()) for p in got.parameters())
    assert torch.allclose(got[0].bias[1], moments(dense, ["0"], images)["0"][0][1])


def test_only_pruned_layers_are_corrected_or_those_that_are_named():
    dense, images = small_resnet(), random_images(8)
    pruned = copy.deepcopy(dense)
    pruned.layer1.conv2.weight.data[:, 0] = 0.0
    pruned.conv1.weight.data *= 1.5  # damaged, but without a zero
    weights = {name for name, parameter in pruned.named_parameters() if parameter.ndim > 1}

    def corrected(**choice):
        got = dict(snows.match_variances(pruned, dense, images, **choice).named_parameters())
        own = dict(pruned.named_parameters())
        return {name for name in weights if not torch.equal(got[name], own[name])}

    assert corrected() == {"layer1.conv2.weight"}
    assert corrected(layers="conv1") == {"conv1.weight"}
    with pytest.raises(SnowsError, match=r"layers: got 'conv9'"):
        corrected(layers="conv9")


def test_of_a_result_of_prune():
    dense, images = small_resnet(width=8), random_images(24)
    result = snows.prune(dense, images, "1:4", update="none", progress=False)
    for got in (snows.match_variances(result.model, dense, images), snows.reestimate_batch_norms(result.model, images)):
        for name, mask in result.masks.items():
            weight = got.get_submodule(name).weight
            assert not weight[~mask].any() and bool(weight[mask].all())


def test_what_cannot_be_corrected():
    images, plain = random_images(4), awake(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    with pytest.raises(SnowsError, match=r"model: got a network without a batch norm that keeps statistics; expected"):
        snows.reestimate_batch_norms(plain, images)
    with pytest.raises(SnowsError, match=r"model: got no layer with zeros where the dense network has none"):
        snows.match_variances(plain, plain, images)
    with pytest.raises(SnowsError, match=r"reference: got a network without the layer '0'"):
        snows.match_variances(plain, small_resnet(), images)
    with pytest.raises(SnowsError, match=r"reference: got str"):
        snows.match_variances(plain, "dense", images)
    with pytest.raises(SnowsError, match=r"model: got PruneResult|model: got int"):
        snows.reestimate_batch_norms(3, images)
