"""Joint refinement: zeros stay, the loss never ends higher, everything is reproducible."""

import importlib

import pytest
import timm
import torch
from torch import nn
from toys import awake, random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.loss import joint
from snows_core.loss.joint import joint_taps
from snows_core.network.graph import Network
from snows_core.network.operations import is_addition
from snows_core.sweep.augment import flip_and_shift

module = importlib.import_module("snows_core.sweep.refine")  # the package shows the function under that name


def run(make=small_resnet, size=8, **options):
    options = {"pattern": 0.7, "k": 1, "progress": False, **options}
    return snows.prune(make(), random_images(40, size), **options, effort="quick")


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4)])
def test_zeros_stay_and_the_loss_falls(make, size):
    plain, refined = run(make, size), run(make, size, refine=30)
    before, after = refined.manifest["refinement"]["loss"]
    assert after < 0.95 * before
    changed = 0
    for name, mask in refined.masks.items():
        weight = refined.state[refined.weight_names[name]]
        assert (weight[~mask] == 0).all()
        changed += int((weight != plain.state[plain.weight_names[name]]).sum())
    assert changed > 0
    model = make()
    model.load_state_dict(refined.state)
    x = random_images(3, size)
    assert torch.equal(model(x), refined.model(x))


def test_a_loss_that_does_not_fall_leaves_the_weights(monkeypatch):
    # A step size that blows up: the parameters of before come back.
    plain = run()
    ordinary = torch.optim.Adam
    monkeypatch.setattr(module.torch.optim, "Adam", lambda parameters, lr: ordinary(parameters, lr=1e4))
    monkeypatch.setattr(
        module.torch.optim.lr_scheduler, "OneCycleLR", lambda *_, **__: type("S", (), {"step": lambda self: None})()
    )
    refined = run(refine=3, refine_solver="adam")
    before, after = refined.manifest["refinement"]["loss"]
    assert before == after
    assert all(torch.equal(refined.state[key], value) for key, value in plain.state.items())


def test_which_images_are_held_back_rests_on_the_seed_of_the_call_alone():
    images = torch.arange(80.0).view(-1, 1, 1, 1)
    drawn = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        torch.manual_seed(state)
        seen, judges = module._held_back(images, module.JointOptions(1, held_back=0.125, seed=seed))
        assert len(judges) == 10 and sorted([*seen.flatten(), *judges.flatten()]) == images.flatten().tolist()
        drawn.append(judges.flatten().tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 19, 20])
def test_any_number_of_steps_has_a_schedule(steps):
    refined = run(refine=steps, layers=["layer1.conv2"])
    before, after = refined.manifest["refinement"]["loss"]
    assert refined.manifest["refinement"]["steps"] == steps and after <= before


def test_an_interrupt_keeps_what_is_better_and_says_so(monkeypatch):
    plain, calls = run(), []
    backward = joint.JointLoss.backward

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 21:
            raise KeyboardInterrupt
        return backward(self, *args)

    monkeypatch.setattr(joint.JointLoss, "backward", interrupted)
    refined = run(refine=40)
    record = refined.manifest["refinement"]
    assert record["steps"] == 20 and record["interrupted"] and refined.complete
    assert record["loss"][1] < record["loss"][0]
    assert any(not torch.equal(refined.state[key], value) for key, value in plain.state.items())
    assert all(torch.equal(refined.state[key], value) for key, value in refined.model.state_dict().items())


@pytest.mark.parametrize("error", [RuntimeError("no derivative of that"), torch.OutOfMemoryError("too large")])
def test_a_failure_keeps_the_weights_of_the_sweep(monkeypatch, error):
    plain = run()

    def fails(*args):
        raise error

    monkeypatch.setattr(joint.JointLoss, "_squares", fails)
    with pytest.warns(UserWarning, match=r"refine: failed \(.*\); the weights are those of the sweep"):
        refined = run(refine=3)
    assert refined.manifest["refinement"]["failed"] == str(error)
    assert all(torch.equal(refined.state[key], value) for key, value in plain.state.items())


def test_a_full_device_halves_the_pieces_and_the_gradient_is_the_same(monkeypatch):
    expected, squares, sizes = run(refine=3), joint.JointLoss._squares, []

    def full(self, x, state):
        sizes.append(len(x))
        if len(x) > 8 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return squares(self, x, state)

    monkeypatch.setattr(joint.JointLoss, "_squares", full)
    refined = run(refine=3)
    assert min(sizes[-4:]) <= 8
    for key, value in expected.state.items():
        assert torch.allclose(refined.state[key], value, rtol=1e-6, atol=1e-9), key


def test_pieces_depend_on_the_network_and_change_nothing(monkeypatch):
    expected = run(refine=3)
    monkeypatch.setattr(joint, "batch_bytes", lambda device: 1.0)  # one image at a time
    refined = run(refine=3)
    for key, value in expected.state.items():
        assert torch.allclose(refined.state[key], value, rtol=1e-6, atol=1e-9), key


def test_biases_and_normalisations_are_free_as_modules_and_as_functions():
    modules = Network(small_resnet())
    free = module._free_names(modules, set())
    assert len(free) == 13 and "fc.bias" in free, "six batch norms, a scale and a shift each, and one bias"
    functions = Network(timm.create_model("efficientnet_lite0", num_classes=3).eval())
    named = [name for name, _ in functions.module.named_parameters() if "bn" in name]
    assert set(module._free_names(functions, set())) == {*named, "classifier.bias"}
    by_function = Network(awake(Functional()))
    assert module._free_names(by_function, set()) == ["conv_bias", "linear_bias"]


class Functional(nn.Module):
    """A convolution and a linear layer by function, one bias by position and one by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Parameter(torch.zeros(4, 3, 1, 1)), nn.Parameter(torch.zeros(2, 4))
        self.conv_bias, self.linear_bias = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(2))

    def forward(self, x):
        x = torch.relu(nn.functional.conv2d(x, self.conv, self.conv_bias)).mean((2, 3))
        return nn.functional.linear(x, self.linear, bias=self.linear_bias)


def test_same_seed_same_result_also_with_augmentation():
    one, other = (run(refine=4, augment=flip_and_shift, seed=3) for _ in range(2))
    assert all(torch.equal(one.state[key], value) for key, value in other.state.items())
    assert one.manifest["refinement"]["augment"] == "flip_and_shift"


def test_taps_are_the_residual_stream_and_the_output():
    network = Network(small_resnet())
    taps = joint_taps(network)
    assert taps[-1] is network.output and len(taps) == 3
    assert all(is_addition(tap.all_input_nodes[0]) for tap in taps[:-1]), "behind the ReLU that follows an addition"
    assert sum(map(is_addition, joint_taps(Network(small_vit())))) >= 4, "a ViT adds twice a block"


def test_flip_and_shift_only_moves_pixels():
    images = torch.arange(2 * 36.0).view(2, 1, 6, 6)
    moved = flip_and_shift(images, torch.Generator().manual_seed(0), shift=2)
    assert moved.shape == images.shape and not torch.equal(moved, images)
    for one, source in zip(moved, images, strict=True):
        assert set(one.flatten().tolist()) <= set(source.flatten().tolist())


@pytest.mark.parametrize(
    "options, name", [({"refine": -1}, "refine"), ({"refine": 1.5}, "refine"), ({"augment": "flip"}, "augment")]
)
def test_bad_options_are_refused(options, name):
    with pytest.raises(SnowsError, match=f"{name}: got .*; expected "):
        run(**options)
