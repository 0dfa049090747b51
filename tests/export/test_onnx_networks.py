"""Real and shipped networks, and timm's with random weights, as ONNX files: parity, and their 2:4 zeros in the file."""

import importlib
import os
import time
from pathlib import Path

import onnx
import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt
from timm.models.vision_transformer import VisionTransformer

import snows_core as snows
from snows_core import zoo

PARITY = 1e-4  # largest difference, as a share of the largest output
HAS_DATA = "SNOWS_DATA" in os.environ and "TORCH_HOME" in os.environ


def exported(model, images, folder, exporter=None):
    """Prune a network to 2:4 by magnitude alone, export it, look at both, and print one line of the table."""
    result = snows.prune(model, images[:64], pattern="2:4", update="none", progress=False)
    start = time.perf_counter()
    export = snows.export_onnx(result, images, folder / "net.onnx", exporter=exporter)
    seconds = time.perf_counter() - start
    assert export.relative_difference <= PARITY
    assert export.agreement == 100 and export.images == len(images)
    held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(str(export.path)).graph.initializer}
    assert set(export.table["layer"]) == set(result.masks)
    for row in export.table.itertuples():
        weight = torch.tensor(held[row.weight].T if row.transposed else held[row.weight])
        groups = weight.movedim(1, -1).reshape(-1, 4)  # along the input channels, for each kernel position
        assert int((groups != 0).sum(1).max()) <= 2
        assert not weight[~result.masks[row.layer]].any()
    print(
        f"{type(model).__name__} | {export.exporter} | {export.opset} | {export.relative_difference:.1e} | "
        f"{export.agreement:g} % | {export.images} | {seconds:.1f} s | {export.failed}"
    )
    return export


def of_experiment(name, count):
    chosen = zoo.experiment(name)
    model, bundle = chosen.load_model(), chosen.load_data()
    images, _, _ = bundle.test.sample(min(count, len(bundle.test)), 0)
    if len(images) < count:
        images = torch.cat([images, bundle.train.sample(count - len(images), 0)[0]])
    return model, images


def small_convnext():
    return ConvNeXt(num_classes=10, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)).eval()


def small_vit():
    return VisionTransformer(64, 16, num_classes=10, embed_dim=48, depth=2, num_heads=4).eval()


@pytest.mark.parametrize("name", ["digits-resnet20", "digits-vit-b"])
def test_shipped_networks_on_all_their_test_images(name, tmp_path):
    model, images = of_experiment(name, 500)
    assert exported(model, images, tmp_path, "torchscript").images == 500


@pytest.mark.parametrize("make, exporter", [(small_convnext, "torchscript"), (small_vit, None)])
def test_timm_networks_with_random_weights(make, exporter, tmp_path):
    layers = importlib.import_module("timm.layers")
    before = layers.is_exportable(), layers.is_scriptable(), layers.use_fused_attn()
    exported(make(), torch.randn(64, 3, 64, 64), tmp_path, exporter)
    assert (layers.is_exportable(), layers.is_scriptable(), layers.use_fused_attn()) == before


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["digits-resnet20", "digits-resnet50", "digits-vit-b", "digits-vit-l"])
def test_shipped_networks_by_each_exporter(name, exporter, tmp_path):
    model, images = of_experiment(name, 500)
    assert exported(model, images, tmp_path, exporter).exporter == exporter


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "resnet18"])
def test_timm_networks_with_random_weights_on_500_images(name, exporter, tmp_path):
    size = {"img_size": 96} if name.startswith("vit") else {}
    model = timm.create_model(name, num_classes=10, **size).eval()
    exported(model, torch.randn(500, 3, 96, 96), tmp_path, exporter)


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_DATA, reason="needs SNOWS_DATA and TORCH_HOME with CIFAR-10, samples of ImageNet and weights"
)
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", ["resnet20", "efficientnet-lite0", "vit_small_patch14_saliency"])
def test_real_networks_on_500_real_images(name, exporter, tmp_path):
    model, images = of_experiment(name, 500)
    export = exported(model, images, tmp_path, exporter)
    assert export.images == 500 and Path(export.path).stat().st_size > 1e6
