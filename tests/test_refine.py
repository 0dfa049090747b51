"""Joint refinement: zeros stay, the loss never ends higher, everything is reproducible."""

import pytest
import torch
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.graph import Network
from snows_core.operations import is_addition
from snows_core.refine import flip_and_shift, joint_taps


def run(make=small_resnet, size=8, **options):
    options = {"pattern": 0.7, "k": 1, "progress": False, **options}
    return snows.prune(make(), random_images(40, size), **options)


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
    from snows_core import refine as module

    plain = run()
    ordinary = torch.optim.Adam
    monkeypatch.setattr(module.torch.optim, "Adam", lambda parameters, lr: ordinary(parameters, lr=1e4))
    monkeypatch.setattr(
        module.torch.optim.lr_scheduler, "OneCycleLR", lambda *_, **__: type("S", (), {"step": lambda self: None})()
    )
    refined = run(refine=3)
    before, after = refined.manifest["refinement"]["loss"]
    assert before == after
    assert all(torch.equal(refined.state[key], value) for key, value in plain.state.items())


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


@pytest.mark.parametrize("options, name", [({"refine": -1}, "refine"), ({"refine": 1.5}, "refine"),
                                           ({"augment": "flip"}, "augment")])  # fmt: skip
def test_bad_options_are_refused(options, name):
    with pytest.raises(SnowsError, match=f"{name}: got .*; expected "):
        run(**options)
