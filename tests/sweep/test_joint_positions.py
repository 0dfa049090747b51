"""Positions of the joint stage: a record holds all that the steps after it depend on, and is read back in order."""

import importlib

import pytest
import torch
from toys import random_images, random_mask, same, small_resnet

from snows_core.files.journal import Journal, Record
from snows_core.network.graph import Network
from snows_core.sweep import refine_natural
from snows_core.sweep.joint_problem import JointOptions, Pair, Position

module = importlib.import_module("snows_core.sweep.refine")  # the package shows the function under that name
NAMES = ("layer1.conv1", "layer2.conv2")
STEPS = 6


def solver_of(name):
    """Return a solver at its start; all of one name have equal problems."""
    dense, twin = small_resnet(), small_resnet()
    masks = {name: random_mask(dense.get_submodule(name).weight.shape) for name in NAMES}
    with torch.no_grad():
        for layer, mask in masks.items():
            twin.get_submodule(layer).weight.mul_(mask)
    pair = Pair(Network(dense), twin, masks, {layer: f"{layer}.weight" for layer in masks})
    options = JointOptions(STEPS, batch_size=4, progress=False, solver=name)
    return module.SOLVERS[name](module.joint_problem(pair, random_images(12), options))


def written_and_read(position, folder):
    journal = Journal(folder, {})
    journal.add(Record("joint", position.values, position.tensors))
    journal.close()
    again = Journal(folder, {})
    again.close()
    (record,) = again.records
    return Position(dict(record.values), dict(record.tensors))


@pytest.mark.parametrize("name", ["adam", "natural", "newton"])
def test_a_solver_goes_on_from_a_record_as_if_it_had_never_ended(name, tmp_path, monkeypatch):
    monkeypatch.setattr(refine_natural, "REFRESH", 2)  # its factors, which no record holds, serve so many steps
    whole, killed, resumed = (solver_of(name) for _ in range(3))
    for number in range(1, STEPS + 1):
        whole.step(number)
    for number in range(1, 5):
        killed.step(number)
    resumed.go_on(written_and_read(killed.position(4), tmp_path / "kept"))
    for number in range(5, STEPS + 1):
        resumed.step(number)
    assert same(resumed.state, whole.state) and not same(killed.state, whole.state)
    assert resumed.problem.effort == whole.problem.effort


def test_what_is_read_back_stands_in_the_order_of_the_start():
    solver = solver_of("newton")
    before = [list(part) for part in (solver.state, solver.problem.kept)]
    position = solver.position(0)
    solver.go_on(Position(position.values, dict(reversed(position.tensors.items()))))
    assert [list(part) for part in (solver.state, solver.problem.kept)] == before
