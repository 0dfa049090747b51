"""A pruned network as a folder that a model hub takes: weights, config.json, and a card made from the run's record."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snows_core.errors import require_extra
from snows_core.export.files import check_folder
from snows_core.export.hub.model_card import About, folder_name, model_card
from snows_core.export.hub.reloading import CONFIG, PROGRAM, WEIGHTS, loading_lines, other_config, timm_config
from snows_core.export.weights import ExportedWeights, finished, in_type, summary_of, write_safetensors
from snows_core.files import fill_folder
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.fitting import load_weights
from snows_core.result import PruneResult

CARD = "README.md"
FILES = (WEIGHTS, CONFIG, CARD, PROGRAM)
"""What such a folder may hold; the last is there where the class of the network is of no library that others have."""


@dataclass(frozen=True, repr=False)
class HubFolder:
    """A folder for a model hub.

    Attributes:
        path: the folder.
        loading: the lines of Python that give the network back, run beside the folder.
        weights: what was written of the weights.
        library: "timm" where timm makes the network from the folder in one call, else "pytorch".
    """

    path: Path
    loading: tuple[str, ...]
    weights: ExportedWeights
    library: str

    def __repr__(self) -> str:
        return f"{self.path}: {self.weights}\n" + "\n".join(f"    {line}" for line in self.loading)


def hub_folder(
    result: PruneResult,
    folder: str | Path,
    *,
    images: Tensor | None = None,
    about: About | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> HubFolder:
    """Write a folder that ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads, and a hub shows.

    timm's description is tried out before the folder is there: timm makes the network from it, and that must answer as
    the pruned one does, bit for bit. A network that timm cannot make so is described by its class instead.

    Args:
        result: of a run that came to its end, with a model.
        folder: new or empty, or one that holds such files.
        images: example images (N, C, H, W). Only a network that timm does not know needs them: with them, the folder
            holds the network as a program, which PyTorch alone runs.
        about: what the card says beyond the run's record, for instance the licence.
        dtype: see :func:`snows_core.export.weights.export_weights`.
        overwrite: replace such files that are there.

    Returns:
        The folder, with the lines that load it.

    Raises:
        SnowsError: on an interrupted result, or one without a model; a folder that holds other things or cannot be
            written; values that the type cannot hold; or where huggingface_hub is not installed.
    """
    require_extra("export", "huggingface_hub", "yaml")
    check_folder(folder, FILES, overwrite, what="hub folder")
    about, folder = about or About(), Path(folder)
    model = finished(result).module
    written, underflows = in_type(result, dtype)
    weights = summary_of(written, folder / WEIGHTS, "safetensors", dtype, underflows)
    network = _as_loaded(model, written)
    made: list[dict[str, Any]] = []

    def write(target: Path) -> None:
        write_safetensors(written, target / WEIGHTS)
        config = timm_config(network, target, images)
        if config is None:
            config = other_config(network, target, images, about.build)
        stated = {"license": about.license, "mean": about.mean, "std": about.std}
        weights_config = config.get("pretrained_cfg", config)
        weights_config.pop("license", None)  # what timm states of weights that may be others than these
        weights_config |= {key: value for key, value in stated.items() if value}
        (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        card = model_card(replace(result, state=written.state), config, weights, about, folder_name(folder))
        (target / CARD).write_text(card, encoding="utf-8")
        made.append(config)

    fill_folder(folder, write, seal=CONFIG)
    if not made[-1].get("program"):
        (folder / PROGRAM).unlink(missing_ok=True)  # of what was there before
    lines = tuple(loading_lines(made[-1], str(folder)))
    return HubFolder(folder, lines, weights, "timm" if "architecture" in made[-1] else "pytorch")


def _as_loaded(model: nn.Module, written: PruneResult) -> nn.Module:
    """Return a copy of a network on the CPU, in single precision, with weights as they stand in the file."""
    network = plain_copy(unwrap(model)).cpu().float().eval()
    load_weights(network, written.state)
    return network
