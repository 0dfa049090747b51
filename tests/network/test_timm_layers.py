"""What the core knows of timm by name is what timm has: its padding, its layers, its registers."""

import itertools
import sys

import pytest
import torch
from timm.layers import Conv2dSame, ScaledStdConv2dSame, get_notrace_functions, get_notrace_modules
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.padding import pad_same as timms_pad_same
from torch import nn

from snows_core.network import timm_layers


@pytest.mark.parametrize(("size", "kernel"), list(itertools.product([(7, 8), (1, 5)], [(1, 1), (3, 3), (2, 5)])))
@pytest.mark.parametrize(("stride", "dilation"), [((1, 1), (1, 1)), ((2, 3), (1, 1)), ((1, 2), (2, 1))])
def test_padding_is_timms(size, kernel, stride, dilation):
    x = torch.randn(2, 3, *size)
    torch.testing.assert_close(
        timm_layers.pad_same(x, kernel, stride, dilation), timms_pad_same(x, kernel, stride, dilation), rtol=0, atol=0
    )


def test_layers_are_known_by_name_with_and_without_subclasses():
    class Mine(Conv2dSame):
        pass

    plain, mine = Conv2dSame(1, 1, 1), Mine(1, 1, 1)
    assert timm_layers.is_same_padded(plain) and timm_layers.is_same_padded(mine)
    assert timm_layers.is_plain_same_padded(plain) and not timm_layers.is_plain_same_padded(mine)
    assert not timm_layers.is_same_padded(nn.Conv2d(1, 1, 1)) and not timm_layers.is_same_padded(None)
    assert not timm_layers.is_same_padded(ScaledStdConv2dSame(1, 1, 1))
    assert timm_layers.is_norm_act(BatchNormAct2d(2)) and not timm_layers.is_norm_act(nn.BatchNorm2d(2))


def test_registers_are_timms_and_empty_without_it(monkeypatch):
    assert timm_layers.untraced_modules() == tuple(get_notrace_modules())
    assert set(timm_layers.untraced_functions()) == {f for f in get_notrace_functions() if callable(f)}
    monkeypatch.delitem(sys.modules, "timm.layers")
    assert timm_layers.untraced_modules() == timm_layers.untraced_functions() == ()
