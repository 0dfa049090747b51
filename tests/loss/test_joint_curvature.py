"""The curvature of the joint loss against the dense matrix J'CJ, column by column, in float64."""

import pytest
import torch
from torch import nn
from toys import random_images, relative, small_resnet, small_vit

from snows_core.loss import joint_curvature
from snows_core.loss.batch_loss import math_attention
from snows_core.loss.joint import JointLoss
from snows_core.loss.joint_curvature import FlatState, JointObjective, joint_diagonal
from snows_core.loss.joint_preconditioner import JointPreconditioner
from snows_core.network.graph import Network
from snows_core.solvers import conjugate_gradients

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
RESNET = ("layer1.conv1.weight", "layer2.conv2.weight", "bn1.weight", "layer2.bn1.bias", "fc.bias")
VIT = ("blocks.0.attn.qkv.weight", "blocks.1.mlp.fc2.weight", "blocks.1.norm1.weight", "head.bias")


def problem(make=small_resnet, names=RESNET, size=8, count=6):
    """A joint loss, a state with zeros, its masks, and how it lies in a vector."""
    network, images = Network(make()), random_images(count, size)
    generator = torch.Generator().manual_seed(0)
    kept = {name: torch.rand(network.module.get_parameter(name).shape, generator=generator) < 0.1 for name in names[:2]}
    state = {name: 0.8 * network.module.get_parameter(name).detach() for name in names}
    state = {name: torch.where(kept[name], value, 0.0) if name in kept else value for name, value in state.items()}
    return JointLoss(network, images, state), images, state, kept, FlatState(state, kept)


def with_vector(flat, state, vector):
    """The state of a vector, in the sight of autograd."""
    made = {}
    for (name, places), part in zip(flat.places.items(), torch.split(vector, flat.sizes), strict=True):
        if places is not None:
            part = torch.zeros(state[name].numel(), dtype=part.dtype).index_copy(0, places, part)
        made[name] = part.view(state[name].shape)
    return made


def dense_matrix(loss, images, state, flat):
    """J'CJ of the mean over images, from the Jacobian of the scaled tap values; C is 2 / (variance * elements)."""

    def scaled(vector):
        shown = loss.outputs(images, with_vector(flat, state, vector))
        factors = [
            (2 / (loss.variances[tap] * one[0].numel())).sqrt() for tap, one in zip(loss.taps, shown, strict=True)
        ]
        return torch.cat([(one * factor).flatten() for one, factor in zip(shown, factors, strict=True)])

    vector = flat.vector(state)
    units = torch.eye(len(vector), dtype=vector.dtype)
    with math_attention():
        columns = [torch.func.jvp(scaled, (vector,), (unit,))[1] for unit in units]
    jacobian = torch.stack(columns, 1)  # (tap values, n)
    return jacobian.T @ jacobian / len(images)


@pytest.mark.parametrize("make, names, size", [(small_resnet, RESNET, 8), (small_vit, VIT, 4)])
def test_products_are_those_of_the_dense_matrix_whatever_the_pieces(make, names, size):
    loss, images, state, _, flat = problem(make, names, size, count=4)
    vector = flat.vector(state)
    expected = dense_matrix(loss, images, state, flat)
    directions = torch.randn(5, len(vector), dtype=vector.dtype, generator=torch.Generator().manual_seed(1))
    for piece in (1, 3, 100):
        loss.piece = piece
        objective = JointObjective(loss, images, flat)
        at = objective.linearise(vector)
        products = torch.stack([at.product(direction) for direction in directions])
        assert relative(products, directions @ expected) < 1e-12
        assert objective.products == 5 and objective.image_products == 20


def test_loss_and_gradient_are_those_of_all_images_and_products_of_a_sample():
    loss, images, state, _, flat = problem()
    loss.piece = 4
    objective, vector = JointObjective(loss, images, flat), flat.vector(state)
    at = objective.linearise(vector, 2)
    slope = torch.autograd.functional.jacobian(
        lambda v: loss.total(loss.outputs(images, with_vector(flat, state, v)), loss.targets(images)), vector
    )
    assert at.loss == pytest.approx(loss.value(images, state), rel=1e-12) == objective.value(vector)
    assert relative(at.gradient, slope / len(images)) < 1e-12
    few = dense_matrix(loss, images[:2], state, flat)
    direction = torch.randn(len(vector), dtype=vector.dtype, generator=torch.Generator().manual_seed(1))
    assert relative(at.product(direction), few @ direction) < 1e-12 and objective.image_products == 2


