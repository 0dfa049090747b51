"""given.py, names.py: masks made elsewhere are read under every name they go by, or refused with the truth."""

import copy

import pytest
import torch
from foreign import PRUNED, described, the_masks, with_zeros
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from toys import random_mask, small_resnet

from snows_core.masks.given import foreign_masks
from snows_core.masks.given import foreign_masks as same_function


class Masked(nn.Module):
    """A parametrization with a mask in a buffer."""

    def __init__(self, mask, buffer="mask"):
        super().__init__()
        self.buffer = buffer
        self.register_buffer(buffer, mask)

    def forward(self, weight):
        return weight * getattr(self, self.buffer)


@pytest.fixture(scope="module")
def model():
    return small_resnet()


def with_hooks(model):
    """Masks as hooks of torch.nn.utils.prune, all kept weights as they were."""
    pruned = copy.deepcopy(model)
    for name, mask in the_masks(model).items():
        torch_prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
    return pruned


def parametrized(model, buffer="mask"):
    pruned = copy.deepcopy(model)
    for name, mask in the_masks(model).items():
        parametrize.register_parametrization(pruned.get_submodule(name), "weight", Masked(mask.float(), buffer))
    return pruned.double()


def masked_twice(model):
    pruned = copy.deepcopy(model)
    for name, mask in the_masks(model).items():
        first = mask | random_mask(mask.shape, seed=7)
        for part in (first, mask | ~first):
            parametrize.register_parametrization(pruned.get_submodule(name), "weight", Masked(part))
    return pruned


def with_wrapper_inside(model):
    pruned = with_zeros(model)
    pruned.layer1 = nn.DataParallel(pruned.layer1)
    return pruned


def compiled(model):
    return torch.compile(model, backend="eager")


class Result:
    def __init__(self, model):
        self.masks = the_masks(model)
        self.weight_names = {name: f"{name}.weight" for name in PRUNED}


def renamed(masks, form):
    return {form.format(name): mask for name, mask in masks.items()}


SOURCES = {
    "bool by layer": the_masks,
    "bool by parameter": lambda m: renamed(the_masks(m), "{}.weight"),
    "floats by layer": lambda m: {n: mask.float() for n, mask in the_masks(m).items()},
    "integers by parameter": lambda m: {f"{n}.weight": mask.to(torch.uint8) for n, mask in the_masks(m).items()},
    "int64": lambda m: {n: mask.long() for n, mask in the_masks(m).items()},
    "half": lambda m: {n: mask.half() for n, mask in the_masks(m).items()},
    "bool and floats": lambda m: {n: mask if i else mask.float() for i, (n, mask) in enumerate(the_masks(m).items())},
    "weight_mask": lambda m: {f"{n}.weight_mask": mask.double() for n, mask in the_masks(m).items()},
    "layer_mask": lambda m: renamed(the_masks(m), "{}_mask"),
    "layer.mask": lambda m: renamed(the_masks(m), "{}.mask"),
    "prefixed": lambda m: renamed(the_masks(m), "module._orig_mod.{}.weight_mask"),
    "sparse": lambda m: {n: mask.to_sparse() for n, mask in the_masks(m).items()},
    "masks of every parameter, ones where nothing is removed": lambda m: {
        n: torch.ones_like(p) if n.removesuffix(".weight") not in PRUNED else the_masks(m)[n.removesuffix(".weight")]
        for n, p in m.named_parameters()
    },
    "result": Result,
    "model": with_zeros,
    "state dict": lambda m: with_zeros(m).state_dict(),
    "hooks": with_hooks,
    "state dict of hooks": lambda m: with_hooks(m).state_dict(),
    "parametrized": parametrized,
    "state dict of parametrizations": lambda m: parametrized(m).state_dict(),
    "a mask under a name of its own": lambda m: parametrized(m, "my_mask").state_dict(),
    "masked twice": masked_twice,
    "state dict of two masks": lambda m: masked_twice(m).state_dict(),
    "data parallel": lambda m: nn.DataParallel(with_zeros(m)),
    "data parallel state dict": lambda m: nn.DataParallel(with_hooks(m)).state_dict(),
    "compiled": lambda m: compiled(with_zeros(m)),
    "compiled hooks, state dict": lambda m: compiled(with_hooks(m)).state_dict(),
    "data parallel of compiled, state dict": lambda m: nn.DataParallel(compiled(parametrized(m))).state_dict(),
    "a wrapper in the middle": with_wrapper_inside,
    "a wrapper in the middle, state dict": lambda m: nn.DataParallel(with_wrapper_inside(m)).state_dict(),
    "scripted": lambda m: torch.jit.trace(with_zeros(m), torch.randn(1, 3, 8, 8).double()),
    "extra state": lambda m: {**with_zeros(m).state_dict(), "layer1._extra_state": {"epoch": 3}},
}


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize("source", SOURCES)
def test_masks_are_read_from_every_source(model, source):
    given, expected = SOURCES[source](model), the_masks(model)
    found = foreign_masks(given, *described(model))
    assert found.keys() == expected.keys()
    assert all(found[name].dtype == torch.bool and torch.equal(found[name], expected[name]) for name in expected)


