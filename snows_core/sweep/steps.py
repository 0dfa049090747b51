"""What a sweep does with each layer: which methods choose its mask and re-fit its weights, in which stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from snows_core.masks.patterns import Pattern
from snows_core.methods.base import LayerMethod


@dataclass(frozen=True)
class LayerSteps:
    """What is done with each layer.

    Attributes:
        update: re-fits the kept weights.
        choose: chooses the mask before that; None where masks are there already.
        pattern: the sparsity pattern, for ``choose``.
        between: re-fits them between two stages; None for ``update``.
        own_start: whether ``update`` starts at the weights of the method that chooses the mask.
    """

    update: LayerMethod
    choose: LayerMethod | None = None
    pattern: Pattern | None = None
    between: LayerMethod | None = None
    own_start: bool = False

    def of_stage(self, pattern: Pattern, last: bool) -> LayerSteps:
        """Return what is done in a stage of one ``pattern``, the ``last`` or one before it."""
        update = self.update if last else self.between or self.update
        # A method that chooses and updates at once does so between two stages, too.
        choose = update if self.choose is self.update else self.choose
        return replace(self, update=update, choose=choose, pattern=pattern)
