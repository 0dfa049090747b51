"""An interruption on order: so many layers are solved, and afterwards everything is as before."""

from __future__ import annotations

import pytest

import snows_core as snows
from snows_core.book import ctrl_c_after
from snows_core.methods import METHODS
from snows_core.zoo import experiment


@pytest.mark.parametrize("layers", [0, 2])
def test_so_many_layers_are_solved_and_the_next_run_is_whole(layers):
    row, solve = experiment("digits-resnet20"), METHODS["snows"].solve
    dense, images = row.load_model(), row.load_data().train.tensors(32)[0]
    options = {"layers": "layer1.*", "k": 0, "effort": "quick", "progress": False}
    with ctrl_c_after(layers):
        half = snows.prune(dense, images, "2:4", **options)
    assert not half.complete and len(half.masks) == layers
    assert METHODS["snows"].solve is solve and snows.prune(dense, images, "2:4", **options).complete
