"""Networks that the library builds itself: the digits twins, and CIFAR networks that timm has under no name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from snows_core.zoo.resnet_cifar import resnet20

if TYPE_CHECKING:  # timm is loaded when a network is built
    from timm.models.resnet import ResNet

DIGITS_CHANNELS = (16, 24, 40, 64)  # widths of ResNet-50's four stages; 64, 128, 256, 512 in the original


def small_image_stem(model: ResNet, in_channels: int = 3) -> ResNet:
    """Give a timm ResNet the stem for small images: a 3 x 3 convolution of stride 1 and no pooling, in place."""
    parts: Any = model  # timm says of which class its own first layers are; these are of others
    parts.conv1 = nn.Conv2d(in_channels, parts.conv1.out_channels, 3, padding=1, bias=False)
    parts.maxpool = nn.Identity()
    return model


def digits_resnet20() -> nn.Module:
    """Return an untrained ResNet-20 for one-channel images."""
    return resnet20(in_channels=1)


def digits_resnet50() -> nn.Module:
    """Return an untrained narrow ResNet-50: timm's class, its 3-4-6-3 bottlenecks, an eighth of the width."""
    from timm.models.resnet import Bottleneck, ResNet

    block: Any = Bottleneck  # timm asks for an instance where it means the class
    model = ResNet(block, (3, 4, 6, 3), num_classes=10, in_chans=1, channels=DIGITS_CHANNELS)
    return small_image_stem(model, in_channels=1)


def _digits_vit(name: str, init_values: float) -> nn.Module:
    """Return a timm ViT of the named depth, 64 wide with 4 heads, on 4 x 4 patches of a 16 x 16 image."""
    import timm

    return timm.create_model(
        name, img_size=16, patch_size=4, embed_dim=64, num_heads=4, init_values=init_values, in_chans=1, num_classes=10
    )


def digits_vit_l() -> nn.Module:
    """Return an untrained narrow ViT-L: all 24 blocks, with layer scale, without which it does not train."""
    return _digits_vit("vit_large_patch16_224", init_values=0.01)


def digits_vit_b() -> nn.Module:
    """Return an untrained narrow ViT-B: all 12 blocks, with layer scale."""
    return _digits_vit("vit_base_patch16_224", init_values=0.1)


def resnet50_cifar100() -> nn.Module:
    """Return an untrained ResNet-50 for CIFAR-100: timm's, with the stem for small images and 100 classes."""
    import timm

    return small_image_stem(cast("ResNet", timm.create_model("resnet50", num_classes=100)))


DIGITS_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits-resnet20": digits_resnet20,
    "digits-resnet50": digits_resnet50,
    "digits-vit-b": digits_vit_b,
    "digits-vit-l": digits_vit_l,
}
