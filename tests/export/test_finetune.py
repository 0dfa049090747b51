"""finetune: masks are held bit for bit, whatever the optimiser does; labels or a teacher; mistakes; Ctrl-C; records."""

import textwrap

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export.tuning import retraining
from snows_core.export.tuning.given import given_result
from snows_core.network.saved_files import Saved

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
QUICK = {"epochs": 2, "batch_size": 8, "progress": False}


def task(count=24, size=8):
    """Return images whose class is their brightest channel."""
    images = random_images(count, size, dtype=torch.float32)
    images[torch.arange(count), torch.arange(count) % 3] += 1.5
    return images, torch.arange(count) % 3


def pruned(make=small_resnet, size=8, pattern="2:4"):
    torch.manual_seed(0)
    dense, images = make().float().eval(), task(size=size)[0]
    return dense, snows.prune(dense, images, pattern=pattern, update="none", effort="quick", progress=False)


def held(result):
    parameters = dict(result.model.named_parameters())
    return all(
        not bool(parameters[result.weight_names[layer]][~mask].count_nonzero()) for layer, mask in result.masks.items()
    )


@pytest.mark.parametrize(("make", "size"), [(small_resnet, 8), (small_vit, 4)])
@pytest.mark.parametrize("taught", [False, True])
def test_masks_stay_bit_for_bit_while_everything_else_learns(make, size, taught):
    dense, result = pruned(make, size)
    images, labels = task(size=size)
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    how = {"teacher": dense} if taught else {"labels": labels}
    tuned = snows.finetune(result, images, **how, lr=0.1, weight_decay=0.1, momentum=0.9, **QUICK)
    assert held(tuned) and tuned.masks.keys() == result.masks.keys()
    assert all(torch.equal(tuned.masks[layer], mask) for layer, mask in result.masks.items())
    assert all(torch.equal(value, before[name]) for name, value in result.model.state_dict().items()), "input changed"
    after = dict(tuned.model.named_parameters())
    assert all(not torch.equal(value, before[name]) for name, value in after.items() if "bias" not in name)
    assert not any(module.training for module in tuned.model.modules())
    assert type(tuned.model) is type(dense) and all(p.grad is None and p.requires_grad for p in after.values())
    assert all(torch.equal(value, tuned.state[name]) for name, value in tuned.model.state_dict().items())


def test_zeros_are_held_after_every_step_and_learning_has_an_effect(monkeypatch):
    _, result = pruned()
    images, labels = task()
    seen, real = [], retraining.set_to_zero

    def spy(parameters):
        real(parameters)
        seen.append(all(not bool(p.detach()[zero].count_nonzero()) for p, zero in parameters))

    monkeypatch.setattr(retraining, "set_to_zero", spy)
    test = (images, labels)
    tuned = snows.finetune(result, images, labels, test=test, lr=0.05, **QUICK | {"epochs": 6})
    record = tuned.manifest["finetune"]
    assert seen == [True] * 18  # six passes over three batches
    assert record["loss"][-1] < 0.7 * record["loss"][0]
    assert record["after"]["accuracy"] > record["before"]["accuracy"]
    assert record["after"] == snows.evaluate(tuned.model, *test).as_dict()


