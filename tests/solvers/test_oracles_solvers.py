"""The solvers against a second writing of their rules in NumPy, on matrices small enough to see everything."""

import numpy as np
import pytest
import torch
from objectives import Function, spd
from toys import relative

from snows_core.settings import NewtonOptions
from snows_core.solvers.conjugate_gradients import StopReason, conjugate_gradients
from snows_core.solvers.line_search import armijo
from snows_core.solvers.newton_cg import newton


def martens(matrix, b, progress, window, most=500):
    """Conjugate gradients and Martens' stop, written down once more: iterates and values of the model."""
    x, r = np.zeros_like(b), b.copy()
    p, model = r.copy(), [0.0]
    for i in range(1, most + 1):
        hp = matrix @ p
        alpha = (r @ r) / (p @ hp)
        x, before, r = x + alpha * p, r, r - alpha * hp
        model.append(0.5 * x @ matrix @ x - b @ x)
        lag = max(window, i // 10)
        if i >= lag and (model[i] - model[i - lag]) / model[i] < lag * progress:
            return x, model
        p = r + (r @ r) / (before @ before) * p
    return x, model


@pytest.mark.parametrize("condition", [3.0, 10.0, 40.0])
@pytest.mark.parametrize(("progress", "window"), [(5e-3, 3), (5e-4, 10), (1e-2, 1), (1e-4, 2)])
def test_the_progress_stop_ends_where_its_rule_says_neither_before_nor_later(condition, progress, window):
    matrix, b = spd(60, seed=3, condition=condition)
    x, model = martens(matrix.numpy(), b.numpy(), progress, window)
    found = conjugate_gradients(lambda v: matrix @ v, b, progress=progress, window=window)
    assert found.stop is StopReason.PROGRESS and found.iterations == len(model) - 1 >= window
    assert relative(found.x, torch.from_numpy(x)) < 1e-6  # rounding grows with every iteration
    assert found.model == pytest.approx(model, rel=1e-8)


def test_a_long_run_looks_back_a_tenth_of_it():
    matrix, b = spd(200, seed=1, condition=100.0)
    for progress in (3e-4, 1e-4, 3e-5):
        model = martens(matrix.numpy(), b.numpy(), progress, 1)[1]
        found = conjugate_gradients(lambda v: matrix @ v, b, progress=progress, window=1)
        assert found.iterations == len(model) - 1 > 20 and found.model == pytest.approx(model, rel=1e-8)


def test_without_a_stop_it_goes_on_to_its_cap():
    matrix, b = spd(60, condition=1e4)
    found = conjugate_gradients(lambda v: matrix @ v, b, max_iterations=17)
    assert found.iterations == 17 and found.stop is StopReason.ITERATIONS and len(found.model) == 18


def test_the_defaults_are_five_hundred_products_and_a_window_of_ten():
    values = torch.logspace(0, 8, 4000, dtype=torch.float64)
    b = torch.ones(4000, dtype=torch.float64)
    assert conjugate_gradients(lambda v: values * v, b).iterations == 500
    assert conjugate_gradients(lambda v: values * v, b, progress=1.0).iterations == 10


@pytest.mark.parametrize("which", ["relative", "absolute"])
def test_it_ends_at_the_first_residual_that_meets_the_tolerance(which):
    matrix, b = spd(40, condition=30.0)
    b = 7 * b / b.norm()
    norms = [7.0] + [conjugate_gradients(lambda v: matrix @ v, b, max_iterations=i).residual for i in range(1, 30)]
    for tolerance in (0.5, 0.1, 0.01):
        bound = tolerance * 7 if which == "relative" else tolerance
        found = conjugate_gradients(lambda v: matrix @ v, b, **{which: tolerance})
        assert found.iterations == next(i for i, norm in enumerate(norms) if norm <= bound) and found.residual <= bound


def test_the_looser_of_two_tolerances_decides():
    matrix, b = spd(40, condition=1e3)
    counts = {
        (r, a): conjugate_gradients(lambda v: matrix @ v, b, relative=r, absolute=a * float(b.norm())).iterations
        for r, a in ((1e-1, 0), (0, 1e-4), (1e-1, 1e-4), (1e-4, 1e-1))
    }
    assert counts[1e-1, 1e-4] == counts[1e-4, 1e-1] == counts[1e-1, 0] < counts[0, 1e-4]


def test_single_precision_sums_in_double():
    b = torch.full((200_000,), 1e-4) * (1 + torch.arange(200_000) % 7)
    found = conjugate_gradients(lambda v: 3 * v, b, relative=1e-6)
    assert found.iterations == 1 and relative(found.x, b / 3) < 1e-6
    assert found.model[-1] == pytest.approx(-float(b.double().square().sum()) / 6, rel=1e-6)
    b = 1.0 + torch.arange(2_000_001) % 7  # every product is exact, the sum too long for single precision
    total = float(b.double().square().sum())
    found = conjugate_gradients(lambda v: 2 * v, b, relative=1e-6)
    assert float(torch.tensor(total)) != total and found.model[-1] == pytest.approx(-total / 4, rel=1e-12)


@pytest.mark.parametrize("c", [1e-5, 0.3, 0.9])
@pytest.mark.parametrize("shrink", [0.5, 0.9])
def test_backtracking_takes_the_first_step_that_armijo_allows(c, shrink):
    def value(w):
        return float((w**4).sum() - 3 * w.sum())

    w, direction = torch.tensor([2.0, -1.0], dtype=torch.float64), torch.tensor([-10.0, 4.0], dtype=torch.float64)
    slope = float(((4 * w**3 - 3) * direction).sum())
    steps = [shrink**i for i in range(80)]
    first = next(i for i, t in enumerate(steps) if value(w + t * direction) <= value(w) + c * t * slope)
    found = armijo(value, w, direction, value(w), slope, c=c, shrink=shrink, max_backtracks=80)
    assert found.evaluations == first + 1 > 1
    assert found.step == pytest.approx(steps[first]) and found.loss == pytest.approx(value(w + found.step * direction))


def test_backtracking_accepts_what_equals_its_bound_and_counts_its_looks():
    looks = []
    bound = armijo(lambda w: looks.append(1) or 1.0 - 0.25 * 2.0, torch.zeros(1), torch.ones(1), 1.0, -2.0, c=0.25)
    assert (bound.step, bound.loss, bound.evaluations, len(looks)) == (1.0, 0.5, 1, 1)
    looks.clear()
    none = armijo(lambda w: looks.append(1) or 2.0, torch.zeros(1), torch.ones(1), 1.0, -1.0, max_backtracks=3)
    assert (none.step, none.loss, none.evaluations, len(looks)) == (0.0, 1.0, 4, 4)
    looks.clear()
    flat = armijo(lambda w: looks.append(1) or 0.0, torch.zeros(1), torch.ones(1), 1.0, 0.0)
    assert (flat.step, flat.loss, flat.evaluations, looks) == (0.0, 1.0, 0, [])


def quartic(seed=0):
    """A smooth convex function that a quadratic model describes badly far from its minimum."""
    matrix, b = spd(8, seed)
    return Function(lambda w: 0.5 * w @ matrix @ w - b @ w + (w**4).sum())


EXACT = {"cg_relative": 1e-13, "cg_progress": 0.0, "cg_iterations": 200, "curvature_images": None}


def newton_by_hand(function, w, damping, steps):
    """Exact Newton steps with full Armijo backtracking: weights, losses."""
    losses = [float(function.function(w))]
    for _ in range(steps):
        gradient = torch.func.grad(function.function)(w)
        hessian = torch.func.hessian(function.function)(w) + damping * torch.eye(len(w), dtype=w.dtype)
        direction, t = torch.linalg.solve(hessian, -gradient), 1.0
        while float(function.function(w + t * direction)) > losses[-1] + 1e-5 * t * float(gradient @ direction):
            t *= 0.9
        w = w + t * direction
        losses.append(float(function.function(w)))
    return w, losses


@pytest.mark.parametrize("damping", [0.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_newton_steps_are_those_of_dense_solves(damping, steps):
    function, start = quartic(), torch.full((8,), 4.0, dtype=torch.float64)
    found = newton(function, start, NewtonOptions(steps, tolerance=0.0, damping=damping, **EXACT))
    weight, losses = newton_by_hand(function, start, damping, steps)
    assert relative(found.weight, weight) < 1e-8 and found.losses == pytest.approx(losses, rel=1e-9)
    assert found.steps == steps and found.stop is StopReason.STEPS and found.cg_stops == [StopReason.RESIDUAL] * steps
    assert len(function.linearised) == steps


def test_products_are_summed_over_steps():
    function, start = quartic(), torch.full((8,), 4.0, dtype=torch.float64)
    calls, linearise = [], function.linearise

    def counted(weight):
        at = linearise(weight)
        product = at.product
        at.product = lambda v: calls.append(1) or product(v)
        return at

    function.linearise = counted
    found = newton(function, start, NewtonOptions(3, tolerance=0.0, **EXACT | {"cg_iterations": 4}))
    assert found.products == len(calls) == 12 and found.cg_stops == [StopReason.ITERATIONS] * 3


def test_a_step_that_gains_less_than_the_tolerance_is_the_last():
    function, start = quartic(), torch.full((8,), 4.0, dtype=torch.float64)
    _, losses = newton_by_hand(function, start, 0.0, 12)
    for tolerance in (0.5, 1e-3, 1e-9):
        found = newton(function, start, NewtonOptions(12, tolerance=tolerance, **EXACT))
        gains = [a - b for a, b in zip(found.losses, found.losses[1:], strict=False)]
        bounds = [tolerance * abs(loss) for loss in found.losses]
        assert found.stop in (StopReason.LOSS, StopReason.MODEL)
        assert all(gain > bound for gain, bound in zip(gains[:-1], bounds[:-1], strict=False))
        assert found.losses == pytest.approx(losses[: len(found.losses)], rel=1e-7)


def test_a_search_without_success_ends_the_loop_at_once():
    function, start = quartic(), torch.full((8,), 4.0, dtype=torch.float64)
    function.lie = lambda weight: 1e9
    found = newton(function, start, NewtonOptions(5, backtracks=3, **EXACT))
    assert found.stop is StopReason.NO_DESCENT and len(function.linearised) == 1 and function.values == 4
    assert torch.equal(found.weight, start) and found.steps == 0 and len(found.losses) == 1 == len(found.cg_stops)


@pytest.mark.parametrize("poison", [0.0, float("nan")])
def test_a_gradient_of_nothing_or_no_number_ends_the_loop_at_once(poison):
    function = Function(lambda w: (w * poison).sum())
    found = newton(function, torch.ones(8, dtype=torch.float64), NewtonOptions(5, **EXACT))
    assert found.stop is (StopReason.ZERO_GRADIENT if poison == 0 else StopReason.NOT_FINITE)
    assert len(function.linearised) == 1 and found.products == 0 == found.steps and len(found.losses) == 1


class Sampled(Function):
    """A quadratic of 64 images whose curvature is wrong by a factor on fewer than 32 of them."""

    images = 64

    def __init__(self, factor):
        super().__init__(lambda w: 0.5 * (w - 1).square().sum())
        self.factor, self.asked = factor, []

    def linearise(self, weight, images=None):
        self.asked.append(images)
        at, factor = super().linearise(weight), 1.0 if images is None or images >= 32 else self.factor
        at.product = lambda v: factor * v
        return at


@pytest.mark.parametrize(
    ("factor", "grows"),
    [(1.0, False), (1.04, False), (1.15, True), (0.95, False), (0.92, False), (0.9, True), (0.88, True), (0.4, True)],
)
def test_a_sample_grows_where_a_step_gains_a_tenth_more_or_less_than_foretold(factor, grows):
    # One weight: a step of 1 / f gains 1 / f - 1 / (2 f^2), the model foretells 1 / (2 f).
    objective = Sampled(factor)
    options = NewtonOptions(2, tolerance=1e-9, cg_relative=1e-12, cg_progress=0.0, curvature_images=8)
    found = newton(objective, torch.zeros(1, dtype=torch.float64), options)
    assert objective.asked == ([8] if factor == 1 else [8, 32 if grows else 8])
    assert found.losses[1] == pytest.approx(0.5 * (1 / factor - 1) ** 2) if factor > 0.5 else found.losses[1] < 0.5


def test_a_sample_grows_to_all_images_and_is_then_asked_for_no_more():
    objective = Sampled(5.0)
    for images, first in ((64, None), (65, None), (63, 63), (None, None)):
        objective.asked.clear()
        newton(objective, torch.zeros(1, dtype=torch.float64), NewtonOptions(1, curvature_images=images))
        assert objective.asked == [first]
    objective.asked.clear()
    newton(objective, torch.zeros(1, dtype=torch.float64), NewtonOptions(9, tolerance=1e-9, curvature_images=20))
    assert objective.asked[:2] == [20, None]


def test_the_loop_ends_where_the_model_was_right_after_a_full_and_solved_step():
    matrix, b = spd(12, condition=5.0)
    function, start = Function(lambda w: 0.5 * w @ matrix @ w - b @ w + 100.0), torch.ones(12, dtype=torch.float64)
    found = newton(function, start, NewtonOptions(5, tolerance=1e-4, **EXACT))
    assert found.stop is StopReason.MODEL and found.steps == 1
    by_progress = NewtonOptions(5, tolerance=1e-4, cg_progress=5e-2, cg_window=1, curvature_images=None)
    assert newton(function, start, by_progress).stop is StopReason.MODEL
    capped = newton(function, start, NewtonOptions(2, tolerance=1e-6, **EXACT | {"cg_iterations": 2}))
    assert capped.steps == 2 and capped.stop is StopReason.STEPS, "a system that was not solved is not the end"


def test_no_steps_evaluate_the_start_once():
    function, start = quartic(), torch.full((8,), 4.0, dtype=torch.float64)
    found = newton(function, start, NewtonOptions(0))
    assert found.losses == [pytest.approx(float(function.function(start)))] and found.stop is StopReason.STEPS
    assert function.values == 1 and function.linearised == [] and found.products == 0


def test_a_system_solved_as_far_as_its_preconditioner_reaches_is_the_end():
    matrix = torch.tensor([[2.0, 1.0], [1.0, 4.0]], dtype=torch.float64)
    only_first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    found = conjugate_gradients(lambda v: matrix @ v, torch.ones(2, dtype=torch.float64), precondition=only_first.mul)
    assert found.stop is StopReason.EXACT and found.iterations == 1 and found.x.tolist() == [0.5, 0.0]
    assert found.residual == pytest.approx(0.5) and len(found.model) == 2


def test_backtracking_asks_by_default_for_a_hundred_thousandth_and_shrinks_fifty_times_by_a_tenth():
    steps = []
    found = armijo(lambda w: steps.append(float(w)) or 1.0, torch.zeros(1), torch.ones(1), 1.0, -1.0)
    assert found.step == 0 and found.evaluations == len(steps) == 51
    assert steps == pytest.approx([0.9**i for i in range(51)])
    for gain, step in ((1.1e-5, 1.0), (0.9e-5, 0.0)):  # of a slope of one
        assert armijo(lambda w, gain=gain: 1.0 - gain * float(w), torch.zeros(1), torch.ones(1), 1.0, -1.0).step == step
