"""The solvers of the joint stage behind one interface: each lowers the loss, keeps zeros, and trains on no judge."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import awake, random_images, random_mask, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.loss.joint import JointLoss
from snows_core.loss.joint_curvature import FlatState
from snows_core.masks.patterns import masks_for, parse_pattern
from snows_core.network.graph import Network
from snows_core.sweep import moving_masks
from snows_core.sweep.refine_natural import cycle, largest_curvature

module = importlib.import_module("snows_core.sweep.refine")  # the package shows the function under that name
pytestmark = pytest.mark.usefixtures("few_images_are_fine")
NAMES = ("layer1.conv1", "layer1.conv2", "layer2.conv2")
SOLVERS = ("natural", "newton", "adam")


def refined(images, pattern=None, make=small_resnet, names=NAMES, **options):
    """Refine a network with weights masked by hand, or by a pattern that may move."""
    dense, twin = make(), make()
    masks = {name: random_mask(dense.get_submodule(name).weight.shape) for name in names}
    remask = None
    if pattern is not None:
        chosen = parse_pattern(pattern)
        masks = masks_for({name: dense.get_submodule(name).weight.detach() for name in names}, chosen)

        def remask(scores):
            return masks_for(scores, chosen, lambda _, score: score)

    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_submodule(name).weight.mul_(mask)
    options = module.JointOptions(**{"steps": 10, "batch_size": 8, "progress": False, **options})
    weight_names = {name: f"{name}.weight" for name in masks}
    return module.refine(module.Pair(Network(dense), twin, masks, weight_names), images, options, remask), twin, masks


@pytest.mark.parametrize("solver", SOLVERS)
def test_no_solver_draws_from_the_global_source(monkeypatch, solver):
    real, states = module.refine, []

    def watched(*args):
        states.append(torch.get_rng_state())
        done = real(*args)
        states.append(torch.get_rng_state())
        return done

    monkeypatch.setattr(module, "refine", watched)
    refined(random_images(12), solver=solver, steps=2)
    assert torch.equal(*states)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "make, names, size", [(small_resnet, NAMES, 8), (small_vit, ("blocks.0.attn.qkv", "blocks.1.mlp.fc2"), 4)]
)
def test_every_solver_lowers_the_loss_and_keeps_zeros(solver, make, names, size):
    done, twin, masks = refined(random_images(24, size), make=make, names=names, solver=solver)
    assert done.loss[1] < 0.97 * done.loss[0] and done.steps == 10 and not done.early
    for name, mask in masks.items():
        value = done.state[f"{name}.weight"]
        assert (value[~mask] == 0).all() and not torch.equal(value, twin.get_parameter(f"{name}.weight"))
    assert done.effort.images == 10 * 8 * (2 if solver == "newton" else 1)
    assert (done.effort.products > 0) == (solver != "adam") == (done.effort.image_products > 0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_seed_decides_everything(solver):
    images = random_images(20)
    one, again, other = (refined(images, solver=solver, steps=2, seed=seed)[0].state for seed in (3, 3, 4))
    assert all(torch.equal(one[name], value) for name, value in again.items())
    assert any(not torch.equal(one[name], value) for name, value in other.items())


@pytest.mark.parametrize("solver", SOLVERS)
def test_images_held_back_judge_and_train_nothing(solver, monkeypatch):
    images, trained, judged = random_images(80, 4), [], []
    value = JointLoss.value

    def note(self, x, state):
        if len(x) == 20:
            judged.append(x)
        return value(self, x, state)

    monkeypatch.setattr(JointLoss, "value", note)
    done, _, _ = refined(images, solver=solver, held_back=0.25, steps=12, augment=lambda x, _: trained.append(x) or x)

    def numbers(batches):
        return {one.flatten()[0].item() for batch in batches for one in batch}

    assert done.held_back == 20 and len(numbers(judged)) == 20 and len(numbers(trained)) > 40
    assert not numbers(judged) & numbers(trained)


def test_few_images_all_train_and_judge():
    seen = []
    done, _, _ = refined(
        random_images(63, 4), steps=40, batch_size=32, held_back=0.25, augment=lambda x, _: seen.append(x) or x
    )
    assert done.held_back == 0 and len({one.flatten()[0].item() for batch in seen for one in batch}) == 63


def scripted(monkeypatch, losses):
    """Make the judges give these losses one after the other, whatever the parameters are."""
    told = iter(losses)
    monkeypatch.setattr(JointLoss, "value", lambda self, x, state: next(told))
    monkeypatch.setattr(module, "LOOK", 1)
    monkeypatch.setattr(module, "LOOKS_SHARE", 1e9)


def states_of(monkeypatch, solver="adam"):
    """Note what a solver gives after each step."""
    seen = []

    class Noting(module.SOLVERS[solver]):
        def step(self, number):
            super().step(number)
            seen.append({name: value.clone() for name, value in self.state.items()})

    monkeypatch.setitem(module.SOLVERS, solver, Noting)
    return seen


def test_the_best_weights_on_the_way_are_kept(monkeypatch):
    seen = states_of(monkeypatch)
    scripted(monkeypatch, [5.0, 4.0, 2.0, 3.0, 2.5])
    done, _, _ = refined(random_images(12), solver="adam", steps=4)
    assert done.loss == (5.0, 2.0) and done.steps == 4
    assert all(torch.equal(done.state[name], value) for name, value in seen[1].items())
    assert any(not torch.equal(done.state[name], value) for name, value in seen[3].items())


def test_it_ends_when_patience_does(monkeypatch):
    scripted(monkeypatch, [5.0, 4.0, 4.5, 4.0, float("nan"), 3.0])
    done, _, _ = refined(random_images(12), solver="adam", steps=5, patience=2)
    assert done.steps == 4 and done.early and done.loss == (5.0, 4.0)


def test_nobody_loses_patience_while_the_rate_is_high(monkeypatch):
    scripted(monkeypatch, [5.0, 6.0, 7.0, 8.0, 7.0, 4.0, 5.0, 5.0])
    done, _, _ = refined(random_images(12), solver="adam", steps=8, patience=2)
    assert done.steps == 7 and done.early and done.loss == (5.0, 4.0)


@pytest.mark.parametrize("held_back, interval", [(0.125, 10), (0.5, 10), (0.0, 100)])
def test_looks_cost_a_small_share_of_the_steps(held_back, interval):
    dense = small_resnet()
    images = random_images(160, 4)
    options = module.JointOptions(5, batch_size=8, held_back=held_back)
    loss = JointLoss(Network(dense), images, {})
    seen, judges = module._held_back(images, options)
    problem = module.JointProblem(loss, seen, {}, {}, {}, options, None, torch.Generator())
    watch = module._Watch(problem, judges)
    assert watch.interval == max(10, math.ceil(2 * len(judges) / (4 * 8) / 0.1))
    assert watch.interval >= interval


@pytest.mark.parametrize("pattern", ["1:4", 0.7, "global:0.7:0.9"])
@pytest.mark.parametrize("solver", ["natural", "adam"])
def test_masks_move_within_the_budget_and_end_frozen(pattern, solver, monkeypatch):
    moves, move = [], moving_masks.MovingMasks.move

    def note(self, state, precondition):
        after = move(self, state, precondition)
        moves.append((self.count, {name: mask.clone() for name, mask in self.problem.kept.items()}))
        for name, mask in self.problem.kept.items():
            assert (after[name][~mask] == 0).all()
        return after

    monkeypatch.setattr(moving_masks.MovingMasks, "move", note)
    monkeypatch.setattr(moving_masks, "WORTH", 3.0)  # so that something moves
    monkeypatch.setattr(moving_masks, "EVERY", 10)
    images = random_images(24)
    done, _, masks = refined(images, pattern, solver=solver, steps=40, moving_masks=True)
    assert len(moves) == 2, "after steps 10 and 20 of 40: the second half is frozen"
    assert any(not torch.equal(moves[0][1][f"{name}.weight"], mask) for name, mask in masks.items())
    chosen = parse_pattern(pattern)
    for _, kept in moves:
        total = sum(int(mask.sum()) for mask in kept.values())
        assert total == sum(int(mask.sum()) for mask in masks.values())
        for name, mask in masks.items():
            moved = kept[f"{name}.weight"]
            if pattern == "1:4":
                assert (moved.movedim(1, -1).unflatten(-1, (-1, 4)).sum(-1) == chosen.n).all()
            elif pattern == 0.7:
                assert moved.sum() == mask.sum()
    for name, mask in done.masks.items():
        assert (done.state[f"{name}.weight"][~mask] == 0).all()
    assert done.loss[1] <= done.loss[0]


def test_masks_go_to_where_the_gradient_and_the_curvature_say(monkeypatch):
    monkeypatch.setattr(moving_masks, "WORTH", 0.5)
    # One linear layer on known inputs: a pruned weight alone would go to -g / H, and the larger value wins the place.
    problem = type("P", (), {"options": module.JointOptions(40), "kept": {}, "layers": {}})()
    problem.kept, problem.layers = {"w": torch.tensor([[True, False, False]])}, {"w": "layer"}
    shown = {}

    def remask(scores):
        shown.update(scores)
        return {"layer": scores["layer"] == scores["layer"].max()}

    moving = moving_masks.MovingMasks(problem, remask)
    moving.note({"w": torch.tensor([[0.0, 1.0, -6.0]])})
    moving.note({"w": torch.tensor([[0.0, 3.0, -2.0]])})
    precondition = type("M", (), {"diagonal": lambda self, name: torch.tensor([[1.0, 4.0, 2.0]])})()
    after = moving.move({"w": torch.tensor([[0.7, 0.0, 0.0]])}, precondition)
    assert torch.allclose(shown["layer"], torch.tensor([[0.7, 0.25, 1.0]]))
    assert problem.kept["w"].tolist() == [[False, False, True]] and moving.moved == [1]
    assert (after["w"] == 0).all(), "what leaves is zero, and what enters starts there"


def test_moved_masks_are_those_of_the_result(monkeypatch):
    monkeypatch.setattr(moving_masks, "WORTH", 3.0)
    monkeypatch.setattr(moving_masks, "EVERY", 10)
    options = {"pattern": 0.7, "k": 0, "progress": False}
    plain = snows.prune(small_resnet(), random_images(24), **options, effort="quick")
    result = snows.prune(small_resnet(), random_images(24), **options, refine=40, moving_masks=True, effort="quick")
    for name, mask in result.masks.items():
        weight = result.state[result.weight_names[name]]
        assert (weight[~mask] == 0).all() and mask.sum() == plain.masks[name].sum()
    assert result.manifest["refinement"]["moving_masks"] is True


def test_the_largest_curvature_is_the_largest_eigenvalue():
    matrix = torch.diag(torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64))
    objective = type("O", (), {"linearise": lambda self, v: type("L", (), {"product": staticmethod(matrix.mv)})()})()
    vector = torch.zeros(3, dtype=torch.float64)
    half = torch.tensor([0.5, 1.0, 1.0], dtype=torch.float64)
    found = largest_curvature(objective, vector, lambda r: half * r, torch.Generator().manual_seed(0))
    assert 4.3 < found <= 4.5


def test_the_rate_rises_and_falls_to_nothing():
    for steps in (1, 2, 5, 20, 100):
        sizes = [cycle(step, steps) for step in range(1, steps + 1)]
        top = sizes.index(max(sizes))
        assert max(sizes) == 1.0 and sizes[:top] == sorted(sizes[:top]) and sizes[top:] == sorted(sizes[top:])[::-1]
        assert steps < 3 or sizes[-1] == pytest.approx(0, abs=1e-12)
    assert [cycle(step, 100) for step in (1, 5, 9, 10)] == pytest.approx([0.1, 0.5, 0.9, 1.0])  # a tenth of the steps


class Decides(nn.Module):
    """A linear network whose output is a class number, or nothing of the image."""

    def __init__(self, form):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.form = form

    def forward(self, x):
        return self.form(self.last(self.middle(self.first(x.flatten(1)))))


@pytest.mark.parametrize("form", [lambda y: y.argmax(1), lambda y: y.detach()])
def test_a_network_with_nothing_to_compare_is_refused_before_the_sweep(form, monkeypatch):
    from snows_core.sweep.sweep import Sweep

    monkeypatch.setattr(Sweep, "run", lambda *_: pytest.fail("the sweep has begun"))
    with pytest.raises(SnowsError, match=r"^refine: got a network with .*; expected .*Leave refine at 0"):
        snows.prune(awake(Decides(form)), random_images(8, 2), 0.5, k=0, refine=3, progress=False, effort="quick")


@pytest.mark.parametrize("form", [lambda y: y.argmax(1), lambda y: y.detach()])
def test_a_network_with_nothing_to_compare_is_not_refined_where_nobody_asked(form, recwarn):
    result = snows.prune(awake(Decides(form)), random_images(64, 2), 0.5, k=0, progress=False, effort="standard")
    assert result.complete and result.manifest["settings"]["refine"] == 0
    assert "refinement" not in result.manifest and not [w for w in recwarn if "refine" in str(w.message)]


def test_an_integer_output_beside_activations_is_left_out():
    model = awake(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), Last()))
    result = snows.prune(model, random_images(16, 2), 0.5, k=0, refine=5, progress=False, effort="quick")
    before, after = result.manifest["refinement"]["loss"]
    assert after < before


class Last(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(x).argmax(1)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"refine_solver": "sgd"}, "refine_solver"),
        ({"moving_masks": 3}, "moving_masks"),
        ({"moving_masks": True, "refine_solver": "newton"}, "moving_masks"),
        ({"moving_masks": True, "masks": {}}, "moving_masks"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options, name):
    with pytest.raises(SnowsError, match=f"^{name}: got .*; expected "):
        snows.prune(
            small_resnet(), random_images(8), **{"k": 0, "refine": 3, "progress": False, **options}, effort="quick"
        )


def test_options_are_frozen_and_flat_states_know_their_size():
    assert replace(module.JointOptions(3), steps=4).solver == "adam"
    assert FlatState({"a": torch.ones(2, 2)}, {"a": torch.eye(2, dtype=torch.bool)}).sizes == [2]


def test_images_held_back_are_drawn_by_the_seed_of_the_run_alone():
    module = importlib.import_module("snows_core.sweep.refine")
    images = torch.arange(100.0).view(100, 1, 1, 1)
    drawn = []
    for global_seed, seed in ((1, 3), (2, 3), (1, 4)):
        torch.manual_seed(global_seed)
        drawn.append(module._held_back(images, module.JointOptions(1, seed=seed, held_back=0.2)))
    (train, judge), (again, judged_again), (_, other) = drawn
    assert torch.equal(train, again) and torch.equal(judge, judged_again) and not torch.equal(judge, other)
    assert len(judge) == 20 and torch.equal(torch.cat([train, judge]).flatten().sort().values, images.flatten())
