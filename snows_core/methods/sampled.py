"""Methods that read as many images as tell enough about a layer, whatever K is."""

from __future__ import annotations

from torch import Tensor

from snows_core.methods.base import LayerMethod
from snows_core.methods.enough import enough_for


class SampledMethod(LayerMethod):
    """A method whose Gram matrices come from a sample of the images."""

    def gram_images(self, mask: Tensor, positions: float, count: int) -> int | None:
        """Return what is enough.

        Args:
            mask: the layer's mask.
            positions: output positions of the layer for an image.
            count: calibration images.
        """
        return enough_for(self.recipe, mask, positions, count).gram
