"""frozen.py: convolutions with constant weights give PyTorch's numbers, to any order of derivative, at less cost."""

import pytest
import torch
from torch import nn

from snows_core.loss.frozen import frozen_convolution, shape_of

CASES = {
    "plain": nn.Conv2d(4, 6, 3, padding=1),
    "strided": nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(4, 6, 3, padding=2, dilation=2),
    "depthwise": nn.Conv2d(4, 8, 3, padding=1, groups=4),
    "odd": nn.Conv2d(4, 2, (3, 1), stride=(1, 2), padding=(1, 0)),
    "one axis": nn.Conv1d(4, 6, 3, padding=1),
    "three axes": nn.Conv3d(4, 6, 2, stride=2),
}


def both(name):
    module = CASES[name].double().requires_grad_(False)
    size = {"one axis": (5,), "three axes": (4, 3, 2)}.get(name, (5, 4))
    x = torch.randn(2, 4, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    return module, x, lambda x: frozen_convolution(x, module.weight, module.bias, shape_of(module))


@pytest.mark.parametrize("name", CASES)
def test_values_and_two_derivatives_are_those_of_the_convolution(name):
    module, x, frozen = both(name)
    assert torch.equal(frozen(x), module(x)) and torch.equal(frozen(x.detach()), module(x))
    assert torch.autograd.gradcheck(lambda x: frozen(x).tanh(), x)
    assert torch.autograd.gradgradcheck(lambda x: frozen(x).tanh(), x)


def test_autograd_keeps_no_activation_for_it():
    module, x, frozen = both("plain")

    def kept(function):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t.detach(), lambda t: t):
            function(2 * x)
        return [shape for shape in saved if shape == x.shape]

    assert kept(module) and not kept(frozen)


def test_forward_over_reverse_gives_the_same_products():
    module, x, frozen = both("strided")
    x, v = x.detach(), torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))

    def product(function):
        return torch.func.jvp(torch.func.grad(lambda x: function(x).tanh().square().sum()), (x,), (v,))[1]

    products = product(frozen), product(module)
    assert torch.allclose(*products, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Linear(4, 4),
        None,
        type("Own", (nn.Conv2d,), {})(4, 4, 3),
        nn.ConvTranspose2d(4, 4, 3),
    ],
)
def test_what_is_no_plain_convolution_is_left_to_pytorch(module):
    assert shape_of(module) is None
