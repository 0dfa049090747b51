"""Fifty small networks that Hypothesis puts together, pruned in all manners: what must hold whatever is asked."""

import copy
import gc
import linecache
import warnings
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, note
from hypothesis import settings as of_hypothesis
from soak_networks import calibration_images, networks, settings
from toys import same

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks.patterns import parse_pattern

HEALTH = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
PHASES = [Phase.explicit, Phase.generate]  # to make a failing network smaller takes minutes, and they are small


def held():
    """Count what a call must not leave behind, waiting for the garbage collector or not."""
    count = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    return count, sum(name.startswith("<eval_with_key>") for name in linecache.cache)


@pytest.mark.slow
@given(networks(), settings())
@of_hypothesis(max_examples=50, phases=PHASES, suppress_health_check=HEALTH)
def test_fifty_networks(tmp_path_factory, model, options):
    check(model, options, tmp_path_factory.mktemp("soak"))


@given(networks(), settings())
@of_hypothesis(max_examples=3, phases=PHASES, suppress_health_check=HEALTH)
def test_a_few_networks(tmp_path_factory, model, options):
    check(model, options, tmp_path_factory.mktemp("soak"))


def check(model, options, folder):
    note(f"{model}\n{options}")
    images, before = calibration_images(options["seed"]), copy.deepcopy(model.state_dict())
    gc.collect()
    gc.disable()
    try:
        at_first = held()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(calibration images|zero already).*")
            try:
                result = snows.prune(model, images, effort="quick", progress=False, **options)
            except SnowsError as error:
                assert any(
                    words in str(error) for words in ("fits", "selects no layer", "names or globs", "no more stages")
                ), error
                assume(False)  # another one in its place
        check_pattern(result, options["pattern"], before)
        check_losses(result.report)
        loaded = snows.load(result.save(folder / "saved"), copy.deepcopy(model))
        assert same(loaded.state, result.state) and same(loaded.masks, result.masks)
        assert same(loaded.module.state_dict(), result.module.state_dict())
        with torch.no_grad():
            assert torch.equal(loaded.module(images), result.module(images))
        assert same(model.state_dict(), before)
        del result, loaded
        assert held() == at_first
    finally:
        gc.enable()


def check_pattern(result, asked, before):
    """Every layer has exactly the zeros that its pattern asks for, and the others their weights."""
    read = parse_pattern(asked)
    assert result.masks
    kept = total = 0
    for layer, mask in result.masks.items():
        weight = result.state[result.weight_names[layer]]
        assert not weight[~mask].any() and torch.isfinite(weight).all(), layer
        kept, total = kept + int(mask.sum()), total + mask.numel()
        if isinstance(read, snows.NM):
            assert (mask.unflatten(1, (-1, read.m)).sum(2) == read.n).all(), layer
        else:
            share = asked
            if isinstance(asked, dict):
                share = asked["maps.0*"] if layer.startswith("maps.0") else asked["*"]
            if isinstance(share, float):
                assert int((~mask).sum()) == round(Fraction(str(share)) * mask.numel()), layer
    if asked == "global:0.6":
        assert total - kept == round(Fraction("0.6") * total)
    pruned = set(result.weight_names.values())
    assert all(torch.equal(value, before[name]) for name, value in result.state.items() if name not in pruned)


def check_losses(report):
    """No re-fit ends above where it began, nor above the dense weights under the mask."""
    done = report[report["status"] == "pruned"]
    assert done["loss_end"].ge(0).all()
    for begun in ("loss_start", "loss_masked"):
        worse = done[done["loss_end"] > done[begun] * (1 + 1e-6) + 1e-12]
        assert worse.empty, worse[["layer", "k", "loss_masked", "loss_start", "loss_end"]].to_string()
