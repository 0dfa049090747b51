"""How somebody who does not have this package gets a pruned network back: config.json, and the lines of Python.

A network of timm is described as timm itself does it (``timm.models.save_for_hf``), so that one call makes it, with its
weights, from a folder or from a hub. The description is believed only after timm has made the network from it and that
has answered as the pruned one does: a layer that was exchanged by hand is in no such description. Every other network
is described by its class; where that is of no library that others have, ``model.pt2`` is the whole network as a program
that PyTorch runs alone.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snows_core.export.files import exported
from snows_core.network.example import same_function

WEIGHTS, CONFIG, PROGRAM = "model.safetensors", "config.json", "model.pt2"
LIBRARIES = ("torchvision", "transformers", "segmentation_models_pytorch")
"""Packages that others have, whose networks need no program beside the weights."""


def timm_config(model: nn.Module, folder: Path, images: Tensor | None) -> dict[str, Any] | None:
    """Return timm's own description of a network, or None where timm cannot make the network from it.

    A network of timm has loaded timm already; for every other one this works without it.

    Args:
        model: the pruned network, as its weights are in the file.
        folder: with these weights; the description is written into it, and removed where it is not true.
        images: example images (N, C, H, W), or None for random ones of the size that timm names.
    """
    known, timm = getattr(model, "pretrained_cfg", None), sys.modules.get("timm")
    hub: Any = sys.modules.get("timm.models._hub")
    if not isinstance(known, Mapping) or timm is None or hub is None:
        return None
    path = folder / CONFIG
    log = logging.getLogger("timm")
    level = log.level
    try:
        log.setLevel(logging.ERROR)
        hub.save_config_for_hf(model, path)
        config = json.loads(path.read_text(encoding="utf-8"))
        with torch.random.fork_rng(devices=[]):  # timm draws weights before it reads them
            again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            size = config["pretrained_cfg"]["input_size"]
            seen = torch.rand(1, *size) if images is None else images.float()
        if answers_alike(model, again, seen):
            return dict(config)
    except Exception:  # whatever timm makes of a network that it cannot describe, or of a folder it cannot read yet
        pass
    finally:
        log.setLevel(level)
    path.unlink(missing_ok=True)
    return None


@torch.no_grad()
def answers_alike(model: nn.Module, other: nn.Module, images: Tensor) -> bool:
    """Tell whether two networks of the same layers and weights answer to ``images`` with the very same numbers."""
    answers = [pytree.tree_leaves(network(images.clone())) for network in (model, other)]
    tensors = [[value for value in values if isinstance(value, Tensor)] for values in answers]
    same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(*tensors, strict=True)]
    return bool(same) and all(same)


def other_config(
    model: nn.Module, folder: Path, images: Tensor | None, build: tuple[str, str] | None
) -> dict[str, Any]:
    """Return the description of a network by its class, and write its program into the folder where that is needed.

    Args:
        model: the pruned network, as its weights are in the file.
        folder: of these weights.
        images: example images (N, C, H, W); without them no program can be written.
        build: module to import, and the expression that makes the untrained network; None where nobody has said.

    Returns:
        The content of config.json.
    """
    kind = type(model)
    config: dict[str, Any] = {"library_name": "pytorch", "class": f"{kind.__module__}.{kind.__qualname__}"}
    if isinstance(classes := getattr(model, "num_classes", None), int):
        config["num_classes"] = classes
    if images is not None:
        config["input_size"] = list(images.shape[1:])
    if build is not None:
        config |= {"import": build[0], "build": build[1]}
    shared = build is not None and build[0].split(".")[0] in LIBRARIES
    if images is not None and not shared and _wrote_program(model, folder, images.float()):
        config["program"] = PROGRAM
    return config


def _wrote_program(model: nn.Module, folder: Path, images: Tensor) -> bool:
    """Write a network as a program where PyTorch can make one that answers as it does."""
    try:
        torch.export.save(exported(model, images)[0], folder / PROGRAM)
        program = torch.export.load(folder / PROGRAM).module()
        if same_function(model, program, images if len(images) > 1 else images.repeat(2, 1, 1, 1)).passes:
            return True
    except OSError:
        raise
    except Exception:  # whatever the exporter makes of anybody's forward pass
        pass
    (folder / PROGRAM).unlink(missing_ok=True)
    return False


def loading_lines(config: Mapping[str, Any], place: str, on_hub: bool = False) -> list[str]:
    """Return the lines of Python that give the network back, from a description.

    Args:
        config: content of config.json.
        place: the folder; or, on a hub, the name of the repository.
        on_hub: whether it is on a hub.

    Returns:
        Two or three lines; the last or the one before makes ``model``, in eval mode.
    """
    if "architecture" in config:
        address = json.dumps(f"{'hf_hub' if on_hub else 'local-dir'}:{place}")
        lines = ["import timm", f"model = timm.create_model({address}, pretrained=True).eval()"]
        colours = (config["pretrained_cfg"].get("input_size") or [3])[0] == 3
        transform = "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))"
        return [*lines, transform] if colours else lines
    if config.get("program"):
        file = _file(PROGRAM, place, on_hub)
        return [f"import {_hub(on_hub)}torch", f"model = torch.export.load({file}).module()"]
    return weights_lines(config, place, on_hub)


def weights_lines(config: Mapping[str, Any], place: str, on_hub: bool = False) -> list[str]:
    """Return three lines of Python that load the weights into a network of the class that was pruned.

    Args:
        config: content of config.json, of a network that timm does not describe.
        place: the folder; or, on a hub, the name of the repository.
        on_hub: whether it is on a hub.

    Returns:
        The lines. Where nobody has said how the network is made, the second names its class alone.
    """
    module, _, name = str(config["class"]).rpartition(".")
    libraries = f"{_hub(on_hub)}safetensors.torch"
    load = f"model.load_state_dict(safetensors.torch.load_file({_file(WEIGHTS, place, on_hub)}))"
    if "build" in config:
        return [f"import {libraries}, {config['import']}", f"model = {config['build']}.eval()", load]
    made = f"model = {name}(...).eval()  # of {module}, with the arguments that it was made with"
    return [f"import {libraries}", made, load]


def _hub(on_hub: bool) -> str:
    return "huggingface_hub, " if on_hub else ""


def _file(name: str, place: str, on_hub: bool) -> str:
    """Return the expression of a file's path."""
    if on_hub:
        return f"huggingface_hub.hf_hub_download({json.dumps(place)}, {json.dumps(name)})"
    return json.dumps(f"{place}/{name}")
