"""Networks of timm and torchvision, none of which has a line of its own code: trace, mask, short solve, save, load.

Random weights and small images; a few take reduced widths. What cannot be pruned is listed at the end with the reason.
"""

import pytest
import timm
import torch
import torchvision

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.network.graph import Network
from snows_core.sweep.select import select_layers

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_images_are_fine")]

TINY_VIT = {"img_size": 32, "patch_size": 8, "depth": 2}
NARROW = {"embed_dim": 48, "num_heads": 3}
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)}

# name: (image size, options of the constructor, layers at least)
TIMM = {
    "resnet10t": (64, {}, 12),
    "resnext50_32x4d": (64, {}, 50),
    "seresnet18": (64, {}, 30),
    "resnetv2_50": (64, {}, 50),
    "res2net50_26w_4s": (64, {}, 50),
    "skresnet18": (64, {}, 30),
    "regnetx_002": (64, {}, 40),
    "regnety_002": (64, {}, 60),
    "densenet121": (64, {}, 115),
    "mobilenetv1_100": (64, {}, 25),
    "mobilenetv2_050": (64, {}, 50),
    "mobilenetv3_small_050": (64, {}, 50),
    "mnasnet_small": (64, {}, 60),
    "efficientnet_b0": (64, {}, 75),
    "tf_efficientnet_b0": (64, {}, 75),
    "ghostnet_050": (64, {}, 90),
    "convnext_atto": (64, {}, 35),
    "convnextv2_atto": (64, {}, 35),
    "poolformer_s12": (64, {}, 25),
    "mobilevit_xxs": (64, {}, 65),
    "edgenext_xx_small": (64, {}, 45),
    "fastvit_t8": (64, {}, 60),
    "levit_128s": (224, {}, 45),
    "pvt_v2_b0": (64, {}, 55),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 2}, 25),
    "swin_tiny_patch4_window7_224": (56, {"img_size": 56, "window_size": 7, **SWIN}, 15),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "window_size": 8, **SWIN}, 15),
    "vit_tiny_patch16_224": (32, TINY_VIT, 8),
    "vit_base_patch16_clip_224": (32, {**TINY_VIT, **NARROW}, 8),
    "deit_tiny_patch16_224": (32, TINY_VIT, 8),
    "deit_tiny_distilled_patch16_224": (32, TINY_VIT, 8),
    "cait_xxs24_224": (32, TINY_VIT, 20),
    "beit_base_patch16_224": (32, {**TINY_VIT, **NARROW}, 8),
    "beitv2_base_patch16_224": (32, {**TINY_VIT, **NARROW}, 8),
    "eva02_tiny_patch14_224": (28, {"img_size": 28, "depth": 2}, 8),
    "mixer_s32_224": (64, {"img_size": 64}, 30),
    "resmlp_12_224": (64, {"img_size": 64}, 35),
    "gmlp_ti16_224": (64, {"img_size": 64}, 85),
    "hardcorenas_a": (64, {}, 50),
    "maxvit_rmlp_pico_rw_256": (64, {"img_size": 64}, 140),
    "mvitv2_tiny": (64, {"img_size": 64}, 70),
    "hiera_tiny_224": (64, {"img_size": 64}, 50),
    "starnet_s1": (64, {}, 75),
    "efficientvit_b0": (64, {}, 45),
    "nf_regnet_b0": (64, {}, 30),  # only squeeze-and-excitation: its convolutions standardise their weights
}
TORCHVISION = {
    "resnet18": (64, {}, 18),
    "googlenet": (64, {"init_weights": False}, 50),
    "shufflenet_v2_x0_5": (64, {}, 50),
    "squeezenet1_1": (64, {}, 24),
    "mobilenet_v2": (64, {}, 50),
    "mobilenet_v3_small": (64, {}, 50),
    "efficientnet_b0": (64, {}, 75),
    "regnet_y_400mf": (64, {}, 70),
    "densenet121": (64, {}, 115),
    "convnext_tiny": (64, {}, 50),
    "swin_t": (64, {}, 27),  # attention inside a function that torch.fx does not look into: its layers stay dense
    "swin_v2_t": (64, {}, 27),
    "vit_b_16": (32, {"image_size": 32}, 48),
}


def cases():
    for library, table in (("timm", TIMM), ("torchvision", TORCHVISION)):
        for name, (size, options, layers) in table.items():
            key = f"{library}/{name}"
            yield pytest.param(library, name, size, options, layers, id=key)


def build(library, name, options, seed=0):
    """A network with random weights, none of them at a value (zero biases or heads, unit scales) hiding mistakes."""
    torch.manual_seed(seed)
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model = make(name, num_classes=10, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def three_of(planned, pattern):
    """The first, middle and last layer that takes the pattern, of those small enough for a quick solve."""
    sizes = {
        entry.name: torch.Size(entry.shape).numel()
        for entry in planned.prunable
        if not pattern.misfit(torch.empty(entry.shape, device="meta"), entry.geometry.groups)
    }
    fitting = [name for name, size in sizes.items() if size <= max(300_000, min(sizes.values()))]
    return [fitting[0], fitting[len(fitting) // 2], fitting[-1]]


@pytest.mark.parametrize("library, name, size, options, layers", list(cases()))
def test_an_architecture_goes_all_the_way(library, name, size, options, layers, tmp_path):
    model = build(library, name, options)
    images = torch.randn(4, 3, size, size)
    planned = select_layers(Network(model, example=images[:2]), model, images[:2])
    assert len(planned.prunable) >= layers, planned.reasons()
    pattern = snows.NM(2, 4)
    picked = three_of(planned, pattern)
    result = snows.prune(
        model, images, pattern, k=2, layers=picked, steps=1, cg_iterations=3, progress=False, effort="quick"
    )
    assert set(result.masks) == set(picked)
    for layer, mask in result.masks.items():
        weight = result.state[result.weight_names[layer]]
        assert (weight[~mask] == 0).all() and torch.isfinite(weight).all()
        groups = mask.movedim(1, -1).reshape(-1, 4).sum(1)
        assert (groups == 2).all()
    rows = result.report.query("status == 'pruned'")
    assert (rows["loss_end"] <= rows["loss_start"] * (1 + 1e-6)).all()
    assert len(result.report) == len(planned)
    fresh = build(library, name, options, seed=1)
    snows.load(result.save(tmp_path / "pruned"), fresh)
    with torch.no_grad():
        assert torch.equal(fresh(images), result.model(images))
        assert not torch.equal(result.model(images), model(images))


# Every convolution of these standardises its weight before use: what is stored is not what multiplies.
CANNOT = {"resnetv2_50x1_bit": 64}


@pytest.mark.parametrize("name", CANNOT)
def test_an_architecture_that_cannot_be_pruned_is_refused_with_a_reason(name):
    images = torch.randn(4, 3, CANNOT[name], CANNOT[name])
    with pytest.raises(SnowsError, match=r"selects no layer; .*: its weight is computed, not stored: stem\.conv"):
        snows.prune(build("timm", name, {}), images, "2:4", progress=False, effort="quick")


def test_a_network_whose_format_has_a_version_is_saved_and_loaded(tmp_path):
    model = build("torchvision", "mnasnet0_5", {})
    result = snows.prune(
        model, torch.randn(4, 3, 64, 64), "2:4", k=0, layers=["layers.14"], progress=False, effort="quick"
    )
    snows.load(result.save(tmp_path / "pruned"), build("torchvision", "mnasnet0_5", {}, seed=1))
