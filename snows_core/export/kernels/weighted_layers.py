"""The layers of a network that multiply by a weight, with what a backend of sparse kernels looks at.

Modules are listed, not the nodes of a graph: that is what PyTorch's conversion to sparse tensors replaces, and it
needs no images. How often a weight is used is seen on one image, where there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import invalid_argument
from snows_core.network.check_model import check_tensors
from snows_core.network.check_trace import without_fast_path
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example
from snows_core.result import PruneResult

LINEAR, ATTENTION = "linear", "attention"
ONE_BY_ONE, CONVOLUTION = "1x1 convolution", "convolution"
GROUPED, TRANSPOSED = "grouped convolution", "transposed convolution"
KINDS = (LINEAR, ONE_BY_ONE, CONVOLUTION, GROUPED, TRANSPOSED, ATTENTION)
"""Kinds of layers; "attention" is a matrix that ``nn.MultiheadAttention`` reads itself."""
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class WeightedLayer:
    """One layer.

    Attributes:
        name: of its module.
        weight_name: of its weight in the state dict.
        weight: (out, in / groups, *kernel); of a transposed convolution turned round to be so.
        kind: one of ``KINDS``.
        positions: output positions of one image (pixels or tokens); 0 where nothing was run.
    """

    name: str
    weight_name: str
    weight: Tensor
    kind: str
    positions: float = 0

    @property
    def multiplications(self) -> float:
        """Of one image, all weights counted, zeros too."""
        return self.weight.numel() * self.positions


def weighted_layers(
    model: nn.Module | PruneResult, images: Tensor | Iterable[Any] | None = None
) -> list[WeightedLayer]:
    """List the layers of a network that multiply by a weight.

    Args:
        model: a network, or a result; one that was loaded without a model lists the layers of its report.
        images: one or more images (N, C, H, W), to count positions; None leaves them 0.

    Returns:
        The layers, in the order of the modules.

    Raises:
        SnowsError: on what is no network, one without such layers, or images that do not fit.
    """
    if isinstance(model, PruneResult) and model.model is None:
        layers = _of_state(model)
    else:
        network = model.module if isinstance(model, PruneResult) else model
        check_tensors(network)
        network = unwrap(network)
        layers = _of_modules(network)
        if images is not None:
            layers = _seen(network, layers, images)
    if not layers:
        raise invalid_argument("model", "a network without a layer that multiplies by a weight", "one with some")
    return layers


def _of_modules(network: nn.Module) -> list[WeightedLayer]:
    layers, inside = list[WeightedLayer](), set[str]()
    for name, module in network.named_modules():
        parts = [(_joined(name, "weight"), getattr(module, "weight", None))]
        if isinstance(module, nn.MultiheadAttention):
            inside.add(_joined(name, "out_proj"))
            own = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
            parts = [(_joined(name, part), getattr(module, part)) for part in own]
            kind = ATTENTION
        elif isinstance(module, _CONVOLUTIONS):
            single = all(size == 1 for size in module.kernel_size)
            kind = GROUPED if module.groups > 1 else ONE_BY_ONE if single else CONVOLUTION
        elif isinstance(module, _TRANSPOSED):
            kind = TRANSPOSED
        elif isinstance(module, nn.Linear):
            kind = ATTENTION if name in inside else LINEAR
        else:
            continue
        for weight_name, weight in parts:
            if isinstance(weight, Tensor) and weight.is_floating_point():
                detached = weight.detach().transpose(0, 1) if kind == TRANSPOSED else weight.detach()
                layers.append(WeightedLayer(_layer_name(name, weight_name), weight_name, detached, kind))
    return layers


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _layer_name(module: str, weight: str) -> str:
    """Name a layer by its module, and a matrix of an attention module by itself."""
    return module if weight.rpartition(".")[2] == "weight" else weight


def _of_state(result: PruneResult) -> list[WeightedLayer]:
    """Read layers from a report and a state dict, the kind from names and shapes."""
    layers = []
    for name in result.report["layer"]:
        weight_name = result.weight_names.get(name, f"{name}.weight" if name else "weight")
        weight = result.state.get(weight_name)
        if weight is None or weight.ndim < 2 or not weight.is_floating_point():
            continue
        kernel = weight.shape[2:]
        kind = ATTENTION if weight_name.endswith("proj_weight") else LINEAR
        if kernel:
            kind = GROUPED if weight.shape[1] == 1 else ONE_BY_ONE if kernel.numel() == 1 else CONVOLUTION
        layers.append(WeightedLayer(str(name), weight_name, weight.detach(), kind))
    return layers


@torch.no_grad()
def _seen(network: nn.Module, layers: list[WeightedLayer], images: Tensor | Iterable[Any]) -> list[WeightedLayer]:
    """Run one image through a copy, and note how many positions each layer gives."""
    copy = plain_copy(network).eval()
    image = first_images(calibration_parts(images, limit=1, few=0), 1)
    first = next((p for p in copy.parameters() if p.is_floating_point()), image)
    found: dict[str, float] = {}

    def hook_of(name: str, outputs: int) -> Any:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            output = output[0] if isinstance(output, tuple) else output  # of attention: values, then weights
            found[name] = found.get(name, 0) + output.numel() / outputs

        return note

    attention = {name: m for name, m in copy.named_modules() if isinstance(m, nn.MultiheadAttention)}
    for layer in layers:
        owner = _owner(layer, attention)
        outputs = attention[owner].embed_dim if owner else len(layer.weight)
        if layer.kind == TRANSPOSED:
            outputs = int(copy.get_submodule(layer.name).out_channels)  # type: ignore[arg-type] # a module's number
        copy.get_submodule(owner or layer.weight_name.rpartition(".")[0]).register_forward_hook(
            hook_of(layer.weight_name, outputs)
        )
    with without_fast_path():
        run_on_example(copy, image.to(first.device, first.dtype))
    return [replace(layer, positions=found.get(layer.weight_name, 0)) for layer in layers]


def _owner(layer: WeightedLayer, attention: Mapping[str, nn.Module]) -> str:
    """Return the attention module that reads a layer's matrix, or an empty name."""
    if layer.kind != ATTENTION:
        return ""
    path = layer.weight_name.rpartition(".")[0]
    return path if path in attention else path.rpartition(".")[0]
