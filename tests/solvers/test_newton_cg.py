"""newton_cg.py: conjugate gradients against SciPy and dense solves, and the Newton loop around them."""

import functools
import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives import Function, quadratic, spd
from toys import relative

from snows_core.errors import SnowsError
from snows_core.settings import NewtonOptions
from snows_core.solvers.conjugate_gradients import StopReason, conjugate_gradients
from snows_core.solvers.newton_cg import newton

# CG to its end on all images: what closed forms can be compared with.
exact = functools.partial(NewtonOptions, cg_iterations=500, cg_progress=0.0, curvature_images=None)


def scipy_iterates(matrix, b, count, precondition=None):
    seen = []
    scipy.sparse.linalg.cg(
        matrix.numpy(),
        b.numpy(),
        rtol=0,
        atol=0,
        maxiter=count,
        callback=lambda x: seen.append(x.copy()),
        M=None if precondition is None else precondition.numpy(),
    )
    return [torch.from_numpy(x) for x in seen]


@pytest.mark.parametrize("preconditioned", [False, True])
def test_every_iterate_equals_scipys(preconditioned):
    matrix, b = spd()
    inverse = torch.diag(1 / matrix.diagonal()) if preconditioned else None
    expected = scipy_iterates(matrix, b, 8, inverse)
    for count in range(1, 9):
        apply = (lambda r: inverse @ r) if preconditioned else None
        solution = conjugate_gradients(lambda v: matrix @ v, b, precondition=apply, max_iterations=count)
        assert solution.stop is StopReason.ITERATIONS and solution.iterations == count
        assert relative(solution.x, expected[count - 1]) < 1e-9


@pytest.mark.parametrize("preconditioned", [False, True])
def test_solution_equals_the_dense_solve(preconditioned):
    matrix, b = spd(20, seed=1)
    apply = (lambda r: r / matrix.diagonal()) if preconditioned else None
    solution = conjugate_gradients(lambda v: matrix @ v, b, precondition=apply, relative=1e-12)
    assert relative(solution.x, torch.linalg.solve(matrix, b)) < 1e-9
    assert solution.stop is StopReason.RESIDUAL
    assert solution.residual == pytest.approx(float((b - matrix @ solution.x).norm()), abs=1e-10)


def test_the_exact_inverse_as_preconditioner_needs_one_product():
    matrix, b = spd()
    inverse = torch.linalg.inv(matrix)
    solution = conjugate_gradients(lambda v: matrix @ v, b, precondition=lambda r: inverse @ r, relative=1e-9)
    assert solution.iterations == 1


def test_right_hand_sides_of_any_shape():
    matrix, b = spd()
    flat = conjugate_gradients(lambda v: matrix @ v, b, relative=1e-10)
    shaped = conjugate_gradients(lambda v: (matrix @ v.flatten()).view(3, 2, 2), b.view(3, 2, 2), relative=1e-10)
    assert torch.equal(shaped.x.flatten(), flat.x)


def test_the_quadratic_model_is_what_it_says_and_never_rises():
    matrix, b = spd(condition=1e4)
    solution = conjugate_gradients(lambda v: matrix @ v, b, relative=1e-8)
    assert all(later <= earlier for earlier, later in zip(solution.model, solution.model[1:], strict=False))
    x = solution.x
    assert solution.model[-1] == pytest.approx(float(0.5 * x @ matrix @ x - b @ x), rel=1e-8)


def test_absolute_and_relative_tolerances_end_it():
    matrix, b = spd()
    for options, bound in [({"relative": 1e-3}, 1e-3 * float(b.norm())), ({"absolute": 1e-2}, 1e-2)]:
        solution = conjugate_gradients(lambda v: matrix @ v, b, **options)
        assert solution.stop is StopReason.RESIDUAL and solution.residual <= bound


def test_negative_curvature_at_once_returns_the_right_hand_side_itself():
    # Trap: on p'Hp <= 0 return the current x, or -g (here b) in the first iteration.
    b = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for sign in (-1.0, 0.0):
        solution = conjugate_gradients(lambda v, sign=sign: sign * v, b, precondition=lambda r: 3 * r)
        assert solution.stop is StopReason.NEGATIVE_CURVATURE and solution.iterations == 1
        assert torch.equal(solution.x, b) and solution.x.data_ptr() != b.data_ptr()


