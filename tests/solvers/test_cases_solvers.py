"""Every solver on every case of the table, against NumPy row by row and dense solves."""

import pytest
import torch
from cases import CASES
from numpy_layers import lstsq_row_by_row, solved_row_by_row
from toys import dense_matrix, relative

from snows_core.activations.gram_matrices import gram
from snows_core.network.geometry import geometry_of, patches
from snows_core.settings import NewtonOptions
from snows_core.solvers.conjugate_gradients import conjugate_gradients
from snows_core.solvers.least_squares import masked_least_squares
from snows_core.solvers.newton_cg import newton
from snows_core.solvers.row_factors import RowFactors

every_case = pytest.mark.parametrize("name", CASES)
DAMPING = 1e-3
EXACT = {"cg_relative": 1e-13, "cg_progress": 0.0, "cg_iterations": 3000, "curvature_images": None}


def rows_of(problem, stream):
    """What the layer reads in a stream: (groups, positions, inputs of a row)."""
    source = problem.layer.node.all_input_nodes[0]
    geometry = geometry_of(problem.layer.node, problem.weight)
    return patches(torch.cat([values[source] for values in stream.values]), geometry)


@every_case
def test_patches_times_weight_is_what_the_layer_gives_without_its_bias(name):
    problem = CASES[name](0, sizes=None).problem
    node, (values,) = problem.layer.node, problem.pruned.values
    x = rows_of(problem, problem.pruned)
    grouped = problem.weight.flatten(1).view(len(x), -1, x.shape[-1])  # (groups, rows, inputs)
    got = (x @ grouped.transpose(1, 2)).permute(1, 0, 2).flatten(1)  # (positions, rows)

    def given(weight):
        out = problem.network.run((node,), dict(values), {problem.layer.weight_name: weight})[node]
        return (out.movedim(1, -1) if problem.weight.ndim == 4 else out).flatten(0, -2)

    assert relative(got, given(problem.weight) - given(torch.zeros_like(problem.weight))) < 1e-10


@every_case
def test_row_factors_solve_every_row_on_what_it_keeps(name):
    case = CASES[name](0)
    x, mask = rows_of(case.problem, case.problem.pruned), case.mask.flatten(1)
    factors = RowFactors(gram(x), mask, DAMPING)
    rhs = torch.randn(mask.shape, dtype=torch.float64)
    assert relative(factors.solve(rhs), solved_row_by_row(gram(x), factors.damping, mask, rhs)) < 1e-9
    assert (factors.solve(rhs)[~mask] == 0).all()


@every_case
def test_masked_least_squares_equals_numpy_row_by_row(name):
    case = CASES[name](0)
    x, x0 = (rows_of(case.problem, stream) for stream in (case.problem.pruned, case.problem.dense))
    weight, mask = case.problem.weight.flatten(1), case.mask.flatten(1)
    factors = RowFactors(gram(x), mask, DAMPING)
    got = masked_least_squares(factors, weight, gram(x, x0), tolerance=1e-12, iterations=200)
    assert relative(got, lstsq_row_by_row(x, x0, weight, mask, factors.damping)) < 1e-9
    assert (got[~mask] == 0).all()


@every_case
def test_conjugate_gradients_end_at_the_dense_solve(name):
    case = CASES[name](curvature="gauss-newton")
    at, kept = case.objective.linearise(case.weight), case.mask.flatten()
    matrix = dense_matrix(at.product, case.mask)
    damping = DAMPING * float(matrix.diagonal().mean())
    found = conjugate_gradients(
        lambda v: at.product(v) + damping * v, -at.gradient, relative=1e-12, max_iterations=3000
    )
    system = matrix + damping * torch.eye(len(matrix), dtype=matrix.dtype)
    expected = torch.linalg.solve(system, -at.gradient.flatten()[kept])
    assert relative(found.x.flatten()[kept], expected) < 1e-7
    assert (found.x[~case.mask] == 0).all()


@every_case
def test_two_newton_steps_are_those_of_dense_solves(name):
    case = CASES[name](curvature="gauss-newton")
    damping = DAMPING * float(dense_matrix(case.objective.linearise(case.weight).product, case.mask).diagonal().mean())
    found = newton(case.objective, case.weight, NewtonOptions(2, tolerance=0.0, damping=damping, **EXACT))
    weight, losses = newton_by_hand(case, damping, 2)
    assert found.losses == pytest.approx(losses, rel=1e-7)
    assert relative(found.weight, weight) < 1e-5
    assert (found.weight[~case.mask] == 0).all() and found.steps == 2


def newton_by_hand(case, damping, steps):
    """Gauss-Newton steps by dense solves of J'J from the oracle, with full backtracking: weight, losses."""
    weight, losses = case.weight, [float(case.loss(case.weight))]
    for _ in range(steps):
        residuals = case.residuals(weight)
        jacobian = torch.func.jacrev(case.residuals)(weight).flatten(1)[:, case.mask.flatten()].detach()
        gradient = 2 * jacobian.T @ residuals
        matrix = 2 * jacobian.T @ jacobian + damping * torch.eye(jacobian.shape[1], dtype=weight.dtype)
        direction, t = torch.zeros_like(weight), 1.0
        direction[case.mask] = torch.linalg.solve(matrix, -gradient)
        slope = float(gradient @ direction[case.mask])
        while float(case.loss(weight + t * direction)) > losses[-1] + 1e-5 * t * slope:
            t *= 0.9
        weight = weight + t * direction
        losses.append(float(case.loss(weight)))
    return weight, losses
