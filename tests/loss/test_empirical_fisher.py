"""Products with the empirical Fisher against the matrix itself, made of each image's own gradient."""

import pytest
import torch
from toys import dense_matrix, make_problem, nudged, random_images, random_mask, relative, small_resnet, small_vit

CASES = {"convolution": (small_resnet, "layer1.conv2", 8), "transformer": (small_vit, "blocks.0.mlp.fc1", 4)}


def case(name, sizes=(4, 3)):
    make, layer, size = CASES[name]
    images = random_images(sum(sizes), size)
    problem = make_problem(make(), images.split(list(sizes)), layer, 2)
    mask = random_mask(problem.weight.shape, 0.3)
    problem.objective.mask = mask
    return problem, torch.where(mask, nudged(problem.weight), 0.0)


def image_gradients(name, weight, count, tap_weights):
    """Each image's gradient, of its own loss alone, (images, weights)."""
    make, layer, size = CASES[name]
    rows = []
    for image in random_images(count, size).split(1):
        alone = make_problem(make(), image, layer, 2).objective
        alone.tap_weights = [count * c for c in tap_weights]
        rows.append(alone.batch(0).gradient(weight)[1].flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("retain", [0, 1, 2])
def test_products_are_with_the_mean_outer_product_of_the_images_gradients(name, retain):
    problem, weight = case(name)
    problem.objective.retain = retain
    fisher = problem.objective.with_fisher()
    at, kept = fisher.linearise(weight), problem.objective.mask.flatten()
    rows = image_gradients(name, weight, 7, problem.objective.tap_weights)[:, kept]
    assert relative(dense_matrix(at.product, problem.objective.mask), rows.T @ rows / 7) < 1e-9
    assert relative(at.gradient.flatten()[kept], rows.mean(0)) < 1e-10
    usual = problem.objective.linearise(weight)
    assert at.loss == pytest.approx(usual.loss, rel=1e-12) and relative(at.gradient, usual.gradient) < 1e-11
    count = int(kept.sum())
    assert (fisher.products, fisher.image_products) == (count, 7 * count) and problem.objective.products == 0


def test_a_sample_of_the_images_stands_for_all_of_them():
    problem, weight = case("convolution")
    at, kept = problem.objective.with_fisher().linearise(weight, 3), problem.objective.mask.flatten()
    rows = image_gradients("convolution", weight, 7, problem.objective.tap_weights)[:4, kept]  # a whole batch
    assert relative(dense_matrix(at.product, problem.objective.mask), rows.T @ rows / 4) < 1e-9


def test_it_is_another_matrix_than_the_curvature():
    problem, weight = case("convolution")
    fisher, curved = (
        dense_matrix(of.linearise(weight).product, problem.objective.mask)
        for of in (problem.objective.with_fisher(), problem.objective)
    )
    assert torch.linalg.matrix_rank(fisher) == 7 < torch.linalg.matrix_rank(curved)


def test_the_gradient_alone_is_that_of_the_linearisation():
    problem, weight = case("transformer")
    loss, slope = problem.objective.gradient(weight)
    at = problem.objective.linearise(weight)
    assert loss == pytest.approx(at.loss, rel=1e-12) and relative(slope, at.gradient) < 1e-12
    assert not slope[~problem.objective.mask].any() and not slope.requires_grad
