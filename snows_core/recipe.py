"""The two lanes: "paper", the published procedure, and "fast", what measurement showed to be better."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from snows_core.errors import bad, closest
from snows_core.graph import TapRule
from snows_core.newton_cg import NewtonOptions
from snows_core.objective import Curvature
from snows_core.precision import Precision


@dataclass(frozen=True)
class Recipe:
    """Every choice of the method that a user may change; results always carry the recipe's name.

    Attributes:
        name: "fast", "paper", or what a user calls a changed one.
        targets: tap targets from the dense network on dense inputs ("dense": a layer also repairs the error that
            reached it), or from the dense tail on the pruned network's own input ("pruned", published).
        warm_start: begin at the masked ridge least-squares solution instead of the masked dense weights.
        precondition: precondition CG by row-wise factors of the input Gram matrix on the mask.
        mini_batches: one Newton step on each batch in turn (published) instead of steps on all images.
        passes: passes over the mini-batches.
        taps: which operations K counts, see :meth:`snows_core.graph.Network.segment`.
        normalise: divide each tap's mean squared error by the variance of its dense values: all taps weigh alike.
        curvature: "hessian" (exact, may be indefinite; published) or "gauss-newton" (the same in a ReLU network; in
            transformers never negative, fewer and cheaper products, measured in notebook 05).
        precision: of curvature products: "float32", "tf32" (CUDA's tensor cores) or "bfloat16"; losses and gradients
            keep the precision of the weights.
        ridge: damping of the least-squares start and of the preconditioner, relative to the mean Gram diagonal.
        batch_size: images per batch.
        newton: Newton, CG and line-search settings.
    """

    name: str
    targets: Literal["dense", "pruned"] = "dense"
    warm_start: bool = True
    precondition: bool = True
    mini_batches: bool = False
    passes: int = 1
    taps: TapRule = "all"
    normalise: bool = True
    curvature: Curvature = "hessian"
    precision: Precision = "float32"
    ridge: float = 1e-3
    batch_size: int = 64
    newton: NewtonOptions = field(default_factory=NewtonOptions)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise bad(name, repr(getattr(self, name)), f"one of {choices}")
        for name in ("warm_start", "precondition", "mini_batches", "normalise"):
            if not isinstance(getattr(self, name), bool):
                raise bad(name, repr(getattr(self, name)), "True or False")
        for name in ("passes", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise bad(name, repr(value), "an integer >= 1")
        if not isinstance(self.ridge, int | float) or not self.ridge >= 0:
            raise bad("ridge", repr(self.ridge), "a number >= 0")


_CHOICES = {
    "targets": ("dense", "pruned"),
    "taps": ("all", "published"),
    "curvature": ("hessian", "gauss-newton"),
    "precision": ("float32", "tf32", "bfloat16"),
}


RECIPES = {
    "fast": Recipe(
        "fast", curvature="gauss-newton",
        newton=NewtonOptions(
            steps=5, tolerance=1e-2, cg_iterations=50, cg_progress=5e-3, cg_window=3, curvature_images=256
        ),
    ),
    "paper": Recipe(
        "paper", targets="pruned", warm_start=False, precondition=False, mini_batches=True, passes=3, taps="published",
        normalise=False,
        batch_size=512,
        newton=NewtonOptions(steps=1, tolerance=0.0, cg_iterations=500, cg_absolute=1e-3, damping=1e-4),
    ),
}  # fmt: skip


def get_recipe(recipe: str | Recipe, **changes: Any) -> Recipe:
    """Return a recipe by name, with single options changed.

    Args:
        recipe: "fast", "paper", or a Recipe.
        **changes: fields of :class:`Recipe` or of :class:`~snows_core.newton_cg.NewtonOptions`.

    Returns:
        The recipe.

    Raises:
        SnowsError: on an unknown recipe or option.

    >>> get_recipe("fast", steps=1).newton.steps
    1
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise bad("recipe", repr(recipe), f"one of {sorted(RECIPES)} or a Recipe", closest(recipe, RECIPES))
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise bad("recipe", repr(recipe), f"one of {sorted(RECIPES)} or a Recipe")
    of_recipe = {f.name for f in fields(Recipe)} - {"name", "newton"}
    of_newton = {f.name for f in fields(NewtonOptions)}
    unknown = set(changes) - of_recipe - of_newton
    if unknown:
        name = sorted(unknown)[0]
        raise bad("option", repr(name), f"one of {sorted(of_recipe | of_newton)}",
                  closest(name, of_recipe | of_newton))  # fmt: skip
    newton = replace(recipe.newton, **{key: value for key, value in changes.items() if key in of_newton})
    return replace(recipe, newton=newton, **{key: value for key, value in changes.items() if key in of_recipe})
