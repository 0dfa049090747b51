"""fits.py: the layers' problems are those of the package, and their pieces add up."""

import pytest
import torch

import snows_core as snows
from snows_core.book.fits import image_gradients, layer_fits, layer_losses, split_images
from snows_core.network import Network

from toys import SmallNet  # isort: skip


@pytest.fixture(scope="module")
def made():
    """Return a network, images, and the run of the package on them."""
    torch.manual_seed(0)
    model = SmallNet().eval()
    x = torch.randn(12, *SmallNet.image)
    run = snows.prune(model, x, "2:4", k=2, effort="quick", progress=False)
    return model, x, run
