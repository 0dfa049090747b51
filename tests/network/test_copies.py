"""copies.py: any model is copied, wrappers and masks of other tools are taken off, half precision becomes single."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm
from toys import random_images, small_resnet

from snows_core.network.copies import compute_dtype, in_full_precision, plain_copy, unwrap


def masked():
    model = small_resnet()
    prune.l1_unstructured(model.layer1.conv1, "weight", 0.5)
    prune.random_unstructured(model.layer1.conv1, "weight", 0.2)  # a second time: a container of two masks
    prune.ln_structured(model.layer2.conv1, "weight", 0.5, n=2, dim=0)
    prune.l1_unstructured(model.fc, "bias", 1)
    return model


def normalised(norm):
    def make():
        model = small_resnet()
        model.layer1.conv1 = norm(model.layer1.conv1)
        model.fc = norm(model.fc)
        return model.double().eval()

    return make


MAKERS = {
    "plain": small_resnet,
    "torch.nn.utils.prune": masked,
    "weight_norm": normalised(weight_norm),
    "spectral_norm": normalised(spectral_norm),
    "parametrized weight_norm": normalised(parametrizations.weight_norm),
    "parametrized spectral_norm": normalised(parametrizations.spectral_norm),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
@pytest.mark.parametrize("name", MAKERS)
def test_any_model_is_copied_and_computes_the_same(name, inference):
    model, images = MAKERS[name](), random_images(3)
    with torch.inference_mode(inference):
        expected = model(images).clone()  # hooks have now computed weights
        before = {key: value.clone() for key, value in model.state_dict().items()}
        twin = plain_copy(model)
    assert torch.allclose(twin(images), expected, rtol=1e-12, atol=1e-12)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    own = {tensor.data_ptr() for tensor in model.parameters()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in twin.parameters())
    twin(images).sum().backward()  # no tensor of inference mode is left in it
    assert all(parameter.grad is not None for parameter in twin.parameters() if parameter.requires_grad)


def test_masks_become_permanent_under_plain_names():
    model = masked()
    twin = plain_copy(model)
    assert twin.state_dict().keys() == small_resnet().state_dict().keys()
    assert torch.equal(twin.layer1.conv1.weight, model.layer1.conv1.weight)
    assert (twin.layer1.conv1.weight == 0).float().mean() >= 0.5
    assert prune.is_pruned(model) and not prune.is_pruned(twin)
    copy.deepcopy(twin)


def test_tied_weights_stay_tied_in_the_copy():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    twin = plain_copy(model)
    assert twin[0].weight is twin[1].weight


def test_wrappers_are_taken_off_from_outside_only():
    net = small_resnet()
    assert unwrap(net) is net
    assert unwrap(nn.DataParallel(net)) is net
    assert unwrap(torch.compile(net)) is net
    assert unwrap(torch.compile(nn.DataParallel(net))) is net
    inner = nn.Sequential(nn.DataParallel(net))
    assert unwrap(inner) is inner


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single_and_double_stays(dtype):
    model = small_resnet().to(dtype)
    assert compute_dtype(model) == torch.float32
    full = in_full_precision(plain_copy(model))
    assert {t.dtype for t in full.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert next(model.parameters()).dtype == dtype
    assert compute_dtype(small_resnet()) == torch.float64
    assert next(in_full_precision(small_resnet()).parameters()).dtype == torch.float64


def test_a_model_made_in_inference_mode_is_copied_into_one_that_can_be_differentiated():
    with torch.inference_mode():
        model = small_resnet()
    twin = plain_copy(model)
    twin(random_images(2)).sum().backward()
    assert twin.fc.weight.grad is not None
