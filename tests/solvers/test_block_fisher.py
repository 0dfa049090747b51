"""block_fisher.py, matrix_free_fisher.py: both inverses of an empirical Fisher, against that of the dense matrix."""

import pytest
import torch
from fishers import empirical_fisher, gaussian
from toys import relative

from snows_core.solvers import block_fisher
from snows_core.solvers.block_fisher import BlockInverse, inverse_blocks
from snows_core.solvers.matrix_free_fisher import MatrixFreeInverse


def test_rank_one_updates_end_at_the_inverse_of_each_block():
    gradients = gaussian(7, 3, 5)
    found = inverse_blocks(gradients, 0.3)
    for block, inverse in enumerate(found):
        assert relative(inverse, torch.linalg.inv(empirical_fisher(gradients[:, block], 0.3))) < 1e-10


@pytest.mark.parametrize("room", [1.0, 6.4e7])
def test_blocks_end_with_their_layer(room, monkeypatch):
    monkeypatch.setattr(block_fisher, "ROOM", room)  # one block at a time, or all
    gradients, sizes, damping = gaussian(6, 20), [9, 4, 7], 0.2
    matrix, inverse = empirical_fisher(gradients, damping), BlockInverse(gradients, sizes, damping, 4)
    blocks = [range(0, 4), range(4, 8), range(8, 9), range(9, 13), range(13, 17), range(17, 20)]
    dense = torch.zeros_like(matrix)
    for block in blocks:
        at = torch.tensor(list(block))
        dense[at[:, None], at] = torch.linalg.inv(matrix[at[:, None], at])
    vector = gaussian(20, seed=1)
    assert relative(inverse.diagonal(), dense.diagonal()) < 1e-10
    assert relative(inverse.times(vector), dense @ vector) < 1e-10


def test_products_without_a_matrix_are_those_of_the_whole_inverse():
    gradients, vector = gaussian(8, 30), gaussian(30, seed=1)
    free, whole = MatrixFreeInverse(gradients, 0.05), BlockInverse(gradients, [30], 0.05, 30)
    dense = torch.linalg.inv(empirical_fisher(gradients, 0.05))
    for inverse in (free, whole):
        assert relative(inverse.times(vector), dense @ vector) < 1e-9
        assert relative(inverse.diagonal(), dense.diagonal()) < 1e-9
