"""Settings of the Newton loop (:mod:`snows_core.newton_cg`); a file of its own that does not load PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

from snows_core.checks import integer, number


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
