"""What joint refinement promises: its loss by hooks, its batches, its free parameters, its schedule."""

import importlib
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import awake, random_images, random_mask, relative, small_resnet

import snows_core as snows
from snows_core.loss import joint
from snows_core.loss.joint import JointLoss, joint_taps
from snows_core.network.graph import Network
from snows_core.sweep.refine_adam import AdamSteps, sizes

module = importlib.import_module("snows_core.sweep.refine")  # the package shows the function under that name
pytestmark = pytest.mark.usefixtures("few_images_are_fine")
NAMES = ("layer1.conv1", "layer1.conv2", "layer2.conv2")


def pruned_by_hand():
    """A dense network, its twin with zeros, and the masks."""
    dense, twin = small_resnet(), small_resnet()
    masks = {name: random_mask(dense.get_submodule(name).weight.shape) for name in NAMES}
    with torch.no_grad():
        for name, mask in masks.items():
            twin.get_submodule(name).weight.mul_(mask)
    return dense, twin, masks


def refined(images, **options):
    dense, twin, masks = pruned_by_hand()
    options = module.JointOptions(**{"steps": 6, "batch_size": 4, "progress": False, **options})
    weight_names = {name: f"{name}.weight" for name in masks}
    return module.refine(module.Pair(Network(dense), twin, masks, weight_names), images, options), twin, masks


