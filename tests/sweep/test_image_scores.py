"""sweep/image_scores.py: saliencies that look at images, against removal and re-fit by hand; in stages and alone."""

import importlib

import pytest
import torch
from spies import stop_after
from toys import Wrapped, dense_matrix, layer_named, make_problem, random_images, random_mask, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks.saliency import IMAGE_SALIENCIES
from snows_core.network.graph import Network
from snows_core.settings import settings_of
from snows_core.sweep.image_scores import ImageScores
from snows_core.sweep.select import select_layers

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
IMAGES = random_images(24)
CHOSEN = ["layer1.conv1", "layer1.conv2", "layer2.conv1"]


def run(model=None, pattern="1:4", stages=2, **options):
    options = {"k": 2, "progress": False, "refine": 0, "batch_size": 8, **options}
    return snows.prune(model or small_resnet(), IMAGES, pattern, stages=stages, **options)


def scores_of(saliency, model=None, images=IMAGES, k=0, **options):
    model = model or small_resnet()
    network = Network(model, example=images[:2])
    settings = settings_of(snows.prune, saliency=saliency, k=k, progress=False, batch_size=8, **options)
    layers = select_layers(network, model, images[:2], settings.layers, settings.exclude).prunable
    return ImageScores(network, layers, images, settings)


def fitted(problem, mask):
    """The least-squares weight on a mask, by the dense matrix of the loss, and the loss there."""
    zero = torch.zeros_like(problem.weight)
    at = problem.objective.linearise(zero)
    step = torch.linalg.solve(dense_matrix(at.product, mask), at.gradient[mask])
    weight = zero.masked_scatter(mask, -step)
    return weight, problem.objective.value(weight)


def test_obs_is_what_removal_and_refit_lose_and_a_return_gains():
    """At K = 0, on inputs that a pruned layer before left; half the loss's second derivative is the loss itself."""
    model = small_resnet()
    before = model.layer1.conv1.weight.detach()
    before = torch.where(random_mask(before.shape), before, 0.0)
    damaged = {"layer1.conv1.weight": before}
    problem = make_problem(model, IMAGES, "layer1.conv2", 0, damaged=damaged, normalise=True)
    mask = random_mask(problem.weight.shape, seed=5)
    weight, loss = fitted(problem, mask)
    scores = scores_of("obs", model, ridge=1e-9).at({"layer1.conv1": before, "layer1.conv2": weight})["layer1.conv2"]
    for index in range(0, mask.numel(), 13):
        other = mask.flatten().clone()
        other[index] = ~other[index]
        _, changed = fitted(problem, other.view_as(mask))
        assert float(scores.flatten()[index]) == pytest.approx(2 * abs(changed - loss), rel=1e-4), index


@pytest.mark.parametrize("masked", [False, True])
def test_obs_weighs_rows_by_their_curvature_in_the_k_step_loss(masked):
    weights = {}
    if masked:
        dense = small_resnet().layer1.conv2.weight.detach()
        weights = {"layer1.conv2": torch.where(random_mask(dense.shape), dense, 0.0)}
    near, far = (scores_of("obs", k=k).at(weights)["layer1.conv2"].flatten(1) for k in (0, 3))
    ratio = far / near
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-6, atol=0)
    assert float(ratio.max() / ratio.min()) > 1.05


def test_curvature_is_the_loss_of_a_removal_without_refit():
    """The loss is quadratic in one weight about the dense network at K = 0: taking it away costs w^2 H / 2."""
    model = small_resnet()
    problem = make_problem(model, IMAGES, "layer1.conv2", 0, normalise=True)
    at = lambda seed: scores_of("curvature", model, seed=seed, layers=["layer1.conv2"]).at({})  # noqa: E731
    runs = [at(seed)["layer1.conv2"] for seed in range(25)]
    some = range(0, problem.weight.numel(), 5)
    mean, wanted = torch.stack(runs).mean(0).flatten()[some], []
    for index in some:
        without = problem.weight.clone()
        without.view(-1)[index] = 0.0
        wanted.append(2 * problem.objective.value(without))
    wanted = torch.tensor(wanted, dtype=torch.float64)
    assert float((mean - wanted).norm() / wanted.norm()) < 0.1


