"""Which layers will be pruned: every layer of a network is either prunable, or stays dense for a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, fx, nn

from snows_core.errors import invalid_argument
from snows_core.network.check_trace import Example, check_trace
from snows_core.network.derivatives import reads_only_the_shape
from snows_core.network.geometry import Geometry, geometry_of, patches
from snows_core.network.graph import Layer, Network
from snows_core.network.nodes import module_of
from snows_core.network.operations import Kind
from snows_core.network.unlisted import grouped, unlisted_weights
from snows_core.settings import LayerChoice
from snows_core.sweep.choice import matching


class Reason(Enum):
    """Why a layer stays dense; the value is the sentence of the report, with a place for a detail where it has one."""

    NOT_CHOSEN = "not among layers="
    EXCLUDED = "excluded"
    FIRST = "first layer (reads the image)"
    CLASSIFIER = "classifier"
    BUFFER = "its weight is a buffer, not a parameter"
    COMPUTED = "its weight is computed, not stored"
    DIMENSIONS = "{}-dimensional convolution"
    AXES = "a weight of {} axes"
    COMPLEX = "complex weights"
    NO_IMAGE = "does not depend on the image"
    BIAS = "its bias is computed from the image"
    TRANSFORMED = "its stored weight is transformed before use (weight standardisation?)"
    UNLISTED = "{}"  # a weight that no layer of the graph multiplies by in the open
    MISFIT = "{}"  # the pattern says why it does not fit
    NO_ZEROS = "no zeros in the given masks"
    ZERO = "all of its weights are zero already"
    NO_SHARE = "no entry of the pattern names it"
    ZERO_KEPT = "the pattern would keep only weights that are zero already"

    @property
    def is_a_wish(self) -> bool:
        """Whether the caller wished it so: the layer itself could be pruned."""
        return self in (Reason.NOT_CHOSEN, Reason.EXCLUDED)


@dataclass(frozen=True)
class PrunableLayer:
    """A layer that will be pruned.

    Attributes:
        layer: its name, kind and place.
        geometry: how it reads its input.
        shape: shape of its weight.
    """

    layer: Layer
    geometry: Geometry
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name in reports."""
        return self.layer.name

    @property
    def kind(self) -> str:
        """What it is, for reports."""
        return self.layer.kind.value

    def left_dense(self, reason: Reason, detail: object = "") -> DenseLayer:
        """Return the same layer as one that stays dense."""
        return DenseLayer(self.name, self.kind, self.shape, reason, str(detail), self.layer.weight_name)


@dataclass(frozen=True)
class DenseLayer:
    """A layer, or another weight, that stays as it is.

    Attributes:
        name: its name in reports.
        kind: what it is, for reports; "hidden" for a weight that the traced graph does not show.
        shape: shape of its weight.
        reason: why.
        detail: what belongs into the reason's sentence.
        weight_name: of the parameter that it multiplies by; empty where there is none.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    reason: Reason
    detail: str = ""
    weight_name: str = ""

    @property
    def sentence(self) -> str:
        """Why, for the report."""
        return self.reason.value.format(self.detail)


@dataclass(frozen=True)
class LayerSelection:
    """Every layer of a network, in execution order, then its other weights."""

    entries: tuple[PrunableLayer | DenseLayer, ...]

    @property
    def prunable(self) -> list[PrunableLayer]:
        """Those that will be pruned, in execution order."""
        return [entry for entry in self.entries if isinstance(entry, PrunableLayer)]

    @property
    def dense(self) -> list[DenseLayer]:
        """Those that stay dense."""
        return [entry for entry in self.entries if isinstance(entry, DenseLayer)]

    def without(self, reasons: Mapping[str, tuple[Reason, str]]) -> LayerSelection:
        """Return the selection with some prunable layers left dense, each for its reason and detail."""
        return LayerSelection(
            tuple(
                entry.left_dense(*reasons[entry.name])
                if isinstance(entry, PrunableLayer) and entry.name in reasons
                else entry
                for entry in self.entries
            )
        )

    def reasons(self) -> str:
        """Return why the dense layers are dense, those of one reason together."""
        return grouped((entry.name, entry.sentence) for entry in self.dense)


def select_layers(
    network: Network,
    model: nn.Module,
    example: Tensor,
    layers: LayerChoice = None,
    exclude: LayerChoice = None,
    keep_ends: bool = True,
) -> LayerSelection:
    """Decide for every layer whether it can and should be pruned, before any mask is made.

    Args:
        network: the traced model.
        model: the model itself, to compare with and to find weights that the graph does not show.
        example: a few images.
        layers: names, globs, classes, modules, or a predicate of (name, module); None for all but the first layer and
            the classifier. See :func:`snows_core.sweep.choice.matching`.
        exclude: likewise, to be left dense.
        keep_ends: without ``layers``, leave the first layer and the classifier dense (not so for given masks).

    Returns:
        One entry per layer in execution order, then one for every other weight that cannot be pruned.

    Raises:
        SnowsError: on unknown names, nothing selected (with the reason of every layer), or a weight used twice among
            the selected.
    """
    seen = check_trace(network, model, example)
    names = [layer.name for layer in network.layers]
    wanted, unwanted = set(names), _meant(exclude, "exclude", network, model)
    if layers is not None:
        wanted = _meant(layers, "layers", network, model)
    entries: list[PrunableLayer | DenseLayer] = []
    for layer in network.layers:
        if layer.name not in wanted or layer.name in unwanted:
            reason = Reason.NOT_CHOSEN if layer.name not in wanted else Reason.EXCLUDED
            entries.append(_dense(network, layer, reason))
        else:
            entries.append(_judged(network, layer, seen[layer.name], layers is None and keep_ends))
    listed = {*names, *(layer.weight_name for layer in network.layers)}
    for name, shape, sentence in unlisted_weights(network.module, model, listed):
        entries.append(DenseLayer(name, "hidden", shape, Reason.UNLISTED, sentence))
    selection = LayerSelection(tuple(entries))
    if not selection.prunable:
        raise invalid_argument(
            "layers",
            "a choice that selects no layer",
            "at least one convolution or linear layer",
            f"Left dense: {selection.reasons()}.",
        )
    _refuse_shared_weights(network, [entry.layer for entry in selection.prunable])
    return selection


def _meant(choice: LayerChoice, argument: str, network: Network, model: nn.Module) -> set[str]:
    """Resolve a choice; a function of the caller's is not asked about weights that are computed, not stored."""
    is_function = callable(choice) and not isinstance(choice, type | nn.Module)
    asked = [layer.name for layer in network.layers if layer.weight_name or not is_function]
    return matching(choice, argument, asked, model)


