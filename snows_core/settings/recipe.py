"""The two lanes: "paper", the published procedure, and "fast", what measurement showed to be better."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from snows_core.errors import closest, integer, invalid_argument, number, switch

TapRule = Literal["all", "published"]
"""Where a convolution is observed: behind its batch norm ("all"), or before it ("published")."""

Curvature = Literal["hessian", "gauss-newton"]
"""The matrix that a curvature product multiplies with."""

Precision = Literal["float32", "tf32", "bfloat16"]
"""The number format of matrix products inside a segment."""


@dataclass(frozen=True)
class NewtonOptions:
    """Settings of the Newton loop; the defaults are those of the recipe "fast".

    Numbers may come as scalars of NumPy or PyTorch and are kept as Python's own.

    Attributes:
        steps: Newton steps at most.
        tolerance: end when a step lowers the loss by less than this fraction, or by what the quadratic model
            foretold to within this fraction: the model was right, and it has been solved.
        cg_iterations: cap on products in one step.
        cg_relative: relative residual tolerance.
        cg_absolute: absolute residual tolerance (the published rule).
        cg_progress: Martens' epsilon, 0 for off.
        cg_window: Martens' smallest lag.
        damping: added to H times identity (published: 1e-4); 0 with a preconditioned, damped Gram matrix.
        armijo: fraction c of the predicted decrease.
        shrink: backtracking factor.
        backtracks: how many times to shrink.
        curvature_images: at most so many images' curvature CG uses at first; fewer where a layer has many output
            positions, four times as many whenever a step gains clearly less or more than the quadratic model foretold;
            None for all of them always.

    Raises:
        SnowsError: on a setting that cannot work, naming it.
    """

    steps: int = 5
    tolerance: float = 1e-2
    cg_iterations: int = 50
    cg_relative: float = 0.0
    cg_absolute: float = 0.0
    cg_progress: float = 2e-2
    cg_window: int = 3
    damping: float = 0.0
    armijo: float = 1e-5
    shrink: float = 0.9
    backtracks: int = 50
    curvature_images: int | None = 256

    def __post_init__(self) -> None:
        """Refuse settings that cannot work, and keep the others as Python's own numbers."""
        for name, least in (("steps", 0), ("cg_iterations", 1), ("cg_window", 1), ("backtracks", 0)):
            self._keep(name, integer(name, getattr(self, name), least))
        for name in ("tolerance", "cg_relative", "cg_absolute", "cg_progress", "damping"):
            self._keep(name, number(name, getattr(self, name)))
        self._keep("armijo", number("armijo", self.armijo, below=1))
        self._keep("shrink", number("shrink", self.shrink, above=0, below=1))
        if self.curvature_images is not None:
            images = integer("curvature_images", self.curvature_images, 1, "a number of images", ", or None for all")
            self._keep("curvature_images", images)

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)  # the class is frozen for everybody else


@dataclass(frozen=True)
class Recipe:
    """Every choice of the method that a user may change; results always carry the recipe's name.

    The defaults are those of "fast": ``Recipe("mine", ridge=1e-2)`` differs from it in what it names alone. Numbers may
    come as scalars of NumPy or PyTorch and are kept as Python's own.

    Attributes:
        name: "fast", "paper", or what a user calls a changed one.
        targets: tap targets from the dense network on dense inputs ("dense": a layer also repairs the error that
            reached it), or from the dense network on the pruned one's values at the input of the residual unit that
            holds the layer ("pruned", published; :mod:`snows_core.network.residual`).
        warm_start: begin at the masked ridge least-squares solution instead of the masked dense weights; or, as "own",
            at the weights of the method that chose the mask.
        precondition: precondition CG by row-wise factors of the input Gram matrix on the mask.
        mini_batches: one Newton step on each batch in turn (published) instead of steps on all images.
        passes: passes over the mini-batches.
        tap_rule: which operations K counts, see :meth:`snows_core.network.graph.Network.segment`.
        normalise: divide each tap's mean squared error by the variance of its dense values: all taps weigh alike.
        curvature: "hessian" (exact, may be indefinite; published) or "gauss-newton" (the same in a ReLU network; in
            transformers never negative, fewer and cheaper products, measured in notebook 05).
        precision: of curvature products: "float32", "tf32" (CUDA's tensor cores) or "bfloat16"; losses and gradients
            keep the precision of the weights.
        sampled: solve a layer whose outputs have many positions on as many of the images as tell enough
            (:mod:`snows_core.methods.enough`), not on all of them.
        ridge: damping of the least-squares start and of the preconditioner, relative to the mean Gram diagonal.
        batch_size: images per batch.
        newton: Newton, CG and line-search settings.

    Raises:
        SnowsError: on a value that cannot be meant, naming the field.

    >>> Recipe("mine", warm_start=False).curvature
    'gauss-newton'
    """

    name: str
    targets: Literal["dense", "pruned"] = "dense"
    warm_start: bool | Literal["own"] = True
    precondition: bool = True
    mini_batches: bool = False
    passes: int = 1
    tap_rule: TapRule = "all"
    normalise: bool = True
    curvature: Curvature = "gauss-newton"
    precision: Precision = "float32"
    sampled: bool = True
    ridge: float = 1e-3
    batch_size: int = 64
    newton: NewtonOptions = field(default_factory=NewtonOptions)

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant, and keep the others as Python's own."""
        if not isinstance(self.name, str) or not self.name.strip():
            raise invalid_argument("name", repr(self.name), "a text that names the recipe in results")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                raise invalid_argument(name, repr(value), f"one of {choices}", closest(str(value), choices))
        if isinstance(self.warm_start, str) and self.warm_start != OWN:
            raise invalid_argument("warm_start", repr(self.warm_start), f"True or False, or '{OWN}'")
        for name in ("warm_start", "precondition", "mini_batches", "normalise", "sampled"):
            if (value := getattr(self, name)) != OWN:
                self._keep(name, switch(name, value))
        for name in ("passes", "batch_size"):
            self._keep(name, integer(name, getattr(self, name), 1))
        self._keep("ridge", number("ridge", self.ridge))
        if not isinstance(self.newton, NewtonOptions):
            raise invalid_argument(
                "newton", repr(self.newton), "NewtonOptions(...)", "For instance NewtonOptions(steps=2)."
            )

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)  # the class is frozen for everybody else


