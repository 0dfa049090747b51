"""ResNet-20 and ResNet-56 for small images (He et al. 2016, section 4.2), with 1 x 1-convolution shortcuts.

Parameter names are those of the published CIFAR-10 checkpoint, so its state dict loads as it is: ``conv1``, ``bn1``,
``layer1.0.conv1``, ..., ``layer2.0.downsample.0``, ``fc``.
"""

from __future__ import annotations

from torch import Tensor, nn

from snows_core.errors import invalid_argument


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with batch norm and a skip connection: ``relu(x' + f(x))``.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        stride: of the first convolution; with a stride or a change of channels the skip is a 1 x 1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        skip = x if self.downsample is None else self.downsample(x)
        return self.relu2(out + skip)


class ResNetCIFAR(nn.Module):
    """Three stages of residual blocks at full, half and quarter resolution, then average pooling and a classifier.

    Args:
        depth: 6 n + 2 layers, n blocks a stage: 20, 32, 44, 56, ...
        num_classes: outputs of the classifier.
        in_channels: 3 for colour, 1 for grey images.
        width: channels of the first stage; doubled at each of the other two.

    Raises:
        SnowsError: when the depth is not 6 n + 2.
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise invalid_argument("depth", depth, "6 n + 2 layers, such as 20, 32 or 56")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``x`` (N, in_channels, H, W), H and W at least 4, to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(ResidualBlock(outputs, outputs) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNetCIFAR:
    """Return an untrained ResNet-20 for ``num_classes``, ``in_channels`` and first ``width``; see ResNetCIFAR."""
    return ResNetCIFAR(20, num_classes, in_channels, width)


def resnet56(num_classes: int = 10, in_channels: int = 3, width: int = 16) -> ResNetCIFAR:
    """Return an untrained ResNet-56 for ``num_classes``, ``in_channels`` and first ``width``; see ResNetCIFAR."""
    return ResNetCIFAR(56, num_classes, in_channels, width)
