"""Where a method comes from and what it takes: the columns of :func:`snows_core.methods.methods`.

Costs are those of one layer, or of the network where a method looks at all of it: formulas that
:func:`snows_core.methods.cost.multiply_adds` evaluates, in the symbols of :data:`snows_core.methods.cost.SYMBOLS`.
Numbers of steps are what was measured, and the losses of a report come on top of every method.
"""

from __future__ import annotations

from dataclasses import dataclass

GRAM = "the Gram matrix of the layer's input"
NORMAL_EQUATIONS = "g n d^2 + 2 n o d + 6 g n d (passes)"
"""Cost of Gram matrices, the dense output, its products with the input, and the input laid out as a matrix."""
LEAST_SQUARES = "o k^3 / 6 (factors) + 4 o k^2 (passes) + 2 o d^2"
"""Cost of a layer's row factors, and of conjugate gradients with them."""
QUADRATIC = "g d^3 (factors) + o d^2"
"""Cost of factoring and inverting Gram matrices, and of the minimum on all inputs."""
SORT = "200 o d (passes)"
"""Cost of the mask of some scores."""
GRADIENTS = "3 f + 3 n p (passes)"
"""Cost of a gradient of all weights for each image, and of its squares."""


@dataclass(frozen=True)
class Origin:
    """What a method class declares about itself as ``origin``.

    Attributes:
        paper: authors and title; of a method of this project, what it builds on.
        year: of the paper.
        needs: what it reads beside the weights.
        cost: a formula, and words behind a semicolon.
        limits: where it does not apply, or what it cannot do.
    """

    paper: str
    year: int
    needs: str
    cost: str
    limits: str


MAGNITUDE = Origin(
    paper="Han, Pool, Tran & Dally: Learning both Weights and Connections for Efficient Neural Networks",
    year=2015,
    needs="nothing",
    cost=SORT,
    limits="blind to the input; alone it fails at high sparsity",
)
"""Masks of magnitude, which are made before the sweep and so are no layer-wise method."""


def gives(chooses_masks: bool, updates_weights: bool) -> str:
    """Return what a method gives, in words.

    >>> gives(True, False), gives(True, True)
    ('mask', 'mask, weights')
    """
    return ", ".join(word for word, does in (("mask", chooses_masks), ("weights", updates_weights)) if does)