OWN: Literal["own"] = "own"
"""What ``warm_start`` may be beside True and False."""

CHOICES: dict[str, tuple[str, ...]] = {
    "targets": ("dense", "pruned"),
    "tap_rule": ("all", "published"),
    "curvature": ("hessian", "gauss-newton"),
    "precision": ("float32", "tf32", "bfloat16"),
}
"""Option of a recipe to the values that it may have, where they can be listed."""


RECIPES = {
    "fast": Recipe("fast"),
    "paper": Recipe(
        "paper",
        targets="pruned",
        warm_start=False,
        precondition=False,
        mini_batches=True,
        passes=3,
        tap_rule="published",
        normalise=False,
        curvature="hessian",
        sampled=False,
        batch_size=512,
        newton=NewtonOptions(
            steps=1,
            tolerance=0.0,
            cg_iterations=500,
            cg_absolute=1e-3,
            cg_progress=0.0,
            cg_window=10,
            damping=1e-4,
            curvature_images=None,
        ),
    ),
}
"""Name to recipe: ``recipe="fast"`` and ``recipe="paper"``."""


def changeable() -> dict[str, Any]:
    """Return every option that a recipe has, by name, with the value of "fast"."""
    fast = RECIPES["fast"]
    of_recipe = {f.name: getattr(fast, f.name) for f in fields(fast) if f.name not in ("name", "newton")}
    return of_recipe | {f.name: getattr(fast.newton, f.name) for f in fields(fast.newton)}


def get_recipe(recipe: str | Recipe, arguments: Iterable[str] = (), /, **changes: Any) -> Recipe:
    """Return a recipe by name, with single options changed.

    Args:
        recipe: "fast", "paper", or a Recipe.
        arguments: names of the other arguments that the caller takes, to be suggested for a misspelt option.
        **changes: fields of :class:`Recipe` or of :class:`~snows_core.settings.NewtonOptions`.

    Returns:
        The recipe.

    Raises:
        SnowsError: on an unknown recipe or option.

    >>> get_recipe("fast", steps=1).newton.steps
    1
    """
    if isinstance(recipe, str):
        if recipe not in RECIPES:
            raise invalid_argument(
                "recipe", repr(recipe), f"one of {sorted(RECIPES)} or a Recipe", closest(recipe, RECIPES)
            )
        recipe = RECIPES[recipe]
    if not isinstance(recipe, Recipe):
        raise invalid_argument("recipe", repr(recipe), f"one of {sorted(RECIPES)} or a Recipe")
    if unknown := [name for name in changes if name not in changeable()]:
        known = sorted({*changeable(), *arguments})
        raise invalid_argument("option", repr(unknown[0]), f"one of {known}", closest(unknown[0], known))
    of_newton = {f.name for f in fields(NewtonOptions)}
    newton = replace(recipe.newton, **{name: value for name, value in changes.items() if name in of_newton})
    return replace(recipe, newton=newton, **{name: value for name, value in changes.items() if name not in of_newton})
