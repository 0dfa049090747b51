"""How many bytes a pruned network takes: dense, compressed, packed, and which of these also runs faster."""

from __future__ import annotations

import io
import textwrap
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from snows_core.errors import invalid_argument, require_extra
from snows_core.export.kernels.held_pattern import Held, held_pattern
from snows_core.export.kernels.weighted_layers import weighted_layers
from snows_core.export.storage import packing
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.result import PruneResult
from snows_core.tables import WIDTH

if TYPE_CHECKING:
    import pandas as pd

ZIP_LEVEL = 6  # of deflate; what zip and PyTorch's readers take for granted
ZSTD_LEVEL = 3  # the library's own; level 19 takes a minute for twenty million weights and gains a few per cent
HALF = 2  # bytes of a float16
_SYMBOLS = (
    "Symbols: w weights, k of them kept, r rows (outputs), b = 2 bytes a value in float16. Layers that do not hold a "
    "pattern, and all other tensors, are dense there."
)


@dataclass(frozen=True)
class _Weight:
    """One pruned weight: how many there are, how many are kept, in how many rows and columns, and what they hold."""

    w: int
    k: int
    r: int
    columns: int
    held: Held

    @property
    def group(self) -> tuple[int, int] | None:
        """The N:M that it holds; None without one."""
        n, colon, m = self.held.label.partition(":")
        return (int(n), int(m)) if colon and n.isdecimal() else None


def sizes(model: nn.Module | PruneResult) -> pd.DataFrame:
    """Return what a pruned network takes in bytes, by way of storing it.

    Compressed sizes are measured: all tensors really go through the compressor. The others are formulas
    (:mod:`snows_core.export.storage.packing`). Only 2:4 packed is read by hardware; every other form is unpacked to a
    dense network first, which then runs as fast as a dense one.

    Args:
        model: a network, or a result of prune, also one that was loaded without a model; not changed.

    Returns:
        One row a form: storage, formula, how ("formula" or "measured"), pruned_weights (bytes of the weights that were
        pruned: of a plain network, those with more than a few zeros), whole_model (bytes of all tensors), share (of
        the whole model in dense float32), faster.

    Raises:
        SnowsError: on what is no network, one without zeros, or where zstandard is not installed.

    >>> net = nn.Sequential(nn.Linear(8, 4, bias=False))
    >>> net[0].weight.data.copy_(torch.tensor([1.0, 2.0, 0.0, 0.0]).repeat(4, 2)).shape
    torch.Size([4, 8])
    >>> sizes(net).set_index("storage").loc[["dense float32", "2:4 packed"], "pruned_weights"].tolist()
    [128, 36]
    """
    require_extra("export", "zstandard")
    state, names, weights = _read(model)
    others = sum(_bytes(tensor, HALF) for name, tensor in state.items() if name not in names)
    rows = [_dense(state, names, "float32", 4), _dense(state, names, "float16", HALF)]
    for kind, dtype in (("float32", torch.float32), ("float16", torch.float16)):
        for label, level, compress in (
            ("zip", f"deflate, level {ZIP_LEVEL}", _zipped),
            ("zstd", f"zstd, level {ZSTD_LEVEL}", _zstandard),
        ):
            parts = compress(_raw({name: state[name] for name in names}, dtype)), compress(_raw(state, dtype))
            rows.append((f"{label} of {kind}", level, "measured", *parts, "no"))
    for label, formula, faster, size in _forms(weights):
        pruned = sum(size(weight) for weight in weights)
        rows.append((label, formula, "formula", pruned, pruned + others, faster))
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["storage", "formula", "how", "pruned_weights", "whole_model", "faster"])
    frame.insert(5, "share", frame["whole_model"] / frame["whole_model"].iloc[0])
    return frame


def size_words(frame: pd.DataFrame) -> str:
    """Return what a table of :func:`sizes` says, in sentences.

    Args:
        frame: the table.
    """
    half = frame[frame["storage"].str.endswith("float16") & (frame["how"] == "measured")]
    packed = frame[frame["how"] == "formula"].iloc[2:]  # behind the two dense ones
    best, other = (part.loc[part["pruned_weights"].idxmin()] for part in (half, packed))
    share = best["pruned_weights"] / other["pruned_weights"] - 1
    compare = f"{abs(share):.1%} {'less' if share < 0 else 'more'} than" if abs(share) >= 0.0005 else "as much as"
    compressed = (
        f"Compressed, the pruned weights take {best['pruned_weights']:,} bytes ({best['storage']}, measured), "
        f"{compare} the smallest formula ({other['storage']}, {other['pruned_weights']:,})"
    )
    if share < 0:
        compressed += ": a compressor also finds what the values have in common"
    faster = "None of these runs faster: no layer holds 2:4, so they save bytes alone."
    if "2:4 packed" in set(frame["storage"]):
        faster = (
            "None but 2:4 packed runs faster, and that where `snows eligibility` says yes; others save bytes alone."
        )
    words = [_SYMBOLS, f"{compressed}.", faster]
    return "\n".join(line for text in words for line in textwrap.wrap(text, WIDTH, break_on_hyphens=False))


