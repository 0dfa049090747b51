"""1x1 convolutions as linear layers over pixels: the same numbers, in a form for which there are sparse kernels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize


class PointwiseLinear(nn.Module):
    """A 1x1 convolution, computed by a linear layer on the channels of each pixel.

    y[n, o, i, j] = sum_c W[o, c] x[n, c, s i, t j] + b[o] with strides (s, t). Pixels are read channels last, so that
    nothing is copied where images lie in memory that way (``memory_format=torch.channels_last``).

    Args:
        convolution: of kernel 1x1, one group and no padding; its weight is shared, not copied.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight, bias = convolution.weight, convolution.bias
        outputs, inputs = weight.shape[:2]
        self.linear = nn.Linear(inputs, outputs, bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight.detach().reshape(outputs, inputs), requires_grad=weight.requires_grad)
        if isinstance(bias, nn.Parameter):
            self.linear.bias = bias
        self.stride = tuple(convolution.stride)
        self.train(convolution.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return (N, out, H', W') for images or features (N, in, H, W), in memory channels last."""
        down, right = self.stride
        pixels = images[:, :, ::down, ::right].permute(0, 2, 3, 1)  # (N, H', W', in)
        count, height, width, inputs = pixels.shape
        answers: Tensor = self.linear(pixels.reshape(-1, inputs))  # (N H' W', out)
        return answers.view(count, height, width, -1).permute(0, 3, 1, 2)


def pointwise_as_linear(model: nn.Module) -> list[str]:
    """Put linear layers in the place of a model's 1x1 convolutions, in place.

    Only plain ones are rewritten: one group, no padding, PyTorch's own forward, no hooks or parametrisations.

    Args:
        model: a copy of the caller's; where it is such a convolution itself, it stays.

    Returns:
        The names of the convolutions that are rewritten; their weight is now that of ``<name>.linear``.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 4, 3)).double()
    >>> before = net(torch.ones(1, 3, 8, 8).double())
    >>> pointwise_as_linear(net), torch.allclose(before, net(torch.ones(1, 3, 8, 8).double()))
    (['0'], True)
    """
    made: dict[nn.Module, PointwiseLinear] = {}  # a module that stands in two places stays one
    found = [(name, part) for name, part in model.named_modules(remove_duplicate=False) if name]
    names = []
    for name, part in found:
        if isinstance(part, nn.Conv2d) and _is_pointwise(part):
            path, _, last = name.rpartition(".")
            made[part] = made.get(part) or PointwiseLinear(part)
            setattr(model.get_submodule(path), last, made[part])
            names.append(name)
    return names


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        type(module).forward is nn.Conv2d.forward
        and type(module)._conv_forward is nn.Conv2d._conv_forward
        and tuple(module.kernel_size) == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not parametrize.is_parametrized(module)
    )
