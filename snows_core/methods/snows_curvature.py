"""SNOWS with one matrix or the other, whatever the recipe says: for a comparison of both in one table."""

from __future__ import annotations

from dataclasses import replace

from snows_core.methods.origin import LEAST_SQUARES, NORMAL_EQUATIONS, Origin
from snows_core.methods.snows import Snows
from snows_core.settings import K, Recipe


class SnowsHessian(Snows):
    """Newton-CG on the K-step loss with products of its exact Hessian, as published.

    Args:
        recipe: of everything but the curvature.
        k: operations behind a layer that its loss sees, or "auto".
    """

    origin = Origin(
        paper="Lucas & Mazumder: Preserving Deep Representations in One-Shot Pruning (snows, curvature='hessian')",
        year=2025,
        needs="the Gram matrix, and the K operations behind the layer",
        cost=f"{NORMAL_EQUATIONS} + {LEAST_SQUARES} + 75 f; in transformers its products are dearer and more",
        limits="for comparison: where all operations are piecewise linear it is snows-gauss-newton",
    )

    def __init__(self, recipe: Recipe, k: K) -> None:
        super().__init__(replace(recipe, curvature="hessian"), k)


class SnowsGaussNewton(Snows):
    """Newton-CG on the K-step loss with products of its Gauss-Newton matrix, which is never indefinite.

    Args:
        recipe: of everything but the curvature.
        k: operations behind a layer that its loss sees, or "auto".
    """

    origin = Origin(
        paper="Schraudolph: Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent (its matrix, on "
        "the loss of snows)",
        year=2002,
        needs="the Gram matrix, and the K operations behind the layer",
        cost=Snows.origin.cost,
        limits="for comparison: with the recipe 'fast' it is snows itself",
    )

    def __init__(self, recipe: Recipe, k: K) -> None:
        super().__init__(replace(recipe, curvature="gauss-newton"), k)
