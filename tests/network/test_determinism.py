"""determinism.py: kernels that give other numbers each time are refused by name; the caller's switches come back."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.network.determinism import deterministic_kernels

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


class Unpooling(nn.Module):
    """What PyTorch has no deterministic kernel for, on any device, between two convolutions."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))

    def forward(self, x):
        x, places = F.max_pool2d(self.two(self.one(x)), 2, return_indices=True)
        return self.three(F.max_unpool2d(x, places, 2)).mean((2, 3))


def switches():
    cudnn = torch.backends.cudnn
    algorithms = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    return *algorithms, cudnn.benchmark, cudnn.deterministic


@pytest.fixture(params=[(False, False, False, False), (True, True, True, False), (True, False, False, True)])
def of_the_caller(request):
    before = switches()

    def turn(enabled, warn_only, benchmark, deterministic):
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = benchmark, deterministic

    turn(*request.param)
    yield request.param
    turn(*before)


def test_the_switches_are_on_within_and_as_before_afterwards(of_the_caller):
    with deterministic_kernels():
        assert switches() == (True, False, False, True)
    assert switches() == of_the_caller
    with pytest.raises(KeyError), deterministic_kernels():
        raise KeyError
    assert switches() == of_the_caller


def test_a_run_is_deterministic_where_it_is_asked_to_be(monkeypatch):
    model, images, seen = small_resnet(), random_images(8), []
    forward = type(model.pool).forward
    monkeypatch.setattr(type(model.pool), "forward", lambda self, x: seen.append(switches()[0]) or forward(self, x))
    for call in (snows.prune, snows.estimate, snows.make_masks):
        seen.clear()
        call(model, images, k=1, effort="quick", progress=False, deterministic=True)
        assert seen and all(seen), call
        seen.clear()
        call(model, images, k=1, effort="quick", progress=False)
        assert seen and not any(seen), call
    found = snows.prune(model, images, k=0, effort="quick", progress=False, deterministic=True)
    assert found.manifest["settings"]["deterministic"] is True
    seen.clear()
    snows.compare(
        model, images, "2:4", test=images, masks="magnitude", updates="none", deterministic=True, progress=False
    )
    assert seen and all(seen)


def test_a_kernel_that_is_not_is_named_with_the_way_out():
    model, images = Unpooling().eval(), random_images(8, dtype=torch.float32)
    snows.prune(model, images, 0.5, k=1, effort="quick", progress=False)
    words = r"deterministic: got True, but max_unpooling2d\S* is not deterministic; expected .*device='cpu'"
    with pytest.raises(SnowsError, match=words):
        snows.prune(model, images, 0.5, k=1, effort="quick", progress=False, deterministic=True)
    assert not switches()[0]


class Backward(torch.autograd.Function):
    """Refused in the backward pass alone."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        if torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("some_backward_cuda does not have a deterministic implementation, but you set it")
        return slope


class RefusedBackward(nn.Module):
    def forward(self, x):
        return Backward.apply(x)


@pytest.mark.parametrize("options", [{"k": 2}, {"k": 0, "refine": 1}])
def test_one_that_is_met_in_a_backward_pass_ends_the_run(options):
    """No shorter segment, and no result without refinement, in place of what was asked for."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), RefusedBackward(), nn.Conv2d(4, 4, 3), nn.ReLU()
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).eval()
    images = random_images(8, dtype=torch.float32)
    model(images)
    with pytest.raises(SnowsError, match="True, but some_backward_cuda is not deterministic"):
        snows.prune(
            model,
            images,
            0.5,
            effort="quick",
            progress=False,
            deterministic=True,
            leaf_modules=[RefusedBackward],
            **options,
        )


def test_on_a_gpu_the_variable_of_its_matrix_products_has_to_be_set(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    options = {"device": "cuda", "deterministic": True}
    with pytest.raises(
        SnowsError, match=r"deterministic: got True on a GPU with CUBLAS_WORKSPACE_CONFIG=None.*:4096:8"
    ):
        snows.prune(small_resnet(), random_images(8), **options)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    with deterministic_kernels(on_gpu=True):
        assert switches()[0]


def test_the_option_is_a_switch():
    with pytest.raises(SnowsError, match=r"deterministic: got 'yes'; expected True or False"):
        snows.prune(small_resnet(), random_images(8), deterministic="yes")
