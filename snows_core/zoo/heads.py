"""Fine-tuned networks: how many classes a file of weights has, and a network with so many outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snows_core.errors import integer, invalid_argument
from snows_core.loss.features import gives_features
from snows_core.zoo import sources
from snows_core.zoo.weights import load_state, read_state


def head_name(model: nn.Module) -> str:
    """Return the name of the layer that gives the outputs: as timm says it, else the last matrix there is.

    Args:
        model: the network.

    Returns:
        Name of a linear layer or convolution; "" where there is none.
    """
    stated: Any = getattr(model, "default_cfg", None) or {}
    names = stated.get("classifier") or ()
    known = dict(model.named_modules())
    for name in (names,) if isinstance(names, str) else names:  # a distilled network has two of them
        if isinstance(getattr(known.get(name), "weight", None), Tensor):
            return str(name)
    matrices = [name for name, module in known.items() if isinstance(module, nn.Linear | nn.Conv2d)]
    return matrices[-1] if matrices else ""


def outputs_of(model: nn.Module) -> int | None:
    """Return how many outputs the last layer has, or None where no layer can be told to be it.

    Args:
        model: the network.
    """
    weight = getattr(model.get_submodule(head_name(model)), "weight", None)
    return len(weight) if isinstance(weight, Tensor) else None


def classes_of(model: nn.Module) -> int | None:
    """Return how many classes the outputs of a network tell apart; one logit tells two, and features tell none.

    Args:
        model: the network.
    """
    outputs = None if gives_features(model) else outputs_of(model)
    return None if outputs is None else max(2, outputs)


def from_file(address: str, weights: str | Path, num_classes: int | None = None) -> nn.Module:
    """Return a network with the weights of a file, with as many outputs as the file has.

    Args:
        address: of the network; see ``snows_core.zoo.sources``.
        weights: .safetensors or .pth file.
        num_classes: how many outputs there are; default as many as the file's last layer has.

    Returns:
        The network in eval mode.

    Raises:
        SnowsError: on a file that cannot be read, another number of classes than its own, or weights that do not fit.
    """
    state, model = read_state(weights), sources.build(address)
    last = state.get(f"{head_name(model)}.weight")
    found = None if last is None or last.ndim == 0 else len(last)
    wanted = found if num_classes is None else integer("num_classes", num_classes, 1, "a number of classes")
    if found is not None and wanted != found:
        raise invalid_argument(
            "num_classes",
            num_classes,
            f"{found}, the outputs in '{weights}'",
            "Leave it out.",
        )
    if wanted not in (None, outputs_of(model)) and address.startswith(sources.RESIZABLE):
        model = sources.build(address, wanted)
    return load_state(model, state, f"'{weights}'")
