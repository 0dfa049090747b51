"""Layers as wide as ViT-L's: factors in batches of rows and blocks of inputs, within a bound on memory."""

import pytest
import torch
from torch import nn

import snows_core as snows
from snows_core.masks.patterns import NM
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors


def gram_and_weight(outputs, inputs, rows=256, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    return x, (x.T @ x)[None], torch.randn(outputs, inputs, generator=generator)


def factor_bytes(factors):
    return sum(factor.numel() * factor.element_size() for _, _, factor in factors.parts)


def test_factors_of_a_wide_layer_stay_within_their_bound_and_still_solve():
    x, gram, weight = gram_and_weight(256, 512)
    mask = NM(2, 4).mask(weight)
    full = RowFactors(gram, mask, 1e-3, max_bytes=1e9)
    bound = factor_bytes(full) / 7
    blocks = RowFactors(gram, mask, 1e-3, max_bytes=bound)
    assert full.block == 512 and blocks.block < 512
    assert factor_bytes(blocks) <= bound
    exact, iterated = (masked_least_squares(factors, weight, iterations=200) for factors in (full, blocks))
    errors = [float((x @ (rows - weight).T).square().sum()) for rows in (exact, iterated, torch.where(mask, weight, 0))]
    # Blocks only precondition: the iteration reaches the same least squares, far below the masked weights' error.
    assert abs(errors[1] - errors[0]) < 1e-2 * errors[0] + 1e-6 * errors[2]
    assert errors[0] < 0.2 * errors[2]


class Wide(nn.Module):
    """A patch embedding and one MLP of a ViT-L block: 1024 -> 4096 -> 1024."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Conv2d(3, 1024, 2, 2), nn.Linear(1024, 10)
        self.fc1, self.act, self.fc2 = nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        return self.head((tokens + self.fc2(self.act(self.fc1(tokens)))).mean(1))


@pytest.mark.slow
def test_a_vit_l_mlp_is_solved_on_few_images():
    torch.manual_seed(0)
    model, images = Wide().eval(), torch.randn(4, 3, 16, 16)
    result = snows.prune(
        model, images, "2:4", k=2, steps=1, cg_iterations=4, layers=["fc1", "fc2"], progress=False, effort="quick"
    )
    rows = result.report.set_index("layer").loc[["fc1", "fc2"]]
    assert (rows["sparsity"] == 0.5).all()
    assert (rows["loss_end"] <= rows["loss_start"]).all()
    assert (rows["loss_start"] < 1e-2 * rows["loss_masked"]).all()
