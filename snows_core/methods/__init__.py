"""How layers are solved: the methods by name, of one layer or the whole network, and their interface to the sweep."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from snows_core.methods.adaprune import AdaPrune
from snows_core.methods.alps import Alps
from snows_core.methods.base import LayerMethod, LayerSolution, LayerStatistics, Needs
from snows_core.methods.between import BetweenStages
from snows_core.methods.cap import CorrelationAware
from snows_core.methods.cbs import CombinatorialSurgeon
from snows_core.methods.chita import Chita
from snows_core.methods.cost import SYMBOLS, Rates, Work, multiply_adds
from snows_core.methods.dense import KeepDense
from snows_core.methods.dimap import ModuleAware
from snows_core.methods.eigendamage import EigenDamage
from snows_core.methods.falcon import Falcon
from snows_core.methods.given_weights import GivenWeights
from snows_core.methods.layerwise import Layerwise
from snows_core.methods.measure import MeasureLosses
from snows_core.methods.mfac import MatrixFree
from snows_core.methods.nettrim import NetTrim
from snows_core.methods.network_method import NetworkMethod, NetworkSolution
from snows_core.methods.network_problem import NetworkProblem
from snows_core.methods.obc import ExactObs
from snows_core.methods.obd import OptimalBrainDamage
from snows_core.methods.obs import LayerwiseObs
from snows_core.methods.origin import MAGNITUDE, Origin, gives
from snows_core.methods.osscar import Osscar
from snows_core.methods.problem import Budget, LayerProblem, LayerValues
from snows_core.methods.scoring import SCORE_TERMS, Scoring
from snows_core.methods.snows import Snows
from snows_core.methods.snows_adam import SnowsAdam
from snows_core.methods.snows_curvature import SnowsGaussNewton, SnowsHessian
from snows_core.methods.snows_fisher import SnowsFisher
from snows_core.methods.sparsegpt import SparseGpt
from snows_core.methods.swaps import Swaps
from snows_core.methods.unchanged import Unchanged
from snows_core.methods.upvit import UnifiedPruning
from snows_core.methods.wanda import Wanda
from snows_core.methods.woodfisher import WoodFisher

if TYPE_CHECKING:
    import pandas as pd

METHODS: dict[str, type[LayerMethod]] = {
    "adaprune": AdaPrune,
    "alps": Alps,
    "layerwise": Layerwise,
    "nettrim": NetTrim,
    "none": Unchanged,
    "obc": ExactObs,
    "obs": LayerwiseObs,
    "snows": Snows,
    "snows-adam": SnowsAdam,
    "snows-fisher": SnowsFisher,
    "snows-gauss-newton": SnowsGaussNewton,
    "snows-hessian": SnowsHessian,
    "sparsegpt": SparseGpt,
    "swaps": Swaps,
    "wanda": Wanda,
}
"""Name to every layer-wise method; each is a ``mask=``, an ``update=``, or both."""

NETWORK_METHODS: dict[str, type[NetworkMethod]] = {
    "cap": CorrelationAware,
    "cbs": CombinatorialSurgeon,
    "chita": Chita,
    "dimap": ModuleAware,
    "eigendamage": EigenDamage,
    "falcon": Falcon,
    "mfac": MatrixFree,
    "obd": OptimalBrainDamage,
    "osscar": Osscar,
    "upvit": UnifiedPruning,
    "woodfisher": WoodFisher,
}
"""Name to every method that looks at the whole network; each is a ``mask=``, and most are an ``update=``, too."""

__all__ = [
    "METHODS",
    "NETWORK_METHODS",
    "SCORE_TERMS",
    "SYMBOLS",
    "BetweenStages",
    "Budget",
    "GivenWeights",
    "KeepDense",
    "LayerMethod",
    "LayerProblem",
    "LayerSolution",
    "LayerStatistics",
    "LayerValues",
    "MeasureLosses",
    "Needs",
    "NetworkMethod",
    "NetworkProblem",
    "NetworkSolution",
    "Origin",
    "Rates",
    "Scoring",
    "Work",
    "methods",
    "multiply_adds",
]


def methods() -> pd.DataFrame:
    """Return what there is to choose masks and to re-fit weights by.

    Returns:
        One row a method, by name, as ``mask=`` and ``update=`` of :func:`snows_core.prune.prune` and the command line
        take it: gives ("mask" for ``mask=``, "weights" for ``update=``, or both), paper, year, needs, cost (a
        formula for :func:`snows_core.methods.multiply_adds`) and limits.

    >>> print(methods().loc["sparsegpt", "gives"])
    mask, weights
    """
    import pandas as pd

    rows = {"magnitude": {"gives": gives(True, False), **asdict(MAGNITUDE)}}
    for name, method in METHODS.items():
        rows[name] = {"gives": gives(method.chooses_masks, method.updates_weights), **asdict(method.origin)}
    for name, whole in NETWORK_METHODS.items():
        rows[name] = {"gives": gives(True, whole.updates_weights), **asdict(whole.origin)}
    table: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index").sort_index().rename_axis("method")
    return table
