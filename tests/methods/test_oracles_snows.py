"""One layer of the sweep: from how many images it learns, how the published schedule ends, what its row says."""

import numpy as np
import pytest
import torch
from numpy_layers import applied, refitted
from spies import noted
from toys import layer_named, layer_problem, random_images, random_mask, relative, small_resnet, wide

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.network.geometry import patches
from snows_core.network.graph import Network
from snows_core.settings import NewtonOptions
from snows_core.solvers.newton_cg import newton

SNOWS = "snows_core.methods.snows"
pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def test_least_squares_as_a_result_comes_from_all_images():
    model, x = wide(), random_images(48)
    mask = random_mask((5, 4, 1, 1), 0.7)
    got = snows.prune(model, x, masks={"2": mask}, k=0, ridge=1e-3, batch_size=8, progress=False, effort="quick").state[
        "2.weight"
    ]
    hidden = np.maximum(applied(x.numpy(), model[0], model[0].weight.detach().flatten(1).numpy()), 0)
    expected, _ = refitted(hidden, hidden, model[2], mask.flatten(1).numpy())
    assert relative(got.flatten(1), torch.from_numpy(expected)) < 1e-8


@pytest.mark.parametrize(("asked", "taken"), [(None, 11), (1, 4), (4, 4), (5, 8), (8, 8), (9, 11), (50, 11)])
def test_the_gram_matrix_takes_images_up_to_whole_batches(asked, taken):
    model, x = small_resnet(), random_images(11)
    network = Network(model)
    damaged = 0.5 * network.weight(layer_named(network, "layer1.conv1"))
    batches = list(x.split([4, 4, 3]))
    dense, pruned = ActivationCache(network, batches), ActivationCache(network, batches)
    pruned.weights["layer1.conv1.weight"] = damaged
    layer = layer_named(network, "layer1.conv2")
    place, mask = network.index[layer.node], torch.ones_like(network.weight(layer), dtype=torch.bool)
    dense.advance(place), pruned.advance(place)
    problem = layer_problem(network, [network.segment(layer, 0)], mask, pruned, dense)
    source = layer.node.all_input_nodes[0]
    a, a0 = (patches(torch.cat([v[source] for v in s.values])[:taken], problem.geometry)[0] for s in (pruned, dense))
    gram, response = problem.normal_equations(asked)
    weight = problem.weight.flatten(1)
    assert relative(gram[0], a.T @ a) < 1e-10 and relative(response, (a0 @ weight.T).T @ a) < 1e-10
    same, nothing = layer_problem(network, problem.segments, mask, dense).normal_equations(asked)
    assert nothing is None and relative(same[0], a0.T @ a0) < 1e-10


@pytest.mark.parametrize("passes", [3, 7, 30])
def test_the_published_schedule_ends_when_six_losses_in_a_row_hardly_fall(monkeypatch, passes):
    # K = 0 is solved by one exact step: the losses are L0, L1, L1, ..., hence six alike after the seventh.
    solves = noted(monkeypatch, SNOWS, "newton")
    options = {"recipe": "paper", "k": 0, "cg_absolute": 1e-12, "damping": 0.0, "passes": passes, "progress": False}
    model, x = wide(), random_images(8)
    result = snows.prune(model, x, masks={"2": random_mask((5, 4, 1, 1), 0.7)}, **options, effort="quick")
    row = result.report.set_index("layer").loc["2"]
    assert len(solves) == min(passes, 7)
    stagnated = "the loss stagnated over five mini-batches"
    assert row["stop"] == (stagnated if passes >= 7 else "the passes asked for were made")
    assert row["image_products"] == 8 * row["products"] > 0
    assert row["loss_end"] < row["loss_start"] == row["loss_masked"]


def test_mini_batches_take_their_steps_in_turn_each_on_its_own_loss(monkeypatch):
    model, x = small_resnet(), random_images(10)
    solves = noted(monkeypatch, SNOWS, "newton")
    snows.prune(
        model,
        x,
        "2:4",
        recipe="paper",
        k=1,
        layers=["layer1.conv1"],
        batch_size=4,
        passes=2,
        cg_iterations=3,
        progress=False,
    )
    assert [args[0].images for args, _ in solves] == [4, 3, 3] * 2
    weight = None
    for (part, start, options), _ in solves:
        assert weight is None or torch.equal(start, weight)
        part.products = 0
        weight = newton(part, start, options).weight


def test_a_start_without_least_squares_and_a_preconditioner_of_nothing():
    model, x = wide(), random_images(12)
    mask = random_mask((5, 4, 1, 1), 0.7)
    rows = {}
    for warm in (True, False):
        for precondition in (True, False):
            rows[warm, precondition] = (
                snows.prune(
                    model,
                    x,
                    masks={"2": mask},
                    k=1,
                    warm_start=warm,
                    precondition=precondition,
                    progress=False,
                    steps=1,
                    cg_relative=1e-9,
                    cg_progress=0.0,
                    cg_iterations=300,
                    effort="quick",
                )
                .report.set_index("layer")
                .loc["2"]
            )
    for (warm, _), row in rows.items():
        assert (row["loss_start"] < 0.9 * row["loss_masked"]) == warm
        assert warm or row["loss_start"] == pytest.approx(row["loss_masked"], rel=1e-12)
    assert rows[True, True]["loss_end"] == pytest.approx(rows[False, False]["loss_end"], rel=1e-2)


def test_a_newton_step_at_k_zero_without_a_warm_start_is_least_squares_too():
    model, x = wide(), random_images(12)
    mask = random_mask((5, 4, 1, 1), 0.7)
    options = {"masks": {"2": mask}, "k": 0, "ridge": 1e-12, "progress": False}
    closed = snows.prune(model, x, **options, effort="quick")
    stepped = snows.prune(
        model,
        x,
        warm_start=False,
        cg_relative=1e-13,
        cg_progress=0.0,
        **options,
        curvature_images=None,
        effort="quick",
    )
    assert relative(stepped.state["2.weight"], closed.state["2.weight"]) < 1e-7
    rows = [result.report.set_index("layer").loc["2"] for result in (closed, stepped)]
    assert rows[0]["products"] == 0 < rows[1]["products"] and rows[1]["newton_steps"] == 1
    assert rows[0]["stop"] == "least squares in closed form" != rows[1]["stop"]
    assert NewtonOptions().curvature_images == 256


def test_the_seed_draws_the_signs_of_the_probe():
    options = {"masks": {"layer1.conv1": random_mask((4, 4, 3, 3))}, "k": 2, "steps": 1, "cg_iterations": 2}
    x = random_images(8)
    results = [
        snows.prune(small_resnet(), x, seed=seed, progress=False, **options, effort="quick") for seed in (0, 0, 1)
    ]
    states = [result.state["layer1.conv1.weight"] for result in results]
    assert torch.equal(states[0], states[1]) and not torch.allclose(states[0], states[2], rtol=1e-6)
