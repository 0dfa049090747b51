"""How a layer reads its input, Gram matrices, row-wise factors, and masked least squares (K = 0)."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy_layers import lstsq_row_by_row, rows_problem, solved_row_by_row
from timm.layers import Conv2dSame
from torch import nn
from torch.nn import functional as F
from toys import random_images, random_mask, relative

from snows_core.activations.gram_matrices import gram
from snows_core.network.geometry import Geometry, geometry_of, patches
from snows_core.network.graph import Network
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.row_factors import RowFactors

SMALL = st.integers(1, 3)


def by_patches(layer, x, weight):
    """Compute a layer without its bias as patches times weight."""
    geometry = geometry_of(layer.node, weight)
    rows = patches(x, geometry)
    grouped = weight.flatten(1).view(geometry.groups, -1, rows.shape[-1])
    return rows, (rows @ grouped.transpose(1, 2)).permute(1, 0, 2).flatten(1)


def assert_patches_reproduce(module, x):
    module = module.double().eval()
    network = Network(nn.Sequential(module).eval())
    rows, got = by_patches(network.layers[0], x, module.weight.detach())
    bias = 0 if module.bias is None else module.bias.view(1, -1, *[1] * (x.ndim - 2))
    expected = (module(x) - bias).movedim(1, -1).flatten(0, -2)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10)
    assert rows.shape[0] == getattr(module, "groups", 1)


@given(
    kernel=st.tuples(SMALL, SMALL),
    stride=st.tuples(SMALL, SMALL),
    dilation=st.tuples(SMALL, SMALL),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
)
def test_patches_times_weight_is_the_convolution(kernel, stride, dilation, padding, groups, mode, bias, size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    assume(all(size[i] + 2 * padding[i] > dilation[i] * (kernel[i] - 1) for i in (0, 1)))
    assume(mode != "reflect" or all(padding[i] < size[i] for i in (0, 1)))
    module = nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias, mode)
    assert_patches_reproduce(module, x)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dilation=st.tuples(SMALL, SMALL),
    padding=st.sampled_from(["same", "valid"]),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
)
def test_patches_with_padding_by_name_even_kernels_too(kernel, dilation, padding, mode):
    x = torch.randn(2, 4, 10, 11, dtype=torch.float64)
    module = nn.Conv2d(4, 6, kernel, padding=padding, dilation=dilation, padding_mode=mode)
    assert_patches_reproduce(module, x)


@given(
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(SMALL, SMALL),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
    size=st.tuples(st.integers(7, 12), st.integers(7, 12)),
)
def test_patches_of_timms_dynamic_same_padding(kernel, stride, dilation, groups, size):
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    assert_patches_reproduce(Conv2dSame(4, 6, kernel, stride, dilation=dilation, groups=groups), x)


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 3, 4, 5)])
def test_patches_of_a_linear_layer_of_any_leading_shape(shape):
    module, x = nn.Linear(5, 7).double(), torch.randn(shape, dtype=torch.float64)
    network = Network(nn.Sequential(module).eval())
    _, got = by_patches(network.layers[0], x, module.weight.detach())
    assert torch.allclose(got, (module(x) - module.bias).flatten(0, -2), rtol=1e-12, atol=1e-12)


def test_geometry_of_a_functional_convolution_by_position_and_by_name():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.randn(4, 3, 3, 3))
            self.b = nn.Parameter(torch.randn(4, 2, 2, 2))
            self.c = nn.Parameter(torch.randn(2, 4, 1, 1))

        def forward(self, x):
            y = F.conv2d(x, self.a, None, 2, 1)
            y = F.conv2d(y, self.b, padding="same", groups=2)
            return torch.conv2d(y, weight=self.c, stride=(2, 1))

    model = Functional().double().eval()
    network = Network(model)
    values = {network.image: random_images(2, 9)}
    network.run(network.nodes[1:], values)
    for layer in network.layers:
        weight = network.weight(layer)
        _, got = by_patches(layer, values[layer.node.all_input_nodes[0]], weight)
        assert torch.allclose(got, values[layer.node].movedim(1, -1).flatten(0, -2), rtol=1e-12, atol=1e-12)
    assert geometry_of(network.layers[1].node, network.weight(network.layers[1])).groups == 2


RAGGED = {
    "even": lambda m: m,
    "ragged": lambda m: torch.stack([row & (torch.arange(len(row)) <= 2 * i + 1) for i, row in enumerate(m)]),
    "one row empty": lambda m: m & (torch.arange(len(m)) != 1)[:, None],
    "full": torch.ones_like,
    "one kept each": lambda m: m & (torch.arange(m.shape[1]) == 0),
}


@pytest.mark.parametrize("supports", RAGGED)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_row_factors_solve_every_row_on_its_own_support(supports, groups, scaled):
    x, _, rhs, mask = rows_problem(rows=8, groups=groups)
    mask = RAGGED[supports](mask)
    scale = 0.5 + torch.rand(8, dtype=torch.float64) if scaled else None
    factors = RowFactors(gram(x), mask, damping=1e-3, scale=scale)
    expected = solved_row_by_row(gram(x), factors.damping, mask, rhs, scale)
    assert factors.block == mask.shape[1]
    assert torch.allclose(factors.solve(rhs), expected, rtol=1e-10, atol=1e-12)
    assert (factors.solve(rhs)[~mask] == 0).all()
    kept = torch.where(mask, rhs, 0.0)
    assert torch.allclose(factors.times(expected), kept, rtol=1e-9, atol=1e-11)  # what they solve for comes back
    assert torch.allclose(factors.solve(factors.times(kept)), kept, rtol=1e-9, atol=1e-11)


def test_damping_is_relative_to_the_mean_diagonal_hence_free_of_the_inputs_scale():
    x, _, rhs, mask = rows_problem()
    one = RowFactors(gram(x), mask, damping=1e-2)
    assert one.damping == pytest.approx(1e-2 * float(gram(x).diagonal(dim1=1, dim2=2).mean()))
    thousand = RowFactors(gram(1000 * x), mask, damping=1e-2)
    assert torch.allclose(thousand.solve(rhs) * 1e6, one.solve(rhs), rtol=1e-10)


def test_little_memory_gives_block_diagonal_factors_that_are_exact_within_a_block():
    x, _, rhs, mask = rows_problem(rows=6, inputs=64, samples=200)
    factors = RowFactors(gram(x), mask, damping=1e-3, max_bytes=6 * 8 * 8 * 8 * 4)
    assert 16 <= factors.block < 64
    stored = sum(factor.numel() for _, _, factor in factors.parts) * 8
    assert stored <= 6 * 16 * 16 * 8 * (64 // factors.block)
    blocked = torch.block_diag(*[torch.ones(factors.block, factors.block)] * (64 // factors.block)).double()
    expected = solved_row_by_row(gram(x) * blocked, factors.damping, mask, rhs)
    assert torch.allclose(factors.solve(rhs), expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(factors.times(expected), torch.where(mask, rhs, 0.0), rtol=1e-9, atol=1e-11)


def test_dead_input_channels_and_an_all_zero_gram_matrix_never_fail():
    # Trap: dead input channels make the Gram matrix singular; an all-zero one must not fail either.
    x, _, weight, mask = rows_problem()
    x[:, :, 3:9] = 0
    solution = masked_least_squares(RowFactors(gram(x), mask), weight)
    assert torch.isfinite(solution).all()
    dead = torch.zeros(12, dtype=torch.bool)
    dead[3:9] = True
    assert torch.allclose(
        solution[:, dead], torch.where(mask, weight, 0.0)[:, dead], rtol=1e-6
    )  # nothing says otherwise
    zero = RowFactors(torch.zeros(1, 12, 12, dtype=torch.float64), mask)
    assert torch.allclose(zero.solve(weight), torch.where(mask, weight, 0.0))
    assert torch.allclose(masked_least_squares(zero, weight), torch.where(mask, weight, 0.0))


def test_a_singular_gram_matrix_in_single_precision_is_damped_until_it_factors():
    x = torch.randn(1, 3, 12).repeat(1, 1, 1)
    factors = RowFactors(gram(x).float(), torch.ones(4, 12, dtype=torch.bool), damping=1e-12)
    assert torch.isfinite(factors.solve(torch.randn(4, 12))).all()


def test_no_damping_at_all_still_gives_finite_solutions():
    x, _, weight, mask = rows_problem()
    x[:, :, 3:9] = 0
    assert torch.isfinite(RowFactors(gram(x), mask, damping=0.0).solve(weight)).all()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("other_inputs", [False, True])
@pytest.mark.parametrize("inputs, max_bytes", [(12, 2e9), (48, 6 * 8 * 16 * 16 * 2.0)])
def test_masked_least_squares_equals_numpy_row_by_row(groups, other_inputs, inputs, max_bytes):
    x, x0, weight, mask = rows_problem(rows=6, inputs=inputs, samples=120, groups=groups)
    if not other_inputs:
        x0 = x
    factors = RowFactors(gram(x), mask, damping=1e-3, max_bytes=max_bytes)
    assert (factors.block < inputs) == (max_bytes < 1e9)
    cross = gram(x, x0) if other_inputs else None
    got = masked_least_squares(factors, weight, cross, tolerance=1e-12, iterations=200)
    expected = lstsq_row_by_row(x, x0, weight, mask, factors.damping)
    assert relative(got, expected) < 1e-9
    assert (got[~mask] == 0).all()


def test_everything_kept_and_the_same_inputs_give_the_dense_weight_back():
    x, _, weight, mask = rows_problem()
    solution = masked_least_squares(RowFactors(gram(x), torch.ones_like(mask)), weight)
    assert torch.allclose(solution, weight, rtol=1e-9)


def test_gram_matrices_are_sums_of_outer_products_per_group():
    x, x0, _, _ = rows_problem(groups=2)
    expected = sum(torch.einsum("gi,gj->gij", x[:, n], x0[:, n]) for n in range(x.shape[1]))
    assert torch.allclose(gram(x, x0), expected)
    assert torch.equal(gram(x), gram(x, x))


def test_a_wide_layer_is_solved_in_blocks_within_the_memory_asked_for():
    # Issue 3, "wide layers": rows are factored in batches, inputs in blocks, chosen by memory.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 64, 768, generator=generator)  # few images: the Gram matrix is far from full rank
    weight = torch.randn(256, 768, generator=generator)
    mask = random_mask(weight.shape)
    factors = RowFactors(gram(x), mask, damping=1e-2, max_bytes=2e7)
    stored = sum(factor.numel() * factor.element_size() for _, _, factor in factors.parts)
    assert stored <= 1.3 * 2e7 and factors.block < 768  # ragged rows share the widest row's frame
    start = torch.where(mask, weight, 0.0)
    solution = masked_least_squares(factors, weight)
    assert (solution[~mask] == 0).all()

    def loss(w):
        return float(((w - weight) @ x[0].T).square().sum() + factors.damping * (w - weight).square()[mask].sum())

    assert loss(solution) < 0.5 * loss(start)


def test_a_geometry_without_kernel_is_a_linear_layer():
    assert patches(torch.ones(2, 3), Geometry(None)).shape == (1, 2, 3)
