"""fits.py: the layers' problems are those of the package's own sweep, and losses fall apart into their images."""

import pytest
import torch
from toys import dense_matrix, random_images, relative, small_resnet

import snows_core as snows
from snows_core.book.contests.fits import image_gradients, layer_fits, layer_losses, split_images
from snows_core.network import Network

PATTERN, K = "1:2", 2


@pytest.fixture(scope="module")
def made():
    """Return a network, images, and the package's own run on them."""
    model, images = small_resnet(), random_images(8)
    return model, images, snows.prune(model, images, PATTERN, k=K, effort="quick", progress=False, sampled=False)


@pytest.fixture(scope="module")
def fits(made):
    model, images, run = made
    weights, found = {}, []  # a shortcut is solved behind the layer whose loss reads it: weights are told in turn
    for fit in layer_fits(Network(model), run.masks, PATTERN, K, images, weights):
        weights[f"{fit.name}.weight"] = run.model.get_submodule(fit.name).weight.detach()
        found.append(fit)
    return found


def test_the_starts_are_those_of_the_package(made, fits):
    report = made[2].report.set_index("layer")
    assert [fit.name for fit in fits] == list(made[2].masks)
    for fit in fits:
        assert fit.loss.value(fit.start) == pytest.approx(report["loss_start"][fit.name], rel=1e-6), fit.name


def test_the_preconditioner_solves_what_it_multiplies(fits):
    fit = fits[1]
    vector = torch.where(fit.loss.mask, torch.ones_like(fit.start), 0.0)
    assert relative(fit.times(fit.solve(vector)), vector) < 1e-9
    matrix = dense_matrix(fit.times, fit.loss.mask)
    assert relative(matrix, matrix.T) < 1e-9 and bool((torch.linalg.eigvalsh(matrix) > 0).all())


def test_a_loop_that_adds_its_solutions_is_a_sweep(made):
    model, images, run = made
    weights = {}
    for fit in layer_fits(Network(model), run.masks, PATTERN, 0, images, weights):
        weights[f"{fit.name}.weight"] = fit.start
    own = snows.prune(model, images, PATTERN, k=0, effort="quick", progress=False, sampled=False)
    for name in run.masks:
        assert relative(weights[f"{name}.weight"], own.model.get_submodule(name).weight) < 1e-6, name


def test_pieces_add_up_to_the_loss(fits):
    fit = fits[0]
    pieces = split_images(fit.loss, 3)  # of 3, 3 and 2 images
    loss, gradient = fit.loss.gradient(fit.start)
    assert pieces.sizes == [3, 3, 2] and pieces.value(fit.start) == pytest.approx(loss, rel=1e-9)
    parts = [pieces.batch(i).gradient(fit.start) for i in range(3)]
    assert sum(float(value) for value, _ in parts) == pytest.approx(loss, rel=1e-9)
    assert relative(torch.where(fit.loss.mask, sum(slope for _, slope in parts), 0.0), gradient) < 1e-9


def test_image_gradients_make_the_gradient_and_the_fisher(fits):
    fit = fits[0]
    rows = image_gradients(fit.loss, fit.start)
    at = fit.loss.with_fisher().linearise(fit.start)
    vector = torch.where(fit.loss.mask, fit.start + 1, 0.0)
    assert relative(rows.mean(0), at.gradient.flatten()) < 1e-9
    assert relative(rows.T @ (rows @ vector.flatten()) / len(rows), at.product(vector).flatten()) < 1e-9


def test_losses_end_where_the_network_ends(made):
    model, images, run = made
    last = list(run.masks)[-1]
    [(problem, loss)] = layer_losses(Network(model), [last], PATTERN, 1000, images)
    assert problem.name == last and 0 < loss.segment.k < 1000
    dense = loss.network.weight(problem.layer)
    assert loss.value(dense) == pytest.approx(0, abs=1e-12)  # nothing before it is pruned