def test_negative_curvature_later_returns_the_current_iterate():
    # Fault 5 of the published code: no curvature check, though a ViT's Hessian is strongly indefinite.
    matrix = torch.diag(torch.tensor([10.0, 5.0, -1.0], dtype=torch.float64))
    b = torch.tensor([1.0, 2.0, 0.1], dtype=torch.float64)
    solution = conjugate_gradients(lambda v: matrix @ v, b)
    assert solution.stop is StopReason.NEGATIVE_CURVATURE and solution.iterations > 1
    last_good = conjugate_gradients(lambda v: matrix @ v, b, max_iterations=solution.iterations - 1)
    assert torch.equal(solution.x, last_good.x)
    assert float(b @ solution.x) > 0  # still a descent direction for b = -g


def test_exact_convergence_divides_nothing_by_zero():
    # Trap: CG that has converged exactly divides 0 by 0.
    b = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)
    for options in ({}, {"progress": 1e-3, "window": 1}, {"precondition": lambda r: r}):
        solution = conjugate_gradients(lambda v: 2 * v, b, **options)
        assert torch.equal(solution.x, b / 2) and torch.isfinite(solution.x).all()
        assert solution.stop in (StopReason.RESIDUAL, StopReason.EXACT)
    nothing = conjugate_gradients(lambda v: v, torch.zeros(3))
    assert nothing.stop is StopReason.EXACT and nothing.iterations == 0 and (nothing.x == 0).all()
    assert solution.stop.value.endswith((".", "y", "e")) and len(solution.stop.value.split()) > 3  # a sentence


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 3])
def test_a_product_that_is_not_finite_keeps_the_last_good_iterate(poison, at):
    matrix, b = spd()
    calls = []

    def product(v):
        calls.append(1)
        result = matrix @ v
        if len(calls) == at:
            result[2] = poison
        return result

    solution = conjugate_gradients(product, b)
    assert solution.stop is StopReason.NOT_FINITE and solution.iterations == at and torch.isfinite(solution.x).all()
    if at > 1:
        good = conjugate_gradients(lambda v: matrix @ v, b, max_iterations=at - 1)
        assert torch.equal(solution.x, good.x)


def test_a_right_hand_side_that_is_not_finite_is_reported_as_such():
    b = torch.tensor([1.0, math.nan])
    assert conjugate_gradients(lambda v: v, b).stop is StopReason.NOT_FINITE


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(0, 5))
def test_martens_stop_does_not_depend_on_the_scale_of_the_problem(of_matrix, of_b, seed):
    # Fault 5: the published absolute tolerance stops early or never when the loss is scaled.
    matrix, b = spd(30, seed, condition=1e4)
    options = {"progress": 1e-2, "window": 3}
    one = conjugate_gradients(lambda v: matrix @ v, b, **options)
    other = conjugate_gradients(lambda v: 2.0**of_matrix * (matrix @ v), 2.0**of_b * b, **options)
    assert one.stop is StopReason.PROGRESS and 3 < one.iterations < 40
    assert (other.iterations, other.stop) == (one.iterations, one.stop)
    assert torch.equal(other.x * 2.0 ** (of_matrix - of_b), one.x)


@given(st.floats(1e-12, 1e12), st.floats(1e-12, 1e12))
def test_martens_stop_does_not_depend_on_scales_that_round_either(of_matrix, of_b):
    matrix, b = spd(12, condition=50)
    options = {"progress": 1e-2, "window": 3, "precondition": lambda r: r / matrix.diagonal()}
    one = conjugate_gradients(lambda v: matrix @ v, b, **options)
    other = conjugate_gradients(lambda v: of_matrix * (matrix @ v), of_b * b, **options)
    assert one.stop is StopReason.PROGRESS and (other.iterations, other.stop) == (one.iterations, one.stop)
    assert relative(other.x * (of_matrix / of_b), one.x) < 1e-9


def test_the_absolute_rule_does_depend_on_it():
    matrix, b = spd(30, condition=1e4)
    counts = {conjugate_gradients(lambda v: matrix @ v, s * b, absolute=1e-3).iterations for s in (1e-5, 1.0, 1e3)}
    assert len(counts) == 3


