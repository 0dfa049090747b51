"""Curvature from a sample of the images, and a sample that grows where the quadratic model misleads."""

import pytest
import torch
from cases import CASES, SEVERAL
from objectives import At
from toys import dense_matrix, random_images, relative, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.settings import NewtonOptions
from snows_core.solvers.conjugate_gradients import StopReason
from snows_core.solvers.newton_cg import newton


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("retain", [0, 1, True])
def test_a_sampled_product_is_that_of_the_loss_on_the_first_batches(name, retain):
    case = CASES[name](4, retain=retain, sizes=2)
    first = case.objective.sizes[0]
    sampled = case.objective.linearise(case.weight, first)
    alone = case.objective.on([0]).linearise(case.weight)
    got, expected = (dense_matrix(at.product, case.mask) for at in (sampled, alone))
    assert relative(got, expected) < 1e-10
    whole = case.objective.linearise(case.weight)
    assert sampled.loss == pytest.approx(whole.loss, rel=1e-12) and relative(sampled.gradient, whole.gradient) < 1e-12


def test_samples_round_up_to_batches_and_are_counted():
    case = CASES["resnet"](2, sizes=2)
    objective, direction = case.objective, torch.where(case.mask, 1.0, 0.0).to(case.weight)
    assert len(objective.sizes) > 1
    for asked, used in [(1, objective.sizes[0]), (objective.sizes[0] + 1, sum(objective.sizes[:2])), (10**6, None)]:
        objective.image_products = 0
        objective.linearise(case.weight, asked).product(direction)
        assert objective.image_products == (used or objective.images)


class Misleading:
    """A quadratic loss over 64 images whose sampled curvature is too small by a factor, until enough are asked for."""

    images = 64

    def __init__(self, honest_from, factor):
        self.diagonal = torch.arange(1.0, 6.0, dtype=torch.float64)
        self.honest_from, self.factor, self.asked = honest_from, factor, []

    def value(self, weight):
        return float((self.diagonal * (weight - 1).square()).sum() / 2) + 1e-3

    def linearise(self, weight, curvature_images=None):
        self.asked.append(curvature_images)
        images = self.images if curvature_images is None else curvature_images
        curvature = self.diagonal * (1.0 if images >= self.honest_from else self.factor)
        return At(self.value(weight), self.diagonal * (weight - 1), lambda v: curvature * v)


OPTIONS = NewtonOptions(steps=8, tolerance=1e-6, cg_relative=1e-10, curvature_images=2)


@pytest.mark.parametrize("factor", [0.05, 0.6, 3.0])
def test_a_sample_that_misleads_grows_until_it_does_not(factor):
    objective = Misleading(honest_from=32, factor=factor)
    solution = newton(objective, torch.zeros(5, dtype=torch.float64), OPTIONS)
    assert relative(solution.weight, torch.ones(5, dtype=torch.float64)) < 1e-4
    assert objective.asked[:3] == [2, 8, 32]  # too little curvature gains less than foretold, too much gains more


def test_an_honest_sample_stays_as_small_as_it_is():
    objective = Misleading(honest_from=1, factor=1.0)
    solution = newton(objective, torch.zeros(5, dtype=torch.float64), OPTIONS)
    assert objective.asked == [2] and solution.stop is StopReason.MODEL


def test_a_sample_as_large_as_all_images_is_all_images():
    objective = Misleading(honest_from=1, factor=1.0)
    newton(objective, torch.zeros(5, dtype=torch.float64), NewtonOptions(1, curvature_images=64))
    assert objective.asked == [None]


def test_a_useless_sampled_direction_does_not_end_the_solve():
    objective = Misleading(honest_from=32, factor=1e-4)  # a step so long that no shrinking within 5 trials helps
    options = NewtonOptions(steps=8, tolerance=1e-6, cg_relative=1e-10, curvature_images=8, backtracks=5)
    solution = newton(objective, torch.zeros(5, dtype=torch.float64), options)
    assert solution.losses[0] > solution.losses[-1] and relative(solution.weight, torch.ones(5)) < 1e-4


def test_a_run_with_a_sample_takes_fewer_image_products_and_ends_no_worse():
    torch.manual_seed(0)
    model, images = small_resnet(), random_images(64, 8)
    options = {"k": 3, "progress": False, "batch_size": 8}
    whole = snows.prune(model, images, "2:4", curvature_images=None, **options, effort="quick").report
    part = snows.prune(model, images, "2:4", curvature_images=16, **options, effort="quick").report
    assert part["image_products"].sum() < whole["image_products"].sum()
    assert part["loss_end"].sum() < 1.1 * whole["loss_end"].sum()


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "all"])
def test_what_is_no_sample(value):
    with pytest.raises(SnowsError, match=r"^curvature_images: got .*expected a number of images >= 1, or None"):
        NewtonOptions(curvature_images=value)
