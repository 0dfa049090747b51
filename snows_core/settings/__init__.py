"""What a user may choose: the settings of a run, the two recipes, and how functions show them."""

from snows_core.settings.checks import PATTERNS, PREDICATE, SALIENCY, function_of
from snows_core.settings.effort import EFFORTS, REFINE_BATCH, Effort, get_effort
from snows_core.settings.prune_settings import PruneSettings
from snows_core.settings.recipe import (
    CHOICES,
    OWN,
    RECIPES,
    Curvature,
    NewtonOptions,
    Precision,
    Recipe,
    TapRule,
    changeable,
    get_recipe,
)
from snows_core.settings.signature import arguments_of, settings_of, takes_settings
from snows_core.settings.types import (
    ALLOCATIONS,
    Augment,
    JointSolver,
    LayerChoice,
    OneChoice,
    Saliency,
    Sparsities,
    SparsityPattern,
    Stages,
)
from snows_core.settings.values import LEAST_BYTES, K, read_k, read_max_memory

__all__ = [
    "ALLOCATIONS",
    "CHOICES",
    "EFFORTS",
    "LEAST_BYTES",
    "OWN",
    "PATTERNS",
    "PREDICATE",
    "RECIPES",
    "REFINE_BATCH",
    "SALIENCY",
    "Augment",
    "Curvature",
    "Effort",
    "JointSolver",
    "K",
    "LayerChoice",
    "NewtonOptions",
    "OneChoice",
    "Precision",
    "PruneSettings",
    "Recipe",
    "Saliency",
    "Sparsities",
    "SparsityPattern",
    "Stages",
    "TapRule",
    "arguments_of",
    "changeable",
    "function_of",
    "get_effort",
    "get_recipe",
    "read_k",
    "read_max_memory",
    "settings_of",
    "takes_settings",
]
