"""The whole network with batch norm folded, against the model itself: values, and gradients in every parameter."""

import pytest
import timm
import torch
from toys import awake, random_images, relative, small_resnet, small_vit

from snows_core.loss.joint_forward import JointForward
from snows_core.network.graph import Network
from snows_core.network.operations import Kind

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def efficient():
    return awake(timm.create_model("efficientnet_lite0", num_classes=3))


@pytest.mark.parametrize("make, size, folded", [(small_resnet, 8, 6), (small_vit, 4, 0), (efficient, 32, 40)])
def test_values_and_gradients_are_those_of_the_model(make, size, folded):
    model, images = make(), random_images(2, size)
    network = Network(model)
    forward = JointForward(network, [network.output])
    assert len(forward.sources) >= folded
    generator = torch.Generator().manual_seed(0)
    state = {
        name: (value.detach() + 0.1 * torch.randn(value.shape, generator=generator).to(value)).requires_grad_(True)
        for name, value in model.named_parameters()
    }
    expected = torch.func.functional_call(model, state, (images,))
    (found,) = forward(images, state)
    assert relative(found, expected) < 1e-10
    probe = torch.randn(expected.shape, generator=generator).to(expected)
    wanted, got = (
        torch.autograd.grad((out * probe).sum(), list(state.values()), allow_unused=True) for out in (expected, found)
    )
    compared = [(one, other) for one, other in zip(got, wanted, strict=True) if other is not None]
    assert len(compared) > 5 and all(relative(one, other) < 1e-8 for one, other in compared)


def test_what_layers_read_and_write_is_seen():
    model, images = small_resnet(), random_images(2)
    network, seen, told = Network(model), {}, {}
    JointForward(network, [network.output])(images, {}, seen)
    hooks = {"layer1.conv2": "layer1.bn2", "layer2.downsample.0": "layer2.downsample.1", "fc": "fc"}
    for layer, norm in hooks.items():
        model.get_submodule(layer).register_forward_pre_hook(
            lambda m, args, layer=layer: told.__setitem__((layer, 0), args[0].clone())
        )
        model.get_submodule(norm).register_forward_hook(
            lambda m, args, out, layer=layer: told.__setitem__((layer, 1), out.clone())
        )
    model(images)
    assert len(seen) == sum(kind in (Kind.CONVOLUTION, Kind.LINEAR) for kind in network.kinds.values())
    for layer in network.layers:
        if layer.name in hooks:
            assert all(relative(seen[layer.node][i], told[layer.name, i]) < 1e-12 for i in (0, 1))


def test_the_scale_of_a_folded_norm_is_its_own_or_that_of_the_state():
    model = small_resnet()
    network = Network(model)
    forward = JointForward(network, [network.output])
    nodes = {layer.name: layer.node for layer in network.layers}
    norm = model.layer1.bn2
    spread = (norm.running_var + norm.eps).sqrt()
    assert relative(forward.scale(nodes["layer1.conv2"], {}), norm.weight / spread) < 1e-12
    twice = {"layer1.bn2.weight": 2 * norm.weight}
    assert relative(forward.scale(nodes["layer1.conv2"], twice), 2 * norm.weight / spread) < 1e-12
    assert forward.scale(nodes["fc"], {}) is None