@pytest.mark.parametrize("name", [name for name, terms in IMAGE_SALIENCIES.items() if len(terms) > 1])
def test_a_mixture_adds_terms_of_mean_one(name):
    mixed = scores_of(name, k=1).at({})
    parts = [scores_of(term, k=1).at({}) for term in IMAGE_SALIENCIES[name]]
    flat = [torch.cat([scores.flatten() for scores in part.values()]) for part in parts]
    for layer, scores in mixed.items():
        wanted = sum(part[layer] / all_.mean() for part, all_ in zip(parts, flat, strict=True))
        torch.testing.assert_close(scores, wanted, rtol=1e-9, atol=1e-12)
    assert float(torch.cat([scores.flatten() for scores in mixed.values()]).mean()) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "saliency, pattern",
    [
        ("curvature", "2:4"),
        ("fisher", "0.6"),
        ("obs", "global:0.6:0.7"),
        ("obs+fisher", "2:4"),
        ("curvature+fisher", "global:0.6:0.7"),
    ],
)
def test_every_saliency_meets_every_kind_of_pattern(saliency, pattern):
    result = run(pattern=pattern, stages=1, saliency=saliency, k=0, layers=CHOSEN)
    assert result.sparsity == pytest.approx(0.5 if pattern == "2:4" else 0.6, abs=0.005)
    assert result.manifest["saliency"] == saliency
    for name, key in result.weight_names.items():
        assert torch.equal(result.state[key] != 0, result.masks[name])
    assert any(
        not torch.equal(result.masks[name], mask)
        for name, mask in run(pattern=pattern, stages=1, k=0, layers=CHOSEN).masks.items()
    )


@pytest.mark.parametrize("recipe", ["paper", "fast"])
def test_transformers_and_both_recipes(recipe):
    images = random_images(8, 4)
    result = snows.prune(
        small_vit(),
        images,
        "0.5",
        recipe=recipe,
        saliency="obs+fisher",
        k=1,
        effort="quick",
        progress=False,
        steps=1,
        cg_iterations=2,
    )
    assert result.complete and result.sparsity == pytest.approx(0.5, abs=0.01)


def test_stages_with_obs_let_a_weight_come_back(monkeypatch):
    from snows_core.sweep import stages

    made, original = [], stages.stage_masks
    monkeypatch.setattr(stages, "stage_masks", lambda *args: made.append(original(*args)) or made[-1])
    result = run(pattern="0.55", stages=["0.5", "0.55"], saliency="obs")
    first, last = made
    back = {name: mask & ~first[name] for name, mask in last.items()}
    assert sum(int(mask.sum()) for mask in back.values()) > 0
    for name, mask in back.items():
        assert (result.state[result.weight_names[name]][mask] != 0).all()
    made.clear()
    run(pattern="0.55", stages=["0.5", "0.55"], saliency="curvature")
    assert all(not (mask & ~made[0][name]).any() for name, mask in made[1].items())


def test_what_is_zero_in_the_dense_network_stays_zero():
    model = small_resnet()
    with torch.no_grad():
        model.layer1.conv2.weight[:, :2] = 0.0
    weight = torch.where(random_mask((4, 4, 3, 3)), model.layer1.conv2.weight.detach(), 0.0)
    scores = scores_of("obs", model).at({"layer1.conv2": weight})["layer1.conv2"]
    assert (scores[:, :2] == -1).all() and (scores[:, 2:] > 0).all()
    result = run(model, pattern="0.6", saliency="obs", layers=CHOSEN)
    assert not result.masks["layer1.conv2"][:, :2].any()
    assert result.masks["layer1.conv2"].float().mean() == pytest.approx(0.4, abs=0.01)


def test_make_masks_makes_those_of_one_sweep():
    masks = snows.make_masks(small_resnet(), IMAGES, "2:4", saliency="obs", k=2, batch_size=8, progress=False)
    result = run(pattern="2:4", stages=1, saliency="obs")
    assert masks.keys() == result.masks.keys()
    assert all(torch.equal(mask, result.masks[name]) for name, mask in masks.items())


