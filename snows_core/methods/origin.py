"""Where a method comes from and what it takes: the columns of :func:`snows_core.methods.methods`.

Costs are those of one layer, in these symbols: ``n`` images times output positions, ``o`` output rows, ``d`` inputs of
a row. A Gram matrix of the input takes ``n d^2``. Of methods that look at the whole network, ``n`` is images and ``p``
all weights.
"""

from __future__ import annotations

from dataclasses import dataclass

GRAM = "the Gram matrix of the layer's input"


@dataclass(frozen=True)
class Origin:
    """What a method class declares about itself as ``origin``.

    Attributes:
        paper: authors and title; of a method of this project, what it builds on.
        year: of the paper.
        needs: what it reads beside the weights.
        cost: operations of one layer, or of the network, in the symbols of :mod:`snows_core.methods.origin`.
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
    cost="o d",
    limits="blind to the input; alone it fails at high sparsity",
)
"""Masks of magnitude, which are made before the sweep and so are no layer-wise method."""


def gives(chooses_masks: bool, updates_weights: bool) -> str:
    """Return what a method gives, in words.

    >>> gives(True, False), gives(True, True)
    ('mask', 'mask, weights')
    """
    return ", ".join(word for word, does in (("mask", chooses_masks), ("weights", updates_weights)) if does)
