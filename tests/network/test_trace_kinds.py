"""trace.py, select.py: wrapped, masked, normalised, half-precision models are traced, others refused with advice."""

import dataclasses
from types import MethodType
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from toys import RESNET_INNER, Wrapped, awake, chosen, plan, random_images, reasons, small_resnet

from snows_core.errors import SnowsError
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.graph import Network


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: torch.compile(nn.DataParallel(m))])
def test_wrapped_networks_are_traced_under_the_names_inside(wrap):
    model = wrap(small_resnet()).eval()
    images = random_images(2)
    network = Network(model, example=images)
    assert [layer.name for layer in network.layers][:2] == ["conv1", "layer1.conv1"]
    assert chosen(plan(model)) == RESNET_INNER
    assert torch.allclose(network.module(images), unwrap(model)(images))


@pytest.mark.parametrize("wrap, name", [(nn.DataParallel, "module"), (torch.compile, "_orig_mod")])
def test_wrapped_parts_are_traced_through_and_keep_their_names(wrap, name):
    model = small_resnet()
    model.layer1 = wrap(model.layer1)
    model.eval()
    network = Network(model, example=random_images(2))
    names = [layer.weight_name for layer in network.layers]
    assert names[1] == f"layer1.{name}.conv1.weight"
    assert set(names) <= set(dict(model.named_parameters()))
    assert not network.module.meta["opaque"]
    assert chosen(plan(model))[0] == f"layer1.{name}.conv1"


def masked():
    model = small_resnet()
    prune.l1_unstructured(model.layer1.conv1, "weight", 0.5)
    prune.l1_unstructured(model.fc, "weight", 0.5)
    return model


@pytest.mark.filterwarnings("ignore:.*zero already and stay zero.*")
@pytest.mark.parametrize("inference", [False, True])
def test_masks_of_torch_prune_are_part_of_the_weights(inference):
    model, images = masked(), random_images(2)
    with torch.inference_mode(inference):
        model(images)
        network = Network(model, example=images)
        planned = plan(model, images)
    assert chosen(planned) == RESNET_INNER
    assert set(reasons(planned)) == {"conv1", "fc"}, "no rows for weight_orig"
    layer = next(layer for layer in network.layers if layer.name == "layer1.conv1")
    assert layer.weight_name == "layer1.conv1.weight" in dict(plain_copy(model).named_parameters())
    assert torch.equal(network.weight(layer), model.layer1.conv1.weight)
    assert not network.weight(layer).is_inference()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "norm",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
    ],
)
def test_computed_weights_stay_dense_with_one_row(norm, inference):
    model, images = small_resnet(), random_images(2)
    model.layer1.conv1, model.layer2.conv2 = norm(model.layer1.conv1), norm(model.layer2.conv2)
    model.double().eval()
    with torch.inference_mode(inference):
        model(images)
        planned = plan(model, images)
    assert chosen(planned) == ["layer1.conv2", "layer2.conv1", "layer2.downsample.0"]
    assert reasons(planned) == {
        "conv1": "first layer (reads the image)",
        "fc": "classifier",
        "layer1.conv1": "its weight is computed, not stored",
        "layer2.conv2": "its weight is computed, not stored",
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_traced_in_single(dtype):
    model = small_resnet().to(dtype)
    images = random_images(2, dtype=torch.float32)
    network = Network(model, example=images.to(dtype))
    assert {p.dtype for p in network.module.parameters()} == {torch.float32}
    assert chosen(plan(model, images)) == RESNET_INNER
    assert chosen(plan(model, images.to(dtype))) == RESNET_INNER
    assert model.conv1.weight.dtype == dtype


def quantised():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(256, 8), nn.Linear(8, 2)).eval()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 1)).eval()), r"scripted .*network, then script"),
        (lambda: torch.jit.trace(small_resnet(), random_images(1)).eval(), r"scripted .*original network"),
        (quantised, r"quantised module \('2', Linear\).*then quantise result\.model"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyLinear(3)).eval(), r"lazy parameters .*\('1'\).*Run it once"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(3, 3)).train(), r"train mode.*model\.eval\(\)"),
        (lambda: "resnet50", r"got str; expected a torch\.nn\.Module"),
    ],
)
def test_other_kinds_are_refused_with_the_way_out(make, message):
    with pytest.raises(SnowsError, match=f"model: got .*{message}" if "got" not in message else message):
        Network(make(), example=random_images(2))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_scripted_part_stays_as_it_is():
    model = small_resnet()
    model.layer1 = torch.jit.script(model.layer1)
    planned = plan(model.eval())
    assert chosen(planned) == RESNET_INNER[2:]
    assert reasons(planned)["layer1.conv1"] == "used inside a module that is not traced"


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor
    loss: object = None


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


OUTPUTS = {
    "data class": lambda y: Output(y * 2, y),
    "named tuple": lambda y: Pair(y * 2, y),
    "dictionary": lambda y: {"b": y * 2, "a": [y, (y + 1,)]},
    "tuple": lambda y: (y * 2, None, y),
    "data class in a list": lambda y: [Output(y, y + 1), {"c": y}],
    "whole numbers beside": lambda y: (y, y.argmax(1)),
    "masked classes": lambda y: torch.cat([y, torch.full_like(y[:, :1], float("-inf"))], 1),
}


@pytest.mark.parametrize("way", OUTPUTS)
def test_structured_outputs_are_compared_and_usable(way):
    model, images = Wrapped(small_resnet(), OUTPUTS[way]).eval(), random_images(2)
    assert chosen(plan(model)) == [f"net.{name}" for name in RESNET_INNER]
    network = Network(model, example=images)
    values = network.run(network.nodes[1:], {network.image: images})
    leaves = torch.utils._pytree.tree_leaves(network.output)
    nodes = [leaf for leaf in leaves if isinstance(leaf, torch.fx.Node)]
    assert nodes and all(isinstance(values[node], torch.Tensor) for node in nodes)


def test_a_forward_set_on_the_instance_and_hooks_on_the_outermost_module_are_followed():
    model, images = small_resnet(), random_images(2)
    plain = model(images)
    model.register_forward_hook(lambda module, args, output: output * 3)
    model.forward = MethodType(lambda self, x: type(self).forward(self, x) + 1, model)
    assert torch.allclose(model(images), (plain + 1) * 3)
    assert torch.allclose(Network(model, example=images).module(images), model(images))


def test_optional_extras_and_star_arguments():
    class Stars(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_resnet()

        def forward(self, *args, **kwargs):
            return self.net(*args, **kwargs)

    model, images = awake(Stars()), random_images(2)
    assert torch.allclose(Network(model).module(images), model(images))
