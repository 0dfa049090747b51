"""SNOWS: one-shot pruning of vision networks that preserves deep representations.

``prune`` is the main entry; see the README for a first example. What a name needs is loaded when it is first used, so
that ``import snows_core`` and the command line's help do not wait for PyTorch.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from snows_core.errors import SnowsError

if TYPE_CHECKING:  # for type checkers and editors; at run time `_PLACES` says the same
    from snows_core.comparison.grid import compare
    from snows_core.comparison.results import Comparison
    from snows_core.estimate import estimate
    from snows_core.evaluate import Metrics, evaluate
    from snows_core.export.compaction.compact import Compacted, compact
    from snows_core.export.hub.hub_folder import hub_folder
    from snows_core.export.hub.model_card import About
    from snows_core.export.hub.push import push_to_hub
    from snows_core.export.kernels.eligibility import Eligibility, eligibility
    from snows_core.export.kernels.semi_structured import Converted, to_semi_structured
    from snows_core.export.onnx.export_onnx import OnnxExport, export_onnx
    from snows_core.export.storage.sizes import sizes
    from snows_core.export.tuning.finetune import finetune
    from snows_core.export.verification.findings import Verification
    from snows_core.export.verification.verify import verify
    from snows_core.export.weights import export_weights
    from snows_core.masks.patterns import NM, Unstructured
    from snows_core.masks.per_layer import PerLayer
    from snows_core.masks.structured import Structured
    from snows_core.methods import methods
    from snows_core.provenance import provenance, versions
    from snows_core.prune import make_masks, prune
    from snows_core.result import PruneResult, apply_masks, load
    from snows_core.settings.prune_settings import PruneSettings
    from snows_core.settings.recipe import NewtonOptions, Recipe, get_recipe
    from snows_core.sweep.augment import flip_and_shift
    from snows_core.sweep.corrections import match_variances, reestimate_batch_norms
    from snows_core.sweep.import_masks import import_masks
    from snows_core.sweep.permute import permute_channels

# Threads of OpenMP spin while they wait, by default: on a machine whose cores are busy with something else two of them
# took more than thirty times the seconds of one, measured beside another process. Set before PyTorch is loaded; a value
# that the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

__all__ = [
    "NM",
    "About",
    "Compacted",
    "Comparison",
    "Converted",
    "Eligibility",
    "Metrics",
    "NewtonOptions",
    "OnnxExport",
    "PerLayer",
    "PruneResult",
    "PruneSettings",
    "Recipe",
    "SnowsError",
    "Structured",
    "Unstructured",
    "Verification",
    "apply_masks",
    "compact",
    "compare",
    "eligibility",
    "estimate",
    "evaluate",
    "export_onnx",
    "export_weights",
    "finetune",
    "flip_and_shift",
    "get_recipe",
    "hub_folder",
    "import_masks",
    "load",
    "make_masks",
    "match_variances",
    "methods",
    "permute_channels",
    "provenance",
    "prune",
    "push_to_hub",
    "reestimate_batch_norms",
    "sizes",
    "to_semi_structured",
    "verify",
    "versions",
]

# Public name to the module that defines it.
_PLACES = {
    "About": "export.hub.model_card",
    "NM": "masks.patterns",
    "Compacted": "export.compaction.compact",
    "Comparison": "comparison.results",
    "Eligibility": "export.kernels.eligibility",
    "Converted": "export.kernels.semi_structured",
    "Metrics": "evaluate",
    "NewtonOptions": "settings.recipe",
    "OnnxExport": "export.onnx.export_onnx",
    "PruneResult": "result",
    "PruneSettings": "settings.prune_settings",
    "PerLayer": "masks.per_layer",
    "Recipe": "settings.recipe",
    "Structured": "masks.structured",
    "Unstructured": "masks.patterns",
    "Verification": "export.verification.findings",
    "apply_masks": "result",
    "compact": "export.compaction.compact",
    "compare": "comparison.grid",
    "eligibility": "export.kernels.eligibility",
    "estimate": "estimate",
    "evaluate": "evaluate",
    "export_weights": "export.weights",
    "finetune": "export.tuning.finetune",
    "export_onnx": "export.onnx.export_onnx",
    "flip_and_shift": "sweep.augment",
    "get_recipe": "settings.recipe",
    "hub_folder": "export.hub.hub_folder",
    "import_masks": "sweep.import_masks",
    "load": "result",
    "make_masks": "prune",
    "match_variances": "sweep.corrections",
    "methods": "methods",
    "permute_channels": "sweep.permute",
    "provenance": "provenance",
    "prune": "prune",
    "push_to_hub": "export.hub.push",
    "reestimate_batch_norms": "sweep.corrections",
    "sizes": "export.storage.sizes",
    "verify": "export.verification.verify",
    "to_semi_structured": "export.kernels.semi_structured",
    "versions": "provenance",
}


def _load_lazily(name: str) -> Any:
    """Load a public name, or a module of the package, when it is first asked for (PEP 562)."""
    if name in _PLACES:
        value = getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        try:
            return importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":  # the module is there, and something that it needs is not
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


if not TYPE_CHECKING:  # a checker that saw this would take every misspelt name for one that is loaded later
    __getattr__ = _load_lazily


def __dir__() -> list[str]:
    """Return what there is, loaded or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: where a function and its module have one name, as in ``prune``, the name means the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the import system does so with each module of the package once it has loaded it."""
        if isinstance(value, ModuleType) and _PLACES.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
