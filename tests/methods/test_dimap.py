"""DIMAP: shares within modules against their definition, and which layers are one module."""

import pytest
import timm
import torch
from toys import layer_named, random_images, same, small_resnet, small_vit

import snows_core as snows
from snows_core.masks.patterns import parse_pattern
from snows_core.methods import NETWORK_METHODS, NetworkProblem
from snows_core.methods.dimap import module_of
from snows_core.network.graph import Network

VIT = ["blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.mlp.fc1"]


def problem(model, layers=tuple(VIT), pattern="global:0.7"):
    images = random_images(2, 4)
    network = Network(model, example=images)
    names = {name: layer_named(network, name).weight_name for name in layers}
    return NetworkProblem(network, names, images, parse_pattern(pattern), 5, None, {}, 1e9)


def test_attention_and_mlp_are_modules_and_other_layers_are_their_own():
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(1, 1), embed_dim=8, img_size=56)
    layers = [name for name, module in swin.named_modules() if isinstance(module, torch.nn.Linear)]
    assert {module_of(name) for name in layers} == {
        *(f"layers.{i}.blocks.0.{kind}" for i in range(2) for kind in ("attn", "mlp")),
        "layers.1.downsample.reduction",
        "head.fc",
    }
    assert module_of("encoder.layer.3.attention.attention.query") == "encoder.layer.3.attention"
    assert module_of("encoder.layer.3.attention.output.dense") == "encoder.layer.3.attention"
    assert module_of("layer1.0.conv1") == "layer1.0.conv1"


def test_scores_are_shares_of_the_squares_that_are_not_smaller():
    of, scores = problem(small_vit()), {}
    for name, weight in of.weights.items():
        own = [other for other in VIT if other.split(".")[2] == name.split(".")[2]]
        squares = torch.cat([of.weights[other].flatten().square() for other in own])
        shares = [square / squares[squares >= square].sum() for square in weight.flatten().square()]
        scores[name] = torch.stack(shares).view(weight.shape)
    assert same(NETWORK_METHODS["dimap"]().choose(of), of.masks(of.vector(scores)))


def test_a_module_may_grow_by_any_factor_and_a_layer_of_it_may_not():
    plain, grown = small_vit(), small_vit()
    for name in VIT[:2]:
        grown.get_parameter(f"{name}.weight").data *= 8.0
    first, second = (NETWORK_METHODS["dimap"]().choose(problem(net)) for net in (plain, grown))
    assert same(first, second)
    grown.get_parameter(f"{VIT[0]}.weight").data *= 1.5
    other = NETWORK_METHODS["dimap"]().choose(problem(grown))
    assert int(other[VIT[1]].sum()) < int(first[VIT[1]].sum())


@pytest.mark.usefixtures("few_images_are_fine")
def test_prune_takes_it_without_an_image_and_a_convnet_is_lamp():
    options = {"update": "none", "layers": "layer[12].conv*", "progress": False, "k": 0, "effort": "quick"}
    result = snows.prune(small_resnet(), random_images(8), "global:0.6", mask="dimap", **options)
    assert result.manifest["gradients"] is None and result.manifest["labels"] is None
    lamp = snows.prune(small_resnet(), random_images(8), 0.6, allocation="lamp", **options)
    kept = [{name: int(mask.sum()) for name, mask in found.masks.items()} for found in (result, lamp)]
    assert kept[0] == kept[1] and len(set(kept[0].values())) > 1