def _read(model: nn.Module | PruneResult) -> tuple[dict[str, Tensor], list[str], list[_Weight]]:
    """Return all tensors, the names of the pruned weights, and what of these the formulas need."""
    if isinstance(model, PruneResult):
        layers = weighted_layers(model)
        state: Mapping[str, Any] = model.state or model.module.state_dict()
        masked = {model.weight_names.get(name, f"{name}.weight") for name in model.masks}
    else:
        check_tensors(model)
        network, masked = plain_copy(unwrap(model)), set[str]()
        layers, state = weighted_layers(network), network.state_dict()
    pruned, names = list[_Weight](), list[str]()
    for layer in layers:
        held = held_pattern(layer.weight)
        chosen = layer.weight_name in masked if masked else held.label != "dense"
        if chosen and held.zeros and layer.weight_name in state:
            kept = int(layer.weight.count_nonzero())
            rows = len(layer.weight)
            pruned.append(_Weight(layer.weight.numel(), kept, rows, layer.weight[0].numel(), held))
            names.append(layer.weight_name)
    if not pruned:
        raise invalid_argument("model", "a network whose layers have no zeros", "a pruned one")
    return {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}, names, pruned


def _bytes(tensor: Tensor, width: int) -> int:
    """Return the bytes of a dense tensor; whole numbers keep their own format."""
    return tensor.numel() * (width if tensor.is_floating_point() else tensor.element_size())


def _dense(state: Mapping[str, Tensor], names: Iterable[str], kind: str, width: int) -> tuple[Any, ...]:
    pruned, whole = (sum(_bytes(state[name], width) for name in part) for part in (names, state))
    return f"dense {kind}", f"{width} w", "formula", pruned, whole, "no"


def _forms(weights: list[_Weight]) -> Iterator[tuple[str, str, str, Callable[[_Weight], int]]]:
    """Yield name, formula, whether it runs faster, and bytes of a weight, of each form that some of them can take."""
    if any("2:4" in weight.held.patterns for weight in weights):
        yield (
            "2:4 packed",
            "w/2 b + w/2 x 2 bits",
            "with 2:4 kernels",
            lambda x: packing.group_packed(x.w, 2, 4, HALF) if "2:4" in x.held.patterns else x.w * HALF,
        )
    if any(weight.group for weight in weights):
        groups = " ".join(sorted({"{}:{}".format(*weight.group) for weight in weights if weight.group}))
        if groups != "2:4":  # which stands there already
            yield (
                f"N:M packed ({groups})",
                "N/M w b + N/M w ceil(log2 M) bits",
                "no",
                lambda x: packing.group_packed(x.w, *x.group, HALF) if x.group else x.w * HALF,
            )
        yield (
            f"N:M packed, fewest bits ({groups})",
            "N/M w b + w/M log2(C(M, N)) bits",
            "no",
            lambda x: packing.group_packed_fewest(x.w, *x.group, HALF) if x.group else x.w * HALF,
        )
    yield "CSR, int32 columns", "k b + 4 k + 4 (r + 1)", "no", lambda x: packing.compressed_rows(x.r, x.k, HALF, 4)
    yield (
        "CSR, int16 columns",
        "k b + 2 k + 4 (r + 1), up to 32,768 columns",
        "no",
        lambda x: packing.compressed_rows(x.r, x.k, HALF, 2 if x.columns <= packing.INT16_COLUMNS else 4),
    )
    yield "bitmap", "w bits + k b", "no", lambda x: packing.bitmap(x.w, x.k, HALF)


def _raw(state: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of each tensor, by name as saved files have them, floating-point ones in a number format."""
    for name, tensor in sorted(state.items()):
        held = tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        yield name, held.view(-1).view(torch.uint8).numpy().tobytes() if held.numel() else b""


def _zipped(tensors: Iterable[tuple[str, bytes]]) -> int:
    """Return the size of a zip archive with one file a tensor."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=ZIP_LEVEL) as archive:
        for name, content in tensors:
            archive.writestr(name, content)
    return len(buffer.getbuffer())


def _zstandard(tensors: Iterable[tuple[str, bytes]]) -> int:
    """Return the size of all tensors one after the other in one zstd frame."""
    import zstandard

    return len(zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(b"".join(content for _, content in tensors)))