def test_masks_are_copies(model):
    given = the_masks(model)
    for name, mask in foreign_masks(given, *described(model)).items():
        assert mask.data_ptr() != given[name].data_ptr()


def test_a_model_that_itself_goes_by_other_names_is_matched_too(model):
    weights, aliases, known = described(model)
    wrapped = (
        {f"module.{n}": w for n, w in weights.items()},
        {f"module.{p}": f"module.{n}" for p, n in aliases.items()},
        [f"module.{n}" for n in known],
    )
    assert foreign_masks(the_masks(model), *wrapped).keys() == {f"module.{name}" for name in PRUNED}
    hooked = {name: f"{name}.weight_orig" for name in weights}
    assert foreign_masks(with_hooks(model).state_dict(), weights, {p: n for n, p in hooked.items()}, known).keys() == {
        *PRUNED
    }


def test_a_module_that_is_called_module_keeps_its_name():
    net = nn.Sequential()
    net.add_module("module", nn.Linear(4, 4))
    net.add_module("last", nn.Linear(4, 2))
    mask = random_mask((4, 4))
    for key in ("module", "module.weight", "module.module.weight", "_orig_mod.module.module.weight_mask"):
        found = foreign_masks({key: mask}, *described(net))
        assert found.keys() == {"module"} and torch.equal(found["module"], mask)


def test_masks_in_the_names_of_prune_stand_above_the_weights_beside_them(model):
    """A kept weight that happens to be zero stays kept, and a zero of weight_orig under a one of the mask too."""
    pruned = with_hooks(model)
    with torch.no_grad():
        pruned.layer1.conv2.weight_orig.zero_()
        pruned.layer1.conv2.weight_orig[0] = 1
    found = foreign_masks(pruned.state_dict(), *described(model))
    assert torch.equal(found["layer1.conv2"], the_masks(model)["layer1.conv2"])


def test_weights_that_hooks_or_parametrizations_compute_are_taken_as_computed(model):
    pruned = with_zeros(model).train()
    parametrizations.spectral_norm(pruned.layer1.conv2)
    parametrizations.weight_norm(pruned.layer2.conv1)
    before = copy.deepcopy(pruned.state_dict())
    found = foreign_masks(pruned, *described(model))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {
        name: int(mask.sum()) for name, mask in the_masks(model).items()
    }
    assert all(torch.equal(value, before[name]) for name, value in pruned.state_dict().items()), "the model changed"
    assert foreign_masks(pruned.state_dict(), *described(model)).keys() == {*PRUNED}
    old = with_zeros(model)
    torch.nn.utils.spectral_norm(old.layer1.conv2)
    assert foreign_masks(old, *described(model)).keys() == {*PRUNED}


def test_a_buffer_of_the_model_that_is_called_mask_is_no_mask_of_a_layer():
    net = small_resnet()
    net.layer1.register_buffer("conv1_mask", torch.zeros(3, 3))  # as attention layers keep attn_mask
    net.layer1.register_buffer("attn_mask", torch.full((3, 3), -100.0))
    pruned = copy.deepcopy(net)
    mask = random_mask((3, 8))
    with torch.no_grad():
        pruned.fc.weight.mul_(mask)
    for source in (pruned.state_dict(), nn.DataParallel(pruned).state_dict()):
        assert foreign_masks(source, *described(net)).keys() == {"fc"}


def test_a_layer_without_a_zero_stays_dense(model):
    found = foreign_masks({"fc": torch.ones(3, 8), "layer1.conv1": random_mask((4, 4, 3, 3))}, *described(model))
    assert found.keys() == {"layer1.conv1"}


def test_masks_of_what_is_known_but_no_layer_are_left_to_the_caller(model):
    weights, aliases, known = described(model)
    mask = random_mask(weights.pop("fc").shape)
    del aliases["fc.weight"]
    for key in ("fc", "fc.weight", "module.fc.weight_mask"):
        for given in (mask, mask.float()):
            found = foreign_masks({key: given, "conv1": random_mask((4, 3, 3, 3)).float()}, weights, aliases, known)
            assert torch.equal(found["fc"], mask)
    pruned = with_zeros(model)
    with torch.no_grad():
        pruned.fc.weight.mul_(mask)
    assert foreign_masks(pruned, weights, aliases, known).keys() == {*PRUNED}, "zeros of other weights say nothing"


def test_masks_py_offers_the_same_function():
    assert same_function is foreign_masks