def _judged(network: Network, layer: Layer, seen: Example, default: bool) -> PrunableLayer | DenseLayer:
    """Return a layer as prunable, unless it cannot or (by ``default``) should not be pruned."""
    weight = _stored(network, layer)
    if not layer.weight_name:
        return _dense(network, layer, Reason.BUFFER if weight.numel() else Reason.COMPUTED)
    if layer.kind is Kind.CONVOLUTION and weight.ndim != 4:
        return _dense(network, layer, Reason.DIMENSIONS, weight.ndim - 2)
    if layer.kind is Kind.LINEAR and weight.ndim != 2:
        return _dense(network, layer, Reason.AXES, weight.ndim)
    if weight.is_complex():
        return _dense(network, layer, Reason.COMPLEX)
    if network.image not in network.before(layer):
        return _dense(network, layer, Reason.NO_IMAGE)
    if network.image in network.beside(layer):
        return _dense(network, layer, Reason.BIAS)
    if default and network.is_first(layer):
        return _dense(network, layer, Reason.FIRST)
    if default and network.is_classifier(layer.node):
        return _dense(network, layer, Reason.CLASSIFIER)
    geometry = geometry_of(layer.node, weight)
    if not _is_linear(weight, geometry, seen):
        return _dense(network, layer, Reason.TRANSFORMED)
    return PrunableLayer(layer, geometry, tuple(weight.shape))


def _dense(network: Network, layer: Layer, reason: Reason, detail: object = "") -> DenseLayer:
    shape = tuple(_stored(network, layer).shape)
    return DenseLayer(layer.name, layer.kind.value, shape, reason, str(detail), layer.weight_name)


def _stored(network: Network, layer: Layer) -> Tensor:
    """Return the tensor that a layer multiplies by, a parameter or a buffer; an empty one where it is computed."""
    if layer.weight_name:
        return network.weight(layer)
    source = layer.node.args[1] if layer.node.op == "call_function" and len(layer.node.args) > 1 else None
    return network.constant(source) if isinstance(source, fx.Node) and source.op == "get_attr" else torch.empty(0)


def _is_linear(weight: Tensor, geometry: Geometry, seen: Example) -> bool:
    """Tell whether a layer is the linear map of its stored weight: no weight standardisation, no unknown padding."""
    rows = patches(seen.x[:1], geometry)  # (groups, positions, d)
    predicted = rows @ weight.flatten(1).view(geometry.groups, -1, rows.shape[-1]).transpose(1, 2)
    actual = (seen.y if seen.offset is None else seen.y - seen.offset)[:1]
    actual = actual.flatten(2).transpose(1, 2) if geometry.kernel else actual
    if predicted.numel() != actual.numel():
        return False  # it pads in a way of its own
    predicted = predicted.permute(1, 0, 2).reshape(actual.shape)
    gap = float((predicted - actual).abs().max() / actual.abs().max().clamp(min=1e-12))
    return gap < 1e-2


def _refuse_shared_weights(network: Network, chosen: Iterable[Layer]) -> None:
    """Refuse chosen layers whose weight another node of the graph reads too, as a layer or in any other way."""
    users: dict[int, list[fx.Node]] = {}
    for node in network.module.graph.nodes:
        if node.op == "call_module":
            module = module_of(node)
            for parameter in () if module is None else module.parameters():
                users.setdefault(parameter.data_ptr(), []).append(node)
        elif node.op == "get_attr" and isinstance(value := network.constant(node), Tensor):
            readers = [user for user in node.users if not reads_only_the_shape(user)]
            users.setdefault(value.data_ptr(), []).extend(readers)
    for layer in chosen:
        sharing = users.get(network.weight(layer).data_ptr(), [])
        if len(sharing) > 1:
            names = ", ".join(f"'{node.name}'" for node in sharing)
            raise invalid_argument(
                "layers",
                f"'{layer.name}', whose weight is used {len(sharing)} times ({names})",
                "layers with a weight of their own",
                f"Leave it dense: exclude=['{layer.name}'].",
            )
