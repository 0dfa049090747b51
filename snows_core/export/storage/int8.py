"""A network in eight bits by PyTorch's own post-training quantisation, and what that does to the zeros of pruning.

The path is PT2E of torchao, which replaces the deprecated ``torch.ao.quantization``: ``torch.export`` records the
network, batch norms are folded into the convolutions before them, observers see every activation on calibration images,
and weights are rounded. Activations get one scale and one zero point a tensor, in 0 .. 255; a weight gets one scale an
output channel and no zero point, ``w ~ s_o q`` with q in -128 .. 127. So a weight of zero is the integer zero, exactly,
and whatever pattern was pruned still holds; a small weight may be rounded to zero as well.

What comes back computes the rounded numbers in floating point: its outputs are those of INT8 kernels up to the order of
sums, its speed is not. Kernels come with ``torchao.quantization.pt2e.lowering`` on x86, or with another runtime.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from snows_core.activations.calibration import calibration_parts, first_images
from snows_core.errors import cannot_go_on, invalid_argument, reason_of, require_extra
from snows_core.evaluate import evaluate
from snows_core.export.files import exported
from snows_core.masks.patterns import NM
from snows_core.network.check_model import check_tensors
from snows_core.network.copies import plain_copy, unwrap
from snows_core.network.example import run_on_example
from snows_core.result import PruneResult

if TYPE_CHECKING:
    import pandas as pd

BATCH = 16  # images that pass at a time: larger activations cost more in fresh memory than they save
PACKED = NM(2, 4)  # what sparse tensor cores store as half of the values and two bits of index for each
_WEIGHTS = ("conv1d", "conv2d", "linear")  # operations whose second argument is a weight
_COLUMNS = ["weight", "outputs", "count", "zeros", "int8_zeros", "filled", "two_of_four", "int8_two_of_four"]


@dataclass(frozen=True, repr=False)
class Int8:
    """A network with weights and activations rounded to eight bits.

    Attributes:
        model: module of images (N, C, H, W) that computes with the rounded numbers, on the CPU.
        weights: parameter name of the original to its integers, int8, in the same shape.
        scales: the same names to the scales (out,), float32: the weight is ``scales * weights``, batch norm folded in.
        table: one row a quantised weight: weight (its name), outputs, count, zeros (before), int8_zeros, filled (zeros
            that became another number), two_of_four (whether it held 2:4 before), int8_two_of_four (whether it does).
    """

    model: nn.Module
    weights: dict[str, Tensor]
    scales: dict[str, Tensor]
    table: pd.DataFrame

    def __repr__(self) -> str:
        count, zeros, after, filled = (int(self.table[name].sum()) for name in _COLUMNS[2:6])
        return (
            f"{count:,} weights of {len(self.table)} layers in eight bits: {zeros:,} were zero, {after:,} are, "
            f"{filled:,} zeros became another number"
        )


def to_int8(model: nn.Module | PruneResult, images: Tensor | Iterable[Any]) -> Int8:
    """Quantise a network after training, statically: weights and activations in eight bits.

    Args:
        model: a network, or a result; not changed.
        images: calibration images (N, C, H, W), or batches of them; their activations decide the ranges.

    Returns:
        The quantised network, with a table of what became of the zeros of each layer.

    Raises:
        SnowsError: where torchao is missing, or on a network that ``torch.export`` or torchao do not take.
    """
    require_extra("export", "torchao")
    network = _float_copy(model)
    parts = calibration_parts(images)
    parts = [piece.to("cpu", torch.float32) for part in parts for piece in part.split(BATCH)]
    run_on_example(network, first_images(parts, 2))
    program, any_batch = exported(network, first_images(parts, 2))
    if not any_batch:
        got, wanted = "a network that torch.export records for two images at a time", "one that takes any number"
        raise invalid_argument("model", got, wanted)
    recorded = program.module()
    names = {node.name: str(node.args[1].target) for node in recorded.graph.nodes if _has_weight(node)}
    try:
        quantised = _quantised(recorded, parts)
    except Exception as error:  # whatever another library makes of anybody's graph
        raise cannot_go_on(
            "model", f"a network that torchao does not quantise ({reason_of(error)})", "one of its operations"
        ) from error
    weights, scales = _integers(quantised, names)
    return Int8(quantised, weights, scales, _table(network, weights))


def compare_int8(
    dense: nn.Module,
    pruned: nn.Module | PruneResult,
    calibration: Tensor | Iterable[Any],
    images: Tensor,
    labels: Tensor | None = None,
) -> pd.DataFrame:
    """Measure a dense and a pruned network in single precision and in eight bits, beside the dense one.

    Args:
        dense: the network before pruning.
        pruned: the network after it.
        calibration: images for the ranges of activations, the same for both.
        images: images (N, C, H, W) that judge, none of them in ``calibration``.
        labels: their classes (N,).

    Returns:
        Four rows, "dense", "pruned", "dense INT8", "pruned INT8": accuracy, agreement and KL as
        :func:`snows_core.evaluate` measures them, with the dense network in single precision as reference; images; and
        all weights that are quantised their zeros in percent, filled (zeros that became another number), bytes (4 a
        weight; in eight bits 1, and 4 an output for its scale), and packed_bytes: where a layer holds 2:4, half of its
        values and two bits for the place of each.

    Raises:
        SnowsError: as :func:`to_int8` and :func:`snows_core.evaluate`.
    """
    import pandas as pd

    networks = {"dense": dense, "pruned": pruned.module if isinstance(pruned, PruneResult) else pruned}
    eight = {name: to_int8(network, calibration) for name, network in networks.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, network in networks.items():
        rows[name] = _row(network, eight[name].table, dense, (images, labels), False)
    for name, found in eight.items():
        rows[f"{name} INT8"] = _row(found.model, found.table, dense, (images, labels), True)
    return pd.DataFrame(rows.values(), index=pd.Index(rows, name="network"))


def _float_copy(model: nn.Module | PruneResult) -> nn.Module:
    """Return a copy in single precision on the CPU, in eval mode."""
    if isinstance(model, PruneResult):
        model = model.module
    check_tensors(model)
    return plain_copy(unwrap(model)).float().cpu().eval()


def _has_weight(node: torch.fx.Node) -> bool:
    operation = str(node.target).split(".")
    weighted = node.op == "call_function" and len(operation) > 1 and operation[1] in _WEIGHTS
    return weighted and isinstance(node.args[1], torch.fx.Node) and node.args[1].op == "get_attr"


def _quantised(recorded: torch.fx.GraphModule, parts: list[Tensor]) -> torch.fx.GraphModule:
    """Observe activations on the images, and round."""
    with torch.no_grad(), _quietly():
        from torchao.quantization.pt2e import allow_exported_model_train_eval
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(recorded, quantizer)
        for part in parts:
            prepared(part)
        return allow_exported_model_train_eval(convert_pt2e(prepared))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torchao and the exporter say about their own future from the reader."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _integers(quantised: torch.fx.GraphModule, names: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return integers and scales of the weights, by the parameter names of the original."""
    weights, scales = dict[str, Tensor](), dict[str, Tensor]()
    for node in quantised.graph.nodes:
        source = node.args[1] if node.name in names else None
        if isinstance(source, torch.fx.Node) and "dequantize_per_channel" in str(source.target):
            integers, scale, zero_point = (_tensor(quantised, cast(torch.fx.Node, arg)) for arg in source.args[:3])
            assert integers.dtype == torch.int8 and not zero_point.any(), "weights are symmetric"
            weights[names[node.name]], scales[names[node.name]] = integers, scale
    return weights, scales


