"""Structured patterns: read, counted, and made into masks of every layer that holds a unit."""

import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.masks.patterns import Structured, masks_for, parse_pattern
from snows_core.masks.schedule import schedule
from snows_core.masks.structured import Slices, Units


def two_groups():
    """Layer b reads the four outputs of a, and its own two (of two rows each) are read by c."""
    pairs = torch.arange(4).view(2, 2)
    first = Units("a", 4, (Slices("a", 0, torch.arange(4)[:, None]), Slices("b", 1, torch.arange(4)[:, None])))
    second = Units("b", 2, (Slices("b", 0, pairs), Slices("c", 1, pairs)))
    return Structured(0.5).on((first, second))


def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(4, 3, 3, 3, generator=generator),
        "b": torch.randn(4, 4, 1, 1, generator=generator),
        "c": torch.randn(5, 4, generator=generator),
    }


@pytest.mark.parametrize("text", ["structured:0.5", "channels:0.5", "structured 0.5", "structured:50%"])
def test_texts_are_read(text):
    assert parse_pattern(text) == Structured(0.5) == parse_pattern(str(Structured(0.5)))


@pytest.mark.parametrize("value", [0, 1, 1.5, "half", True, None])
def test_shares_outside_are_refused(value):
    with pytest.raises(SnowsError, match=r"pattern.*between 0 and 1"):
        Structured(value)


def test_masks_of_all_layers_are_of_the_same_units():
    made = masks_for(weights(), two_groups())
    rows = made["a"].flatten(1)
    assert sorted(rows.all(1).tolist()) == sorted(rows.any(1).tolist()) == [False, False, True, True]
    columns = made["b"].movedim(1, 0).flatten(1).any(1)
    assert torch.equal(columns, rows.any(1))
    outputs = made["b"].flatten(1).any(1)
    assert torch.equal(made["c"][0], outputs) and outputs.view(2, 2).all(1).tolist().count(True) == 1
    assert float(made["b"].float().mean()) == 0.25 and float(made["c"].float().mean()) == 0.5  # (1 - s)^2 and 1 - s


def test_the_units_of_highest_score_stay_in_every_layer_that_holds_them():
    scores = {name: torch.ones_like(weight) for name, weight in weights().items()}
    scores["a"][2], scores["b"][:, 2] = 0.1, 0.1
    masks = Structured(0.25).on(two_groups().groups).masks(scores)  # one of four units goes, and none of two
    stay = [True, True, False, True]
    assert masks["a"].flatten(1).all(1).tolist() == masks["a"].flatten(1).any(1).tolist() == stay
    columns = masks["b"].movedim(1, 0).flatten(1)
    assert columns.all(1).tolist() == columns.any(1).tolist() == stay and masks["c"].all()


def test_units_are_ranked_by_the_mean_of_squared_norms_each_a_share_of_its_layer():
    given, pattern = weights(), two_groups()
    found = pattern.groups[0].scores({name: weight.abs() for name, weight in given.items()}, as_norms=True)
    rows, columns = given["a"].flatten(1).square().sum(1), given["b"].square().sum((0, 2, 3))
    wanted = rows / rows.mean() + columns / columns.mean()
    assert torch.allclose(found.float(), wanted, rtol=1e-5)  # sums of a few float32 numbers
    larger = {**given, "a": 100 * given["a"]}
    assert torch.equal(masks_for(larger, pattern)["a"], masks_for(given, pattern)["a"]), (
        "the size of a layer is nothing"
    )
    added = pattern.groups[0].scores(given, as_norms=False)
    plain = given["a"].flatten(1).sum(1) + given["b"].sum((0, 2, 3))
    assert torch.allclose(added.float(), plain, atol=1e-5)


def test_one_unit_always_stays_and_one_layer_alone_has_no_mask():
    pattern = two_groups()
    sparse = Structured(0.99).on(pattern.groups)
    assert all(mask.any() for mask in masks_for(weights(), sparse).values())
    with pytest.raises(SnowsError, match="make_masks"):
        pattern.mask(weights()["a"])


def test_stages_lead_to_it():
    assert [str(stage) for stage in schedule(Structured(0.75), 2)] == ["structured 0.5", "structured 0.75"]
    with pytest.raises(SnowsError, match="another kind"):
        schedule(Structured(0.75), ["0.5", "structured:0.75"])
