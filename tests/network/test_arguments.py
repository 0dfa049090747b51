"""arguments.py: calls by keyword are recorded as calls by position."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, chosen, plan, random_images

from snows_core.network.graph import Network
from snows_core.network.operations import Kind


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.fc(input=m.conv(input=x).mean((2, 3))),
        lambda m, x: F.linear(
            input=F.conv2d(x, weight=m.conv.weight, bias=m.conv.bias).mean((2, 3)), weight=m.fc.weight, bias=m.fc.bias
        ),
        lambda m, x: F.linear(
            bias=m.fc.bias,
            weight=m.fc.weight,
            input=torch.conv2d(input=x, weight=m.conv.weight, stride=1, bias=m.conv.bias).mean((2, 3)),
        ),
    ],
)
def test_keyword_calls_are_recorded_by_position(call):
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            y = F.relu(input=torch.add(input=call(self, x), other=self.fc.bias))
            return self.head(input=F.layer_norm(input=y, normalized_shape=(4,)))

    model = awake(Keywords())
    for network in (Network(model), Network(model, example=random_images(2))):
        assert [layer.weight_name for layer in network.layers] == ["conv.weight", "fc.weight", "head.weight"]
        assert list(network.kinds.values()) == [
            Kind.CONVOLUTION,
            Kind.LINEAR,
            Kind.ACTIVATION,
            Kind.NORMALISATION,
            Kind.LINEAR,
        ]
        assert all(node.args for node in network.nodes[1:])
        assert torch.allclose(network.module(random_images(3)), model(random_images(3)))
    assert chosen(plan(model)) == ["fc"]


def test_batch_norm_by_keywords_is_merged():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            y = F.batch_norm(
                input=self.conv(x),
                running_mean=self.bn.running_mean,
                running_var=self.bn.running_var,
                weight=self.bn.weight,
                bias=self.bn.bias,
                training=False,
            )
            return self.head(self.bn(input=y))

    network = Network(awake(Keywords()), example=random_images(2))
    assert list(network.kinds.values()) == [Kind.CONVOLUTION, Kind.NORMALISATION, Kind.CONVOLUTION]