def block_outputs(model, images):
    """What leaves both residual blocks, and the logits: the residual stream as hooks see it."""
    seen = []
    hooks = [
        part.register_forward_hook(lambda m, i, out: seen.append(out.detach()))
        for part in (model.layer1, model.layer2, model.fc)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return seen


def loss_by_hooks(dense, pruned, images, calibration):
    columns = block_outputs(pruned, images), block_outputs(dense, images), block_outputs(dense, calibration)
    return sum(float((a - b).square().mean() / every.var(correction=0)) for a, b, every in zip(*columns, strict=True))


def test_the_joint_loss_is_the_one_that_hooks_see():
    dense, twin, _ = pruned_by_hand()
    images = random_images(9)
    loss = JointLoss(Network(dense), images, {})
    state = {name: value.detach() for name, value in twin.named_parameters()}
    assert loss.value(images, state) == pytest.approx(loss_by_hooks(dense, twin, images, images), rel=1e-9)
    few = images[:4]  # variances stay those of all calibration images
    assert loss.value(few, state) == pytest.approx(loss_by_hooks(dense, twin, few, images), rel=1e-9)
    assert loss.value(images, {}) == 0


@pytest.mark.parametrize("piece", [1, 2, 5, 100])
def test_value_and_gradient_of_the_joint_loss_do_not_depend_on_the_pieces(piece):
    dense, twin, _ = pruned_by_hand()
    images = random_images(9)
    loss = JointLoss(Network(dense), images, {})
    names = ("layer1.conv1.weight", "bn1.bias")
    free = {name: nn.Parameter(twin.get_parameter(name).detach().clone()) for name in names}
    loss.piece = piece
    loss.backward(images, free)
    for name, value in free.items():
        step = torch.randn(value.shape, generator=torch.Generator().manual_seed(1), dtype=value.dtype)
        values = []
        for sign in (1, -1):
            moved = {**free, name: value.detach() + sign * 1e-6 * step}
            values.append(loss.value(images, moved))
        assert float((value.grad * step).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_what_came_before_a_device_was_full_is_not_counted_twice(monkeypatch):
    network, images = Network(small_resnet()), random_images(8)
    names = ["layer1.conv1.weight", "layer2.conv2.weight"]
    start = {name: 0.7 * network.module.get_parameter(name).detach() for name in names}
    gradients, squares, calls = [], JointLoss._squares, []
    loss = JointLoss(network, images, start)
    for fail in (False, True):
        state = {name: nn.Parameter(value.clone()) for name, value in start.items()}

        def full_once(self, x, free, fail=fail):
            calls.append(len(x))
            if fail and len(calls) == 2:  # when the first piece has left its gradient
                raise torch.OutOfMemoryError("CUDA out of memory")
            return squares(self, x, free)

        loss.piece = 4
        calls.clear()
        monkeypatch.setattr(JointLoss, "_squares", full_once)
        loss.backward(images, state)
        gradients.append({name: value.grad for name, value in state.items()})
    assert calls == [4, 4, 2, 2, 2, 2]
    assert all(relative(gradients[1][name], gradients[0][name]) < 1e-12 for name in names)


def test_pieces_are_as_large_as_the_bytes_of_a_batch_allow(monkeypatch):
    network, images = Network(small_resnet()), random_images(9)
    state = {name: value.detach() for name, value in network.module.named_parameters()}
    sizes = {}
    for bytes_ in (1.0, 1e5, 2e5, 4e5, 1e12):
        monkeypatch.setattr(joint, "batch_bytes", lambda device, bytes_=bytes_: bytes_)
        sizes[bytes_] = JointLoss(network, images, state).piece
    assert sizes[1.0] == 1 and sizes[1e12] > 1000
    assert sizes[4e5] == pytest.approx(2 * sizes[2e5], abs=1) and sizes[2e5] > sizes[1e5] > 1


class Branches(nn.Module):
    """Additions of constants and of positions beside the one residual addition; a ReLU read twice behind another."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x):
        x = self.a(x) + self.shift
        x = x + 1.0
        y = torch.relu(x + self.b(x))
        return self.head(y.mean((2, 3)))


def test_the_residual_stream_is_where_two_values_of_the_image_are_added():
    network = Network(awake(Branches()))
    taps = joint_taps(network)
    assert [tap.name for tap in taps] == ["relu", "head"]


def test_activations_are_compared_where_nothing_is_added():
    parts = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(64, 3)
    network = Network(awake(nn.Sequential(*parts)))
    assert [tap.name for tap in joint_taps(network)] == ["_1", "_3", "_5"]


def batches_of(**options):
    """The batches that refinement draws, as its augmentation sees them."""
    seen = []

    def note(images, generator):
        seen.append(images.clone())
        return images

    images = random_images(10)
    refined(images, augment=note, **options)
    number = {image.flatten()[0].item(): i for i, image in enumerate(images)}
    return [[number[one.flatten()[0].item()] for one in batch] for batch in seen]


def test_batches_are_drawn_anew_in_every_step_from_all_images_by_the_seed():
    one, again, other = batches_of(steps=12, seed=1), batches_of(steps=12, seed=1), batches_of(steps=12, seed=2)
    assert one == again != other
    assert len(one) == 12 and all(len(set(batch)) == len(batch) == 4 for batch in one), "four different images a step"
    assert set(chain.from_iterable(one)) == set(range(10)) and len({tuple(sorted(batch)) for batch in one}) > 6
    assert [len(batch) for batch in batches_of(steps=2, batch_size=64)] == [10, 10]


def test_another_seed_ends_at_other_weights():
    images = random_images(12)
    states = [refined(images, seed=seed)[0].state for seed in (0, 1)]
    assert any(not torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_kept_weights_biases_and_norms_move_and_nothing_else():
    done, twin, masks = refined(random_images(12), steps=8)
    batch_norms = [name for name, part in twin.named_modules() if isinstance(part, nn.BatchNorm2d)]
    norms = {f"{name}.{part}" for name in batch_norms for part in ("weight", "bias")}
    assert set(done.state) == norms | {"fc.bias"} | {f"{name}.weight" for name in masks}
    for name, value in done.state.items():
        assert not torch.equal(value, twin.get_parameter(name)), name
    for name, mask in masks.items():
        weight = done.state[f"{name}.weight"]
        moved = weight != twin.get_parameter(f"{name}.weight")
        assert (weight[~mask] == 0).all() and moved[mask].double().mean() > 0.8, "those that no image reaches stay"
    assert done.steps == 8 and done.loss[1] < done.loss[0]


def test_the_losses_told_are_those_of_the_networks_before_and_after():
    images = random_images(12)
    done, twin, _ = refined(images, steps=8)
    assert done.loss[0] == pytest.approx(loss_by_hooks(small_resnet(), twin, images, images), rel=1e-9)
    with torch.no_grad():
        for name, value in done.state.items():
            twin.get_parameter(name).copy_(value)
    assert done.loss[1] == pytest.approx(loss_by_hooks(small_resnet(), twin, images, images), rel=1e-9)


@pytest.mark.parametrize("steps", [4, 5, 20, 50])
def test_the_rate_rises_first_and_falls_to_nothing(monkeypatch, steps):
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self, *args: rates.append(self.param_groups[0]["lr"]) or step(self, *args)
    )
    refined(random_images(6), steps=steps, rate=2e-3, solver="adam")
    top = rates.index(max(rates))
    assert len(rates) == steps and rates[-1] < 1e-4 * max(rates)
    assert 0 < top <= max(1, 0.1 * steps) and rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_no_steps_change_nothing():
    images = random_images(6)
    done, twin, _ = refined(images, steps=0)
    assert done.steps == 0 and done.loss[0] == done.loss[1] > 0
    assert all(torch.equal(value, twin.get_parameter(name)) for name, value in done.state.items())


def test_the_manifest_says_what_refinement_did():
    result = snows.prune(small_resnet(), random_images(12), 0.7, k=1, refine=5, progress=False, effort="quick")
    record = result.manifest["refinement"]
    assert record["steps"] == 5 and record["interrupted"] is False and record["augment"] is None
    assert "failed" not in record and record["loss"][1] <= record["loss"][0]


def test_mirroring_and_shifting_are_what_they_say():
    # Every image comes out as one of 2 * (2s + 1)^2 views of itself; over many images all kinds of them appear.
    images, shift = torch.rand(200, 2, 5, 7, generator=torch.Generator().manual_seed(0)), 1
    moved = snows.flip_and_shift(images, torch.Generator().manual_seed(0), shift=shift)
    kinds = []
    for image, got in zip(images, moved, strict=True):
        views = {}
        for mirrored in (False, True):
            base = image.flip(-1) if mirrored else image
            for down in (-1, 0, 1):
                rows = (torch.arange(5) + down).clamp(0, 4)
                for right in (-1, 0, 1):
                    columns = (torch.arange(7) + right).clamp(0, 6)
                    views[mirrored, down, right] = base[:, rows][:, :, columns]
        kinds.append([key for key, view in views.items() if torch.equal(view, got)])
    assert all(len(found) == 1 for found in kinds)
    found = [key for (key,) in kinds]
    assert len(set(found)) == 18 and 70 < sum(mirrored for mirrored, _, _ in found) < 130
    default = snows.flip_and_shift(torch.rand(300, 1, 9, 9), torch.Generator().manual_seed(0))
    assert default.shape == (300, 1, 9, 9)


def test_by_default_a_step_takes_sixty_four_images_and_moves_them_by_up_to_four_pixels():
    sizes = []
    options = module.JointOptions(1, progress=False, augment=lambda x, _: sizes.append(len(x)) or x)
    dense, twin, masks = pruned_by_hand()
    weight_names = {name: f"{name}.weight" for name in masks}
    module.refine(module.Pair(Network(dense), twin, masks, weight_names), random_images(80, 4), options)
    assert sizes == [64] and options.seed == 0
    images = torch.rand(20, 1, 9, 9)
    default, four = (snows.flip_and_shift(images, torch.Generator().manual_seed(3), *how) for how in ((), (4,)))
    assert torch.equal(default, four)


@pytest.mark.parametrize("progress", [True, False])
def test_an_interrupt_is_said_where_progress_is_shown(monkeypatch, capsys, progress):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(joint.JointLoss, "backward", interrupted)
    done, twin, _ = refined(random_images(6), progress=progress)
    assert done.steps == 0 and ("refinement ends here" in capsys.readouterr().err) == progress
    assert all(torch.equal(value, twin.get_parameter(name)) for name, value in done.state.items())


def test_every_parameter_moves_at_first_by_the_same_share_of_its_size(monkeypatch):
    """Adam's first step is as long as its rate in every number that has a gradient."""
    states: dict[str, dict[str, torch.Tensor]] = {}
    _, _, masks = pruned_by_hand()

    class First(AdamSteps):
        def step(self, number):
            super().step(number)
            states.setdefault("start", self.problem.start)
            states.setdefault("first", {name: value.clone() for name, value in self.state.items()})

    monkeypatch.setitem(module.SOLVERS, "adam", First)
    refined(random_images(6), steps=4, rate=1e-2, solver="adam")
    start, moved = states["start"], states["first"]
    shares = {}
    for name, value in start.items():
        mask = masks.get(name.removesuffix(".weight"), torch.ones_like(value, dtype=torch.bool))
        if name in {f"{layer}.weight" for layer in masks}:
            assert (moved[name][~mask] == 0).all()
        size = max(float(value[mask].square().mean().sqrt()), 1e-2)
        shares[name] = float((moved[name] - value)[mask].abs().max()) / size
    assert len(shares) > 6 and max(shares.values()) == pytest.approx(min(shares.values()), rel=1e-3)
    assert max(shares.values()) == pytest.approx(1e-2 / 25, rel=1e-3)  # one-cycle starts at a 25th of the rate


def test_a_parameter_that_begins_at_nothing_has_a_size_all_the_same():
    values = {"a": torch.tensor([3.0, 4.0, 0.0]), "b": torch.zeros(2), "c": torch.full((2,), 1e-3), "d": torch.ones(2)}
    kept = {"a": torch.tensor([True, True, False]), "d": torch.zeros(2, dtype=torch.bool)}
    found = sizes(SimpleNamespace(start=values, kept=kept))
    assert found == pytest.approx({"a": (25 / 2) ** 0.5, "b": 1e-2, "c": 1e-2, "d": 1e-2})
