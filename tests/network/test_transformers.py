"""Networks of Hugging Face, from configurations with random weights: traced with an example, and pruned."""

import pytest
import torch

import snows_core as snows
from snows_core.network.graph import Network
from snows_core.sweep.select import select_layers

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("few_images_are_fine")

SIZES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
SWIN = {"patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "num_labels": 5}
STEM, HEAD = "first layer (reads the image)", "classifier"


def made(network, configuration, **options):
    torch.manual_seed(0)
    kind, settings = getattr(transformers, network), getattr(transformers, configuration)
    model = kind(settings(**options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no weight at a value that hides mistakes
            if parameter.ndim < 2 or not parameter.any():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


NETWORKS = {
    # (network, configuration, options): image size, layers pruned by default, those left dense
    "vit": (("ViTForImageClassification", "ViTConfig", {**SIZES, "num_labels": 5}), 32, 12, {STEM: 1, HEAD: 1}),
    "vit, eager": (
        ("ViTForImageClassification", "ViTConfig", {**SIZES, "num_labels": 5, "attn_implementation": "eager"}),
        32,
        12,
        {STEM: 1, HEAD: 1},
    ),
    "clip": (("CLIPVisionModel", "CLIPVisionConfig", SIZES), 32, 12, {STEM: 1}),
    "clip with projection": (
        ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**SIZES, "projection_dim": 8}),
        32,
        12,
        {STEM: 1, HEAD: 1},
    ),
    "swin": (("SwinForImageClassification", "SwinConfig", {"image_size": 32, **SWIN}), 32, 25, {STEM: 1, HEAD: 1}),
    "swin, padded": (
        ("SwinForImageClassification", "SwinConfig", {"image_size": 28, **SWIN}),
        28,
        25,
        {STEM: 1, HEAD: 1},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_and_mlp_layers_can_be_pruned(name):
    made_of, size, count, left = NETWORKS[name]
    model = made(*made_of[:2], **made_of[2])
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    network = Network(model, example=images)
    assert not network.module.meta["opaque"]
    planned = select_layers(network, model, images)
    assert len(planned.prunable) == count
    reasons = [entry.sentence for entry in planned.dense if entry.sentence != "embedding"]
    assert {reason: reasons.count(reason) for reason in reasons} == left
    more = torch.randn(5, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got, want = network.module(more), model(more)
    for key, value in got.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, want[key], rtol=1e-4, atol=1e-5)
    values = network.run(network.nodes[1:], {network.image: images})
    outputs = [node for node in network.output.values() if isinstance(node, torch.fx.Node)]
    assert outputs and all(isinstance(values[node], torch.Tensor) for node in outputs)


@pytest.mark.parametrize("name", ["vit", "clip", "swin"])
@pytest.mark.parametrize("k", [0, 2])
def test_they_are_pruned_end_to_end(name, k):
    made_of, size, count, _ = NETWORKS[name]
    model = made(*made_of[:2], **made_of[2])
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    result = snows.prune(model, images, "2:4", k=k, steps=1, cg_iterations=2, progress=False, effort="quick")
    assert len(result.masks) == count
    for layer, mask in result.masks.items():
        weight = result.state[result.weight_names[layer]]
        assert (weight[~mask] == 0).all() and torch.isfinite(weight).all() and float(mask.double().mean()) == 0.5
    with torch.no_grad():
        assert not torch.equal(result.model(images)[0], model(images)[0])
