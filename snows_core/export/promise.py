"""What a file says of its own zeros, so that it can be verified alone: pattern, count and digest of each weight.

A promise is JSON, under the key :data:`METADATA_KEY` of the metadata of a .safetensors or .onnx file, or of those that
PyTorch keeps with a state dict (``state._metadata[""]``)::

    {"pattern": "2:4",
     "layers": {"<weight name>": {"layer": "<layer name>", "pattern": "2:4", "shape": [64, 64, 3, 3], "zeros": 18432,
                                  "support": "<digest>"}}}

In a file of safetensors the names of weights are those of the state dict, in ONNX those of the initializers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from snows_core.errors import SnowsError, cannot_go_on, shown
from snows_core.files.bounded import MANIFEST_BYTES, parse_json
from snows_core.masks.patterns import Pattern, PerLayer, Unstructured, parse_pattern
from snows_core.result import PruneResult

METADATA_KEY = "snows"
"""The key of a file's metadata that holds its promise."""
GIVEN = "given masks"
"""What a manifest calls the pattern of masks that the user brought."""
_EXPECTED = "a promise as snows export writes it"


@dataclass(frozen=True, eq=False)
class LayerPromise:
    """What is promised of one layer's weight.

    Attributes:
        layer: name of the layer.
        weight: name of the weight.
        pattern: text of its pattern; empty where none is promised.
        shape: of the weight; None where that is not known.
        zeros: how many of its values are zero.
        support: :func:`support_digest` of it; empty where it is not known.
        mask: bool tensor, True where a weight may be other than zero; None where it is not known.
        fault: what is wrong with the promise itself; empty where nothing is.
    """

    layer: str
    weight: str
    pattern: str = ""
    shape: tuple[int, ...] | None = None
    zeros: int | None = None
    support: str = ""
    mask: Tensor | None = None
    fault: str = ""

    @property
    def words(self) -> str:
        """What is promised, in a word or two; empty where nothing is."""
        return self.pattern or ("mask" if self.mask is not None or self.fault else "zeros" if self.support else "")


@dataclass(frozen=True, eq=False)
class Promise:
    """What is promised of a file.

    Attributes:
        origin: where that is written, in words.
        pattern: text of the whole network's pattern.
        layers: what is promised of each layer.
    """

    origin: str
    pattern: str
    layers: tuple[LayerPromise, ...] = field(default=())


def support_digest(weight: Tensor) -> str:
    """Return the sha256 of where a weight is not zero, one bit a value, in the order of PyTorch's axes.

    Args:
        weight: (out, in, *kernel), of any type.

    >>> import torch
    >>> support_digest(torch.tensor([[0.5, 0.0]])) == support_digest(torch.tensor([[-3.0, 0.0]]))
    True
    """
    bits = (weight.detach() != 0).flatten().cpu().numpy()
    return hashlib.sha256(np.packbits(bits).tobytes()).hexdigest()


def promise_of(result: PruneResult) -> dict[str, Any]:
    """Return what a result promises of its pruned weights, ready for JSON.

    Args:
        result: of a run; its weights are looked at as they are in ``result.state``.
    """
    rows = result.report
    pruned = [name for name in rows.loc[rows["status"] == "pruned", "layer"] if name in result.weight_names]
    patterns = layer_patterns(result.manifest, pruned, rows["layer"])
    layers = {}
    for name in pruned:
        weight = result.state[result.weight_names[name]]
        layers[result.weight_names[name]] = {
            "layer": name,
            "pattern": patterns[name],
            "shape": list(weight.shape),
            "zeros": int((weight == 0).sum()),
            "support": support_digest(weight),
        }
    return {"pattern": str(result.manifest.get("pattern", "")), "layers": layers}


def layer_patterns(manifest: Mapping[str, Any], names: Iterable[str], every: Iterable[str]) -> dict[str, str]:
    """Return the text of each layer's own pattern.

    Args:
        manifest: of a result.
        names: the pruned layers.
        every: all layers of the network, which globs may name.

    Returns:
        Layer name to text; that of the run where it says nothing of single layers.
    """
    text, names = str(manifest.get("pattern") or ""), list(names)
    pattern = known_pattern(text)
    record = manifest.get("allocation")
    shares = record.get("sparsities") if isinstance(record, Mapping) else None
    if isinstance(pattern, PerLayer):
        try:
            shares = pattern.resolved(every).sparsities
        except SnowsError:  # written for another network
            shares = None
    if not isinstance(shares, Mapping) or not isinstance(pattern, PerLayer | Unstructured):
        return dict.fromkeys(names, text)
    return {name: share_text(shares[name]) if name in shares else text for name in names}


def share_text(share: Any) -> str:
    """Return the text of a layer's own sparsity, which :func:`known_pattern` reads.

    >>> share_text(0.25)
    'unstructured 0.25'
    """
    return f"unstructured {share!r}" if isinstance(share, float | int) and 0 < share < 1 else ""


def known_pattern(text: str) -> Pattern | None:
    """Return the pattern that a text names; None where it names none, as that of masks from elsewhere."""
    try:
        return parse_pattern(text) if text else None
    except SnowsError:
        return None


def read_promise(text: str, file: str) -> Promise:
    """Read the promise in a file's metadata, of which nothing is trusted.

    Args:
        text: JSON.
        file: the file, for messages.

    Returns:
        The promise.

    Raises:
        SnowsError: when it is none.
    """
    try:
        if len(text) > MANIFEST_BYTES:
            raise ValueError(f"{len(text):,} characters, where at most {MANIFEST_BYTES:,} can be meant")
        found = parse_json(text)
        layers = found.get("layers") if isinstance(found, dict) else None
        if not isinstance(layers, dict) or not isinstance(found.get("pattern"), str):
            raise ValueError("it has no pattern and layers")
        read = tuple(_layer_promise(name, entry) for name, entry in layers.items())
    except ValueError as error:
        got = f"'{file}', whose metadata '{METADATA_KEY}' cannot be read ({error})"
        raise cannot_go_on("source", got, _EXPECTED, "Export it again.") from error
    return Promise(f"the metadata of {file}", found["pattern"], read)


def _layer_promise(name: str, entry: Any) -> LayerPromise:
    if not isinstance(entry, dict):
        raise ValueError(f"no record of '{name}'")
    entry = {"layer": name.removesuffix(".weight"), "pattern": "", **entry}
    for key, kind in {"layer": str, "pattern": str, "shape": list, "zeros": int, "support": str}.items():
        if type(entry.get(key)) is not kind:
            raise ValueError(f"{shown(entry.get(key))[:80]} under '{key}' of '{name}'")
    if not all(type(size) is int and size >= 0 for size in entry["shape"]):
        raise ValueError(f"a shape of '{name}' that is none")
    shape = tuple(entry["shape"])
    return LayerPromise(entry["layer"], name, entry["pattern"], shape, entry["zeros"], entry["support"])