def test_it_is_sgd_on_the_product_of_weight_and_mask():
    _, result = pruned()
    images, labels = task()
    tuned = snows.finetune(result, images, labels, lr=0.1, **QUICK | {"batch_size": 24})
    model = small_resnet().float().train()
    model.load_state_dict(result.state)
    masks = {result.weight_names[layer]: mask for layer, mask in result.masks.items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for rate in (0.1, 0.05):  # half a cosine over two steps
        optimiser.param_groups[0]["lr"] = rate
        weights = {name: p * masks.get(name, torch.ones_like(p)) for name, p in model.named_parameters()}
        loss = F.cross_entropy(torch.func.functional_call(model, weights, images), labels)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # of the free weights alone: others have no gradient
        optimiser.step()
    for name, value in model.named_parameters():  # rounding of single precision, images in another order
        torch.testing.assert_close(tuned.state[name], value.detach(), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_another_others():
    _, result = pruned(small_vit, 4)
    images, labels = task(size=4)
    state = torch.random.get_rng_state()
    first, again, other = (snows.finetune(result, images, labels, seed=seed, **QUICK).state for seed in (3, 3, 4))
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_batch_norm_statistics_are_those_of_the_images_or_stay():
    _, result = pruned()
    images, labels = task()
    anew, stay = (snows.finetune(result, images, labels, batch_norm=how, **QUICK) for how in ("train", "frozen"))
    with torch.no_grad():
        first = anew.model.conv1(images).transpose(0, 1).flatten(1)  # (channels, images and positions)
    torch.testing.assert_close(anew.state["bn1.running_mean"], first.mean(1), rtol=1e-4, atol=1e-5)  # float32
    assert torch.equal(stay.state["bn1.running_mean"], result.state["bn1.running_mean"])
    assert not torch.equal(anew.state["bn1.running_mean"], result.state["bn1.running_mean"])


@pytest.mark.parametrize(("update", "how"), [("snows", "frozen"), ("none", "train"), (None, "train")])
def test_batch_norm_is_frozen_behind_a_re_fit_alone(update, how):
    _, result = pruned()
    result.manifest["update"] = update
    if update is None:
        del result.manifest["update"]  # masks from elsewhere
    images, labels = task()
    tuned, chosen = (snows.finetune(result, images, labels, **more, **QUICK) for more in ({}, {"batch_norm": how}))
    assert tuned.manifest["finetune"]["batch_norm"] == how
    assert all(torch.equal(tuned.state[name], value) for name, value in chosen.state.items())


def test_a_record_is_saved_and_read_again(tmp_path):
    _, result = pruned()
    result.manifest["evaluation"] = {"pruned": {"accuracy": 1.0}}
    images, labels = task()
    loader = torch.utils.data.DataLoader(list(zip(images, labels, strict=True)), batch_size=5)
    tuned = snows.finetune(result, loader, lr=0.02, seed=5, test=loader, **QUICK)
    once = snows.load(tuned.save(tmp_path / "once"), small_resnet().float())
    record = once.manifest["finetune"]
    assert "evaluation" not in once.manifest and "evaluation" in result.manifest
    assert (record["epochs"], record["lr"], record["seed"], record["images"]["count"]) == (2, 0.02, 5, 24)
    assert (record["objective"], record["batch_norm"], record["interrupted"]) == ("labels", "train", False)
    assert f"{record['after']['accuracy']:.2f} % after" in str(once) and "fine-tuned" in str(once)
    assert once.manifest["pattern"] == "2:4" and held(once)
    twice = snows.finetune(once, images, labels, **QUICK)
    assert twice.manifest["finetune"]["earlier"]["seed"] == 5


@pytest.mark.parametrize("masks", ["zeros", "given"])
def test_a_plain_network_keeps_its_zeros_or_given_masks(masks, tmp_path):
    dense, result = pruned()
    images, labels = task()
    model = torch.compile(result.model) if masks == "zeros" else dense
    tuned = snows.finetune(model, images, labels, masks=result.masks if masks == "given" else None, **QUICK)
    assert {layer: mask.tolist() for layer, mask in tuned.masks.items()} == {
        layer: mask.tolist() for layer, mask in result.masks.items()
    }
    assert held(tuned) and tuned.sparsity == result.sparsity and tuned.manifest["pattern"] == "given masks"
    assert set(tuned.report["status"]) == {"pruned", "skipped"}
    assert not Saved(
        {**tuned.manifest, "weight_names": tuned.weight_names}, tuned.state, tuned.masks, tuned.report, {}
    ).fault(whole=True)
    assert snows.load(tuned.save(tmp_path / "out"), small_resnet().float()).complete


def test_a_weight_that_is_zero_by_chance_may_move_where_masks_say_so():
    dense, result = pruned()
    mask = {"layer1.conv1": result.masks["layer1.conv1"]}
    with torch.no_grad():
        dense.layer1.conv1.weight.copy_(result.model.layer1.conv1.weight)
        dense.layer1.conv2.weight.zero_()
    tuned = snows.finetune(dense, *task(), masks=mask, **QUICK)
    assert held(tuned) and tuned.model.layer1.conv2.weight.abs().sum() > 0


def test_half_precision_is_trained_in_single_and_given_back():
    _, result = pruned()
    half = snows.finetune(given_result(result.model.half()), *task(), **QUICK)
    assert {value.dtype for value in half.state.values()} == {torch.float16, torch.int64} and held(half)


def test_features_learn_from_the_dense_networks_by_cosine():
    class Backbone(nn.Module):
        num_classes = 0

        def __init__(self, network):
            super().__init__()
            self.network = network
            self.network.fc = nn.Identity()

        def forward(self, x):
            return self.network(x)

    dense, result = pruned()
    tuned = snows.finetune(Backbone(result.model), task()[0], teacher=Backbone(dense), **QUICK)
    assert tuned.manifest["finetune"]["loss"][1] < tuned.manifest["finetune"]["loss"][0]
    with pytest.raises(SnowsError, match="teacher: got a network that gives features, without a teacher"):
        snows.finetune(Backbone(result.model), *task(), **QUICK)


def test_ctrl_c_keeps_the_epochs_that_are_done(monkeypatch):
    _, result = pruned()
    images, labels = task()
    one = snows.finetune(result, images, labels, **QUICK | {"epochs": 1})
    real, calls = retraining.set_to_zero, []

    def interrupted(parameters, after):
        real(parameters)
        calls.append(1)
        if len(calls) == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(retraining, "set_to_zero", lambda parameters: interrupted(parameters, 5))
    tuned = snows.finetune(result, images, labels, **QUICK | {"epochs": 9})
    record = tuned.manifest["finetune"]
    assert (record["epochs"], record["epochs_asked"], record["interrupted"]) == (1, 9, True) and held(tuned)
    assert not torch.equal(tuned.state["fc.weight"], one.state["fc.weight"])  # the schedule was that of nine
    calls.clear()
    monkeypatch.setattr(retraining, "set_to_zero", lambda parameters: interrupted(parameters, 4))
    earlier = snows.finetune(result, images, labels, **QUICK | {"epochs": 9}).state
    assert all(torch.equal(value, tuned.state[name]) for name, value in earlier.items()), "part of a pass is kept"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        calls.clear()
        patch.setattr(retraining, "set_to_zero", lambda parameters: interrupted(parameters, 2))
        snows.finetune(result, images, labels, **QUICK)


def test_a_loss_that_does_not_stay_finite_is_one_clear_error():
    _, result = pruned()
    with pytest.raises(SnowsError, match=r"lr: got 1e\+30, with which .* became (nan|inf); .* lr=1e\+29"):
        snows.finetune(result, *task(), lr=1e30, **QUICK)
    assert held(result) and all(bool(p.isfinite().all()) for p in result.model.parameters())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epochs": 0}, "epochs: got 0; expected a number of passes >= 1"),
        ({"lr": 0}, "lr: got 0; expected a finite number above 0"),
        ({"batch_norm": "freeze"}, "batch_norm: got 'freeze'; .*frozen"),
        ({"epoch": 3}, "options: got 'epoch'; .* Nearest: epochs"),
        ({"labels": None}, "labels: got None; expected a class index for each image. Pass labels"),
        ({"labels": torch.full((24,), 3)}, r"labels: got 3 \(\d+ such labels\); expected class indices 0 to 2"),
        ({"images": random_images(24, channels=1, dtype=torch.float32)}, "images: got shape"),
        ({"images": random_images(24).byte()}, "images: got dtype torch.uint8"),
        ({"batch_size": 1}, "batch_size: got 1 for 24 images, which makes a batch of one; .* batch norm"),
        ({"masks": {}}, "masks: got masks beside a result"),
        ({"teacher": small_resnet()}, "labels: got labels beside a teacher"),
        ({"model": small_resnet()}, "model: got no zeros; expected a pruned network"),
        ({"model": None}, "model: got NoneType"),
        ({"device": "gpu"}, "device: got 'gpu'"),
        ({"augment": 3}, "augment: got a int"),
    ],
)
def test_mistakes_are_named(change, words):
    images, labels = task()
    call = {"model": pruned()[1], "images": images, "labels": labels} | QUICK | change
    with pytest.raises(SnowsError, match=words):
        snows.finetune(**call)


def five_lines():
    text = snows.finetune.__doc__.split(".. code-block:: python\n\n")[1].split("\n\n")[0]
    return textwrap.dedent(text)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_the_five_lines_keep_zeros_in_anybodys_loop(kind):
    assert len(five_lines().splitlines()) == 5
    _, result = pruned()
    images, labels = task()
    model = result.model.train()
    more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimiser = kind(model.parameters(), lr=0.05, weight_decay=0.1, **more)
    exec(five_lines(), {"model": model, "optimiser": optimiser})
    before = model.layer1.conv1.weight.detach().clone()
    for _ in range(3):
        loss = F.cross_entropy(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        assert held(result)
    assert not torch.equal(before, model.layer1.conv1.weight)
