"""sweep/measured_allocation.py: what is measured, how candidates are judged, what is recorded and taken over."""

import json

import pytest
import torch
from spies import noted, stop_after
from toys import RESNET_INNER, Wrapped, awake, random_images, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks.allocation import allocate, allocate_by_losses, halfway, sizes_of
from snows_core.masks.patterns import PerLayer, Unstructured
from snows_core.sweep import measured_allocation

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
IMAGES = random_images(24)
OPTIONS = {"k": 2, "progress": False, "effort": "quick", "batch_size": 24}


def run(model=None, pattern=0.8, **options):
    return snows.prune(model or small_resnet(), IMAGES, pattern, **{"allocation": "measured", **OPTIONS, **options})


@pytest.fixture(scope="module")
def spied():
    """A run, with what was measured and the images of it."""
    with pytest.MonkeyPatch.context() as patch:
        losses = []
        original = measured_allocation._losses
        patch.setattr(measured_allocation, "_losses", lambda *a: losses.append((a, original(*a))) or losses[-1][1])
        result = run()
    (_, fitted, pattern, _), found = losses[0]
    return result, fitted, pattern, found


def test_the_loss_of_a_layer_is_that_of_pruning_it_alone(spied):
    _, fitted, pattern, losses = spied
    assert list(losses) == RESNET_INNER and all(len(of_layer) >= 7 for of_layer in losses.values())
    for name in ("layer1.conv2", "layer2.conv1"):
        size = small_resnet().get_parameter(f"{name}.weight").numel()
        assert min(losses[name]) == round(size * (1 - pattern.cap)), "the sparsest is at the cap"
        kept = sorted(losses[name])[3]
        alone = snows.prune(
            small_resnet(), fitted, 1 - kept / size, layers=[name], update="layerwise", seed=0, **OPTIONS
        )
        row = alone.report.set_index("layer").loc[name]
        assert row["kept"] == kept and losses[name][kept] == pytest.approx(row["loss_end"], rel=1e-6)


def test_the_candidates_and_the_one_of_least_kl(spied):
    """Each one's figure is that of a sweep of least squares, on images that it was not fitted to."""
    result, fitted, pattern, losses = spied
    record = result.manifest["allocation"]
    dense = small_resnet()
    weights = {name: dense.get_parameter(f"{name}.weight").detach() for name in RESNET_INNER}
    expected = {name: allocate(weights, pattern, name) for name in ("uniform", "erk", "lamp", "global")}
    sizes = sizes_of(weights)
    for power in (1, 2):
        expected[f"loss^{power}"] = allocate_by_losses(losses, sizes, pattern, power)
    for name in ("uniform", "erk"):
        expected[f"loss^2, {name}"] = halfway(expected["loss^2"], expected[name], sizes, pattern)
    assert record["candidates"].keys() == expected.keys() and record["judged_by"] == "KL"
    order = result.manifest["calibration"]["order"]
    judges = IMAGES[order[-6:]]
    assert torch.equal(fitted, IMAGES[order[:18]])
    assert record["images"] == {"measured": 18, "tried": 18, "judged": 6} and not record["finalists"]
    for name in ("erk", "loss^1"):
        fit = {**OPTIONS, "k": 0}
        alone = snows.prune(dense, fitted, dict(expected[name].sparsities), **fit)
        kl = snows.evaluate(alone.model, judges, reference=dense).kl
        assert record["candidates"][name] == pytest.approx(kl, rel=1e-4)
    assert record["chosen"] == min(record["candidates"], key=record["candidates"].get)
    assert record["sparsities"] == expected[record["chosen"]].sparsities
    total = sum(weight.numel() for weight in weights.values())
    assert sum(int((~mask).sum()) for mask in result.masks.values()) == round(0.8 * total)
    assert min(float(mask.float().mean()) for mask in result.masks.values()) >= 0.05
    json.dumps(result.manifest)


def test_resuming_takes_the_sparsities_over(monkeypatch, tmp_path):
    monkeypatch.setattr(measured_allocation, "POINTS", 2)
    monkeypatch.setattr(measured_allocation, "MIXED", ())
    options = {"stages": 2, "layers": ["layer1.*", "layer2.conv1"]}
    whole = run(**options)
    with monkeypatch.context() as patch:
        solved = stop_after(patch, 10_000)
        run(**options)
        before = len(solved) - 6  # layers solved for the candidates
    with monkeypatch.context() as patch:
        calls = noted(patch, "snows_core.prune", "measured")
        stop_after(patch, before + 4)
        partial = run(**options)
        assert len(calls) == 1 and partial.stage == 2 and len(partial.solved) == 1
        loaded = snows.load(partial.save(tmp_path / "partial"), small_resnet())
    with monkeypatch.context() as patch:
        calls = noted(patch, "snows_core.prune", "measured")
        resumed = run(**options, resume=loaded)
        assert not calls
    assert resumed.manifest["allocation"] == whole.manifest["allocation"]
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.weight_names.values())
    loaded.manifest["allocation"]["sparsities"].popitem()
    with pytest.raises(SnowsError, match="resume: got a result whose allocation has other layers"):
        run(**options, resume=loaded)


def test_ctrl_c_while_measuring_ends_the_run(monkeypatch):
    for count in (0, 2):
        with monkeypatch.context() as patch:
            stop_after(patch, count)  # the sweeps that judge
            with pytest.raises(KeyboardInterrupt):
                run()


def test_outputs_that_are_no_logits_are_judged_by_the_joint_loss():
    model = awake(Wrapped(small_resnet(), lambda y: {"first": y, "second": 2 * y}))
    record = run(model).manifest["allocation"]
    assert record["judged_by"] == "joint loss" and all(value > 0 for value in record["candidates"].values())


def test_a_vit_and_another_k():
    model = small_vit()
    images = random_images(24, size=4)
    result = snows.prune(model, images, 0.6, allocation="measured", **{**OPTIONS, "k": 0})
    assert result.sparsity == pytest.approx(0.6, abs=1e-3) and result.complete


@pytest.mark.parametrize("stages", [1, 2])
def test_a_saliency_that_looks_at_images(stages, monkeypatch):
    monkeypatch.setattr(measured_allocation, "POINTS", 2)
    options = {"stages": stages, "layers": ["layer1.*"]}
    plain, result = run(**options), run(**options, saliency="obs")
    assert result.manifest["allocation"] == plain.manifest["allocation"], "magnitudes stand in while comparing"
    assert {name: int(m.sum()) for name, m in result.masks.items()} == {n: int(m.sum()) for n, m in plain.masks.items()}
    assert any(not torch.equal(result.masks[name], mask) for name, mask in plain.masks.items())


def test_an_estimate_knows_it():
    table = snows.estimate(small_resnet(), IMAGES, 0.8, allocation="measured", **OPTIONS)
    assert table["layer"].tolist() == [*RESNET_INNER, "(allocation)"]


def test_a_cap_that_is_given_counts():
    found = measured_allocation._with_cap(Unstructured(0.8, "global", 0.85))
    assert found.cap == 0.85 and measured_allocation._with_cap(Unstructured(0.8)).cap == pytest.approx(0.95)
    assert isinstance(allocate({"a": torch.ones(10)}, found, "uniform"), PerLayer)