@pytest.mark.parametrize("stages, count", [(1, 1), (2, 2), (2, 3), (2, 4)])
def test_resuming_ends_where_an_uninterrupted_run_ends(monkeypatch, tmp_path, stages, count):
    chosen = {"layers": CHOSEN, "pattern": "2:4", "stages": stages, "saliency": "obs"}
    whole = run(**chosen)
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        partial = run(**chosen)
    assert not partial.complete
    partial = snows.load(partial.save(tmp_path / "partial"), small_resnet())
    resumed = run(**chosen, resume=partial)
    for name, key in whole.weight_names.items():
        assert torch.equal(whole.state[key], resumed.state[key]) and torch.equal(whole.masks[name], resumed.masks[name])
    with pytest.raises(SnowsError, match="resume: got a result with another saliency"):
        run(**chosen | {"saliency": "curvature"}, resume=partial)


def test_ctrl_c_while_a_later_stage_is_scored_keeps_the_stage_before(monkeypatch):
    from snows_core.methods.scoring import Scoring

    seen, original = [], Scoring.solve

    def interrupted(method, problem):
        seen.append(problem.name)
        if len(seen) == len(CHOSEN) + 2:
            raise KeyboardInterrupt
        return original(method, problem)

    chosen = {"layers": CHOSEN, "saliency": "obs"}
    with monkeypatch.context() as patch:
        patch.setattr(Scoring, "solve", interrupted)
        partial = run(**chosen)
    assert not partial.complete and partial.stage == 2 and not partial.solved and len(partial.masks) == 3
    assert set(partial.report.query("status == 'not reached'")["stage"]) == {1}  # where their weights are from
    whole, resumed = run(**chosen), run(**chosen, resume=partial)
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.weight_names.values())


def test_estimate_charges_the_scores(monkeypatch):
    for module in ("snows_core.sweep.sweep_cost", "snows_core.sweep.memory"):
        monkeypatch.setattr(importlib.import_module(module), "shortest", lambda function, repeats, device: 1.0)
    model, options = small_resnet(), {"k": 1, "effort": "quick", "layers": CHOSEN, "progress": False}
    plain = snows.estimate(model, IMAGES, "2:4", **options)
    scored = snows.estimate(model, IMAGES, "2:4", saliency="obs", **options)
    assert scored["layer"].tolist() == CHOSEN and (scored["products"] == plain["products"]).all()
    assert (scored["seconds"] > plain["seconds"] + 1).all()


def test_names_and_networks_that_cannot_work_are_refused():
    with pytest.raises(SnowsError, match=r"saliency: got 'obs\+fischer'; expected one of .*Nearest: obs\+fisher"):
        run(saliency="obs+fischer")
    with pytest.raises(SnowsError, match=r"^saliency 'fisher': got an output of type tuple"):
        run(Wrapped(small_resnet(), lambda y: (y, y)).eval(), saliency="fisher")
    with pytest.raises(SnowsError, match=r"saliency: got 'obs' without images; .*make_masks"):
        snows.masks.make_scores({"a": torch.ones(2, 2)}, "obs")


def test_given_masks_and_methods_that_choose_them_are_not_scored(monkeypatch):
    monkeypatch.setattr(ImageScores, "at", None)
    masks = snows.make_masks(small_resnet(), IMAGES, "2:4")
    given = run(stages=1, masks=masks)
    assert all(torch.equal(mask, masks[name]) for name, mask in given.masks.items())
    assert run(stages=1, mask="wanda", layers=CHOSEN).complete
    for made_otherwise in ({"masks": masks}, {"mask": "wanda"}):
        with pytest.raises(SnowsError, match=r"saliency: got 'obs' with mask"):
            run(stages=1, saliency="obs", **made_otherwise)


def test_a_later_stage_measures_no_layer_again(monkeypatch):
    found = scores_of("obs", k=1)
    found.at({})
    weights = {"layer1.conv1": layer_weight(found) * 0.5}
    again = found.at(weights)
    fresh = scores_of("obs", k=1).at(weights)
    assert all(torch.equal(scores, fresh[name]) for name, scores in again.items())


def layer_weight(found):
    return found.network.weight(layer_named(found.network, "layer1.conv1"))