def _tensor(module: torch.fx.GraphModule, node: torch.fx.Node) -> Tensor:
    path, _, name = str(node.target).rpartition(".")
    return cast(Tensor, getattr(module.get_submodule(path), name)).detach()


def _table(network: nn.Module, weights: dict[str, Tensor]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for name, integers in weights.items():
        weight = network.get_parameter(name).detach()
        rows.append(
            {
                "weight": name,
                "outputs": len(integers),
                "count": integers.numel(),
                "zeros": int((weight == 0).sum()),
                "int8_zeros": int((integers == 0).sum()),
                "filled": int((integers[weight == 0] != 0).sum()),
                "two_of_four": _two_of_four(weight),
                "int8_two_of_four": _two_of_four(integers.int()),
            }
        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def _two_of_four(weight: Tensor) -> bool:
    return not PACKED.misfit(weight) and not bool(weight[~PACKED.mask(weight.abs())].any())


def _row(
    network: nn.Module, table: pd.DataFrame, dense: nn.Module, test: tuple[Tensor, Tensor | None], eight: bool
) -> dict[str, Any]:
    """Return the measures of one network, and of its weights in single precision or in eight bits."""
    found = evaluate(network, *test, reference=dense, batch_size=BATCH).as_dict()
    count, holds = table["count"], table["int8_two_of_four" if eight else "two_of_four"]
    width, scales = (1, 4 * table["outputs"]) if eight else (4, 0 * table["outputs"])
    packed = (width * count).where(~holds.astype(bool), width * count // 2 + count // 8)
    return {
        **found,
        "zeros": 100 * float(table["int8_zeros" if eight else "zeros"].sum()) / max(1, int(count.sum())),
        "filled": int(table["filled"].sum()) if eight else 0,
        "bytes": int((width * count + scales).sum()),
        "packed_bytes": int((packed + scales).sum()),
    }
