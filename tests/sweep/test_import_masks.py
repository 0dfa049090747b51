"""import_masks: one example of each kind of checkpoint that other tools leave, and ``prune`` takes the same."""

import copy

import pytest
import torch
from foreign import PRUNED, the_masks, with_zeros
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


class Masked(nn.Module):
    """A parametrization as SR-STE has it, without its gradient: the weight times a mask."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight):
        return weight * self.mask


def lottery_ticket(model):
    """Weights gone back to where they began, masks of all parameters beside them, full ones among them."""
    began = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    masks = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    masks |= {f"{name}.weight": mask.float() for name, mask in the_masks(model).items()}
    return {"epoch": 3, "state_dict": began, "masks": masks}


def asp(model):
    """A state dict with ASP's buffers in every layer that it looked at, also where it pruned nothing."""
    state = {f"module.{name}": value for name, value in with_zeros(model).state_dict().items()}
    for name in (*PRUNED, "fc"):
        weight = model.get_submodule(name).weight
        mask = the_masks(model).get(name, torch.ones_like(weight, dtype=torch.bool))
        state[f"module.{name}.__weight_mma_mask"] = mask
        state[f"module.{name}.__weight_mma_pruned_p"] = torch.where(mask, 0.0, weight.detach())
    return state


def hooked(model):
    pruned = copy.deepcopy(model)
    for name, mask in the_masks(model).items():
        torch_prune.custom_from_mask(pruned.get_submodule(name), "weight", mask)
    return pruned


def parametrized(model):
    pruned = copy.deepcopy(model)
    for name, mask in the_masks(model).items():
        parametrize.register_parametrization(pruned.get_submodule(name), "weight", Masked(mask))
    return pruned


SOURCES = {
    "state dict with zeros": lambda m: with_zeros(m).state_dict(),
    "dictionary of masks": the_masks,
    "torch.nn.utils.prune": hooked,
    "its state dict": lambda m: hooked(m).state_dict(),
    "parametrize": parametrized,
    "ASP, under module.": asp,
    "masks of a lottery ticket": lambda m: lottery_ticket(m)["masks"],
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_checkpoint_gives_its_masks(source):
    model = small_resnet()
    found, expected = snows.import_masks(SOURCES[source](model), model), the_masks(model)
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", ["zeros", "lottery", "asp"])
def test_a_file_is_read_as_what_is_in_it(tmp_path, content):
    model, path = small_resnet(), tmp_path / "masks.pth"
    made = {"zeros": lambda m: {"model": with_zeros(m).state_dict()}, "lottery": lottery_ticket, "asp": asp}
    torch.save(made[content](model), path)
    for where in (path, str(path)):
        found = snows.import_masks(where, nn.DataParallel(model))
        assert all(torch.equal(found[name], mask) for name, mask in the_masks(model).items()) and len(found) == 2
    save_file(with_zeros(model).state_dict(), tmp_path / "w.safetensors")
    result = snows.prune(
        model, random_images(4), masks=tmp_path / "w.safetensors", k=0, update="layerwise", effort="quick"
    )
    assert all(torch.equal(result.masks[name], mask) for name, mask in the_masks(model).items())
    assert result.manifest["settings"]["masks"] == "given"


def test_masks_of_permuted_channels_are_those_of_the_permuted_network():
    dense, _ = snows.permute_channels(small_resnet(), random_images(2), "2:4")
    model, masks = dense, {"layer1.conv2": snows.NM(2, 4).mask(dense.layer1.conv2.weight.detach())}
    pruned = snows.apply_masks(model, masks)
    found = snows.import_masks(pruned.state_dict(), model)
    assert found.keys() == masks.keys() and torch.equal(found["layer1.conv2"], masks["layer1.conv2"])


class _Code:
    def __reduce__(self):
        return print, ("this code must not run",)


def test_what_is_no_mask_file_is_refused(tmp_path, capsys):
    model, path = small_resnet(), tmp_path / "masks.pth"
    with pytest.raises(SnowsError, match=r"masks: got .*no file; expected a \.safetensors or \.pth file"):
        snows.import_masks(path, model)
    torch.save({"masks": _Code()}, path)
    with pytest.raises(SnowsError, match=r"masks: got .*cannot be read.*expected a file of tensors only"):
        snows.import_masks(path, model)
    assert "must not run" not in capsys.readouterr().out
    torch.save({"epoch": 3}, path)
    with pytest.raises(SnowsError, match="masks: got a int under 'epoch'; expected a dictionary of tensors"):
        snows.import_masks(path, model)
    with pytest.raises(SnowsError, match="masks: got no zeros"):
        snows.import_masks(model.state_dict(), model)
    with pytest.raises(SnowsError, match="model: got dict; expected"):
        snows.import_masks({}, {})
    with pytest.raises(SnowsError, match=r"masks: got 'magnitude', which is no file.*mask="):
        snows.PruneSettings(masks="magnitude")