def test_products_use_no_more_images_than_fit(monkeypatch):
    loss, images, state, _, flat = problem()
    objective, vector = JointObjective(loss, images, flat), flat.vector(state)
    monkeypatch.setattr(joint_curvature, "batch_bytes", lambda device: 3.2 * loss.graph_bytes * 2.5 / 4)
    objective.linearise(vector).product(vector)
    assert objective.image_products == 3


def test_the_diagonal_is_right_in_expectation():
    loss, images, state, _, flat = problem(count=2)
    generator = torch.Generator().manual_seed(0)
    draws = [flat.vector(joint_diagonal(loss, images, state, generator, group=1)) for _ in range(200)]
    expected = dense_matrix(loss, images, state, flat).diagonal()
    assert relative(torch.stack(draws).mean(0), expected) < 0.2
    assert relative(draws[0], expected) > 0.3, "one draw alone is noisy: the mean says something"


def test_a_state_becomes_a_vector_of_its_kept_entries_and_comes_back():
    _, _, state, kept, flat = problem()
    vector = flat.vector(state)
    free = sum(int(kept[name].sum()) if name in kept else value.numel() for name, value in state.items())
    assert vector.shape == (free,)
    again = flat.state(vector + 1)
    for name, value in state.items():
        expected = torch.where(kept[name], value + 1, 0.0) if name in kept else value + 1
        assert torch.equal(again[name], expected), name


class Alone(nn.Module):
    """One linear layer: there the row factors are the matrix itself."""

    def __init__(self):
        super().__init__()
        self.first, self.fc = nn.Linear(48, 6, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x):
        return self.fc(torch.relu(self.first(x.flatten(1))))


def test_the_preconditioner_inverts_the_block_of_a_last_layer():
    torch.manual_seed(0)
    network, images = Network(Alone().double().eval()), random_images(30, 4)
    state = {"fc.weight": network.module.get_parameter("fc.weight").detach().clone()}
    kept = {"fc.weight": torch.rand(4, 6, generator=torch.Generator().manual_seed(1)) < 0.6}
    state["fc.weight"] *= kept["fc.weight"]
    flat = FlatState(state, kept)
    loss = JointLoss(network, images, state)
    precondition = JointPreconditioner(loss, images, state, kept, flat, torch.Generator().manual_seed(0), ridge=1e-12)
    matrix = dense_matrix(loss, images, state, flat)
    direction = torch.randn(len(matrix), dtype=matrix.dtype, generator=torch.Generator().manual_seed(2))
    assert relative(precondition(matrix @ direction), direction) < 1e-6
    inputs = torch.relu(images.flatten(1) @ network.module.get_parameter("first.weight").detach().T)
    of_inputs = inputs.square().mean(0) * 2 / (loss.variances[loss.taps[-1]] * 4)
    assert relative(precondition.diagonal("fc.weight"), of_inputs.expand(4, 6)) < 1e-6


@pytest.mark.parametrize("make, names, size", [(small_resnet, RESNET, 8), (small_vit, VIT, 4)])
def test_the_preconditioner_is_symmetric_and_positive_and_speeds_up_a_transformer(make, names, size):
    loss, images, state, kept, flat = problem(make, names, size, count=12)
    precondition = JointPreconditioner(loss, images, state, kept, flat, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(len(flat.vector(state)), dtype=torch.float64, generator=generator) for _ in range(2))
    assert float(a @ precondition(b)) == pytest.approx(float(b @ precondition(a)), rel=1e-9)
    assert float(a @ precondition(a)) > 0
    at = JointObjective(loss, images, flat).linearise(flat.vector(state))
    plain, faster = (
        conjugate_gradients(at.product, -at.gradient, precondition=how, max_iterations=4).model[-1]
        for how in (None, precondition)
    )
    assert plain < 0 and (faster < plain or make is small_resnet), "the toy ResNet is well conditioned as it is"
