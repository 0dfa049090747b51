"""fallback.py: where numbers overflow in a solve, the best that can still be computed stays, and the report says so."""

import importlib

import pytest
import torch
from toys import random_images, same, small_resnet

import snows_core as snows
from snows_core.errors import OverflowedError
from snows_core.methods import METHODS, fallback

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
LAYER = "layer2.conv1"
OPTIONS = {"k": 2, "progress": False, "effort": "quick"}


def spoil(monkeypatch, name, how):
    """Let a method's solve of one layer end in numbers that are none, or in an error that says so."""
    method = METHODS[name]
    solve = method.solve

    def spoiled(self, problem):
        done = solve(self, problem)
        return how(done) if problem.name == LAYER else done

    monkeypatch.setattr(method, "solve", spoiled)


def nan(done):
    weight = done.weight.clone()
    weight.view(-1)[3] = torch.nan
    return fallback.LayerSolution(weight, done.mask, done.statistics)


def infinite_loss(done):
    statistics = fallback.replace(done.statistics, loss_end=torch.inf)
    return fallback.LayerSolution(done.weight, done.mask, statistics)


def raises(kind):
    def fails(done):
        raise kind("singular")

    return fails


@pytest.mark.parametrize("name", ["snows", "layerwise", "sparsegpt", "obc", "wanda"])
@pytest.mark.parametrize("how", [nan, infinite_loss, raises(OverflowedError), raises(fallback.LinAlgError)])
def test_a_solve_that_overflows_leaves_least_squares_and_the_run_goes_on(monkeypatch, name, how):
    chosen = {"mask": name} if METHODS[name].chooses_masks else {"update": name}
    chosen |= {"update": name if METHODS[name].updates_weights else "layerwise"}
    if name == "wanda":
        chosen = {"mask": "wanda", "update": "layerwise"}
    spoil(monkeypatch, "layerwise" if name == "wanda" else name, how)
    with pytest.warns(UserWarning, match=rf"layer '{LAYER}': numbers overflowed .* least-squares weights stay"):
        result = snows.prune(small_resnet(), random_images(12), "2:4", **chosen, **OPTIONS)
    row = result.report.set_index("layer").loc[LAYER]
    assert row["stop"] == fallback.LEAST_SQUARES and row["status"] == "pruned" and row["loss_end"] < row["loss_masked"]
    weight, mask = result.state[f"{LAYER}.weight"], result.masks[LAYER]
    assert torch.isfinite(weight).all() and (weight[~mask] == 0).all() and mask.float().mean() == 0.5
    assert result.complete and (result.report["stop"] == fallback.LEAST_SQUARES).sum() == 1


def test_where_least_squares_overflows_too_the_masked_weights_stay(monkeypatch):
    model = small_resnet()
    spoil(monkeypatch, "snows", nan)
    monkeypatch.setattr(fallback, "least_squares", lambda problem, *_, **__: (None, problem.weight * torch.nan))
    with pytest.warns(UserWarning, match="masked dense weights stay"):
        result = snows.prune(model, random_images(12), "2:4", **OPTIONS)
    row = result.report.set_index("layer").loc[LAYER]
    assert row["stop"] == fallback.MASKED and row["loss_end"] == row["loss_masked"] == row["loss_start"]
    assert torch.equal(result.state[f"{LAYER}.weight"], model.layer2.conv1.weight * result.masks[LAYER])


def test_a_mask_that_cannot_be_chosen_is_that_of_magnitude(monkeypatch):
    plain = snows.prune(small_resnet(), random_images(12), "2:4", **OPTIONS)
    method = METHODS["sparsegpt"]
    choose = method.choose

    def fails(self, problem):
        if problem.name == LAYER:
            raise OverflowedError("overflowed")
        return choose(self, problem)

    monkeypatch.setattr(method, "choose", fails)
    with pytest.warns(UserWarning, match=f"layer '{LAYER}': numbers overflowed where its mask was chosen"):
        result = snows.prune(small_resnet(), random_images(12), "2:4", mask="sparsegpt", **OPTIONS)
    assert torch.equal(result.masks[LAYER], plain.masks[LAYER])
    assert not same(result.masks, plain.masks) and result.complete


def test_inputs_whose_gram_matrix_overflows_end_no_run(monkeypatch):
    """A real overflow: what a layer reads is so large that squares have no finite value."""
    choosing = importlib.import_module("snows_core.methods.choosing")
    damped_gram = choosing.damped_gram

    def overflowing(gram, ridge):
        return damped_gram(gram * (torch.inf if gram.shape[-1] == 36 and gram.shape[0] == 1 else 1.0), ridge)

    monkeypatch.setattr(choosing, "damped_gram", overflowing)
    with pytest.warns(UserWarning, match="numbers overflowed"):
        result = snows.prune(small_resnet(), random_images(12), "2:4", mask="obs", update="obs", **OPTIONS)
    assert result.complete and all(torch.isfinite(value).all() for value in result.state.values())