def test_martens_stop_follows_its_formula():
    matrix, b = spd(30, condition=1e4)
    solution = conjugate_gradients(lambda v: matrix @ v, b, progress=1e-2, window=4)
    q, i = solution.model, solution.iterations

    def ends(j):
        lag = max(4, j // 10)
        return j >= lag and (q[j] - q[j - lag]) / q[j] < lag * 1e-2

    assert ends(i) and not any(ends(j) for j in range(1, i))


@pytest.mark.parametrize("start", [0.0, 1.0, -50.0])
def test_one_newton_step_solves_a_quadratic_from_any_start(start):
    objective, expected = quadratic()
    solution = newton(objective, torch.full((12,), start, dtype=torch.float64), exact(1, cg_relative=1e-13))
    assert relative(solution.weight, expected) < 1e-9
    assert solution.steps == 1 and solution.stop in (StopReason.STEPS, StopReason.MODEL) and len(solution.losses) == 2


def test_newton_converges_quadratically_and_never_rises_on_a_smooth_function():
    function = Function(lambda w: torch.logsumexp(torch.stack([w[0], w[1], -w[0] - w[1]]), 0) + 0.1 * (w**4).sum())
    solution = newton(
        function, torch.tensor([3.0, -1.0], dtype=torch.float64), exact(50, tolerance=0.0, cg_relative=1e-12)
    )
    assert all(b <= a for a, b in zip(solution.losses, solution.losses[1:], strict=False))
    assert float(torch.func.grad(function.function)(solution.weight).norm()) < 1e-7
    assert solution.steps < 15


def test_a_failed_line_search_leaves_the_old_weights_in_place():
    # Fault 4 and a trap: here every trial looks worse.
    objective, _ = quadratic()
    objective.lie = lambda weight: 1e9
    start = torch.ones(12, dtype=torch.float64)
    solution = newton(objective, start, exact(3, backtracks=5))
    assert solution.stop is StopReason.NO_DESCENT and solution.steps == 0
    assert torch.equal(solution.weight, start) and len(solution.losses) == 1


def test_a_loss_that_is_nan_off_the_start_leaves_the_old_weights():
    objective, _ = quadratic()
    objective.lie = lambda weight: math.nan
    start = torch.ones(12, dtype=torch.float64)
    solution = newton(objective, start, exact(3, backtracks=3))
    assert torch.equal(solution.weight, start) and solution.stop is StopReason.NO_DESCENT


def test_a_search_shrinks_steps_as_its_options_say():
    objective, _ = quadratic()
    tried = []
    objective.lie = lambda weight: tried.append(float(weight.norm())) or math.nan
    newton(objective, torch.zeros(12, dtype=torch.float64), exact(1, shrink=0.25, backtracks=3))
    assert [length / tried[0] for length in tried] == pytest.approx([1, 0.25, 0.0625, 0.015625])


def test_a_saddle_is_left_downhill():
    saddle = Function(lambda w: w[0] ** 2 - w[1] ** 2 + 0.1 * w[1] ** 4)
    solution = newton(saddle, torch.tensor([1.0, 0.1], dtype=torch.float64), exact(20, tolerance=0.0))
    assert all(b <= a for a, b in zip(solution.losses, solution.losses[1:], strict=False))
    assert StopReason.NEGATIVE_CURVATURE in solution.cg_stops
    assert solution.losses[-1] < -2.4  # the minimum is -2.5 at w1^2 = 5


def test_damping_is_added_to_the_curvature():
    matrix, b = spd()
    objective = Function(lambda w: 0.5 * w @ matrix @ w - b @ w)
    solution = newton(objective, torch.zeros(12, dtype=torch.float64), exact(1, cg_relative=1e-13, damping=3.0))
    assert relative(solution.weight, torch.linalg.solve(matrix + 3 * torch.eye(12, dtype=torch.float64), b)) < 1e-9


def test_it_ends_on_a_zero_gradient_and_on_little_gain():
    objective, expected = quadratic()
    flat = newton(Function(lambda w: (w * 0).sum() + 1.0), torch.ones(3), exact(3))
    assert (flat.stop, flat.steps, flat.products) == (StopReason.ZERO_GRADIENT, 0, 0)
    near = newton(objective, expected * 1.0001, exact(5, tolerance=1e-2, cg_relative=1e-10))
    assert near.stop is StopReason.LOSS and near.steps == 1


def test_a_gradient_that_is_not_finite_is_reported_as_such():
    broken = newton(Function(lambda w: (w * math.nan).sum()), torch.ones(3), exact(3))
    assert broken.stop is StopReason.NOT_FINITE


def test_no_steps_asked_for_changes_nothing():
    objective, _ = quadratic()
    solution = newton(objective, torch.ones(12, dtype=torch.float64), exact(0))
    assert solution.steps == 0 and (solution.weight == 1).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": -1}, r"^steps: got -1; expected an integer >= 0"),
        ({"cg_iterations": 0}, r"^cg_iterations: got 0; expected an integer >= 1"),
        ({"shrink": 1.0}, r"^shrink: got 1\.0; expected a finite number above 0 and below 1"),
        ({"armijo": -0.1}, r"^armijo: got -0\.1; expected a finite number >= 0 and below 1"),
        ({"damping": math.nan}, r"^damping: got nan; expected a finite number >= 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(SnowsError, match=message):
        NewtonOptions(**options)


def test_all_reasons_are_sentences_a_user_can_read():
    assert all(stop.value[0].islower() and " " in stop.value for stop in StopReason)
    assert np.unique([stop.value for stop in StopReason]).size == len(StopReason)
