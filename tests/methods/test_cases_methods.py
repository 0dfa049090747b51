"""Every method on every case of the table: what any layer-wise method owes its caller."""

import pytest
import torch
from cases import CASES

import snows_core as snows
from snows_core.methods import METHODS

pytestmark = pytest.mark.usefixtures("few_images_are_fine")

# What solves a layer, as a caller of ``prune`` asks for it.
CALLS = {
    "least squares": {"k": 0},
    "snows": {"recipe": "fast"},
    "snows, exact curvature": {"recipe": "fast", "curvature": "hessian"},
    # One batch of all images: a step on one batch of several may raise the loss of all.
    "snows, as published": {"recipe": "paper", "passes": 2, "cg_iterations": 50, "batch_size": 8},
}
# The others of METHODS, on the loss that they minimise.
CALLS |= {
    f"update {name}": {"update": name, "k": 0}
    for name, method in METHODS.items()
    if method.updates_weights and name != "snows"
}
REMOVING = [name for name in CASES if name != "all kept"]  # masks without a zero are refused


def solved(case, method, dtype=torch.float64, **more):
    """Prune one layer of a case; return the dense network and the result."""
    model = case.make(case.seed).to(dtype)
    options = {"k": case.k, "batch_size": 3, "progress": False, **CALLS[method], **more}
    return model, snows.prune(
        model, case.images().to(dtype), masks={case.layer: case.mask(model)}, **options, effort="quick"
    )


@pytest.mark.parametrize(("method", "dtype"), [*((m, torch.float64) for m in CALLS), ("snows", torch.float32)])
@pytest.mark.parametrize("name", REMOVING)
def test_zeros_stand_where_the_mask_says_and_the_loss_does_not_rise(name, method, dtype):
    case = CASES[name]
    model, result = solved(case, method, dtype)
    own, mask = result.weight_names[case.layer], case.mask(model)
    assert torch.equal(result.masks[case.layer], mask) and result.complete
    weight = result.state[own]
    assert weight.dtype == dtype and torch.isfinite(weight).all()
    assert (weight[~mask] == 0).all()
    row = result.report.set_index("layer").loc[case.layer]
    assert row["status"] == "pruned" and 0 <= row["loss_end"] <= row["loss_start"] * (1 + 1e-6) + 1e-12
    before = model.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in result.state.items() if key != own)


# Methods that fit to the dense network's own targets, and cases whose inputs are its own.
FITTING = [m for m, options in CALLS.items() if options.get("recipe") != "paper" and options.get("update") != "none"]
DENSE_INPUTS = [name for name in REMOVING if not CASES[name].before]


@pytest.mark.parametrize(("method", "batch_size"), [*((m, 8) for m in FITTING), ("snows", 3)])
@pytest.mark.parametrize("name", DENSE_INPUTS)
def test_losses_of_the_report_are_the_oracles_and_fitting_beats_the_masked_weights(name, method, batch_size):
    case = CASES[name]
    _, result = solved(case, method, normalise=False, batch_size=batch_size)
    oracle, row = case(CALLS[method].get("k")), result.report.set_index("layer").loc[case.layer]
    end = float(oracle.loss(result.state[result.weight_names[case.layer]]))
    masked = float(oracle.loss(oracle.problem.weight * oracle.mask))
    assert row["loss_end"] == pytest.approx(end, rel=1e-8, abs=1e-15)
    if batch_size > case.count:  # of several batches it is that of the first
        assert row["loss_masked"] == pytest.approx(masked, rel=1e-8)
    assert end < masked
