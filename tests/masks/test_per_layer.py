"""masks/per_layer.py: sparsities by layer; names, globs, texts, stages."""

import numpy as np
import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.masks.patterns import PerLayer, Unstructured, masks_for, parse_pattern
from snows_core.masks.schedule import allocated, schedule

LAYERS = ["stem", "layer1.conv1", "layer1.conv2", "layer2.conv1"]


def test_each_layer_gets_the_mask_of_its_own_sparsity():
    weights = {name: torch.randn(6, 10, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
    shares = {"a": 0.5, "b": 0.0, "c": 0.83}
    masks = masks_for(weights, PerLayer(shares), seed=3)
    assert [int((~mask).sum()) for mask in masks.values()] == [30, 0, 50]
    for name in "ac":
        alone = masks_for({name: weights[name]}, Unstructured(shares[name]), seed=3)[name]
        assert torch.equal(masks[name], alone)
        assert torch.equal(PerLayer(shares).of(name).mask(weights[name].abs(), 0), masks[name])
    assert int(masks_for({"a": weights["a"]}, PerLayer({"a": 0.9999}))["a"].sum()) == 1, "no layer is emptied"


def test_equal_scores_are_decided_by_the_lots_of_the_same_pattern_alone():
    equal = {name: torch.ones(6, 10) for name in "ab"}
    masks = masks_for(equal, PerLayer({"a": 0.5, "b": 0.5}), seed=3)
    assert not torch.equal(masks["a"], masks["b"])
    for name, mask in masks.items():
        assert torch.equal(mask, masks_for({name: equal[name]}, Unstructured(0.5), seed=3)[name])


@pytest.mark.parametrize(
    "given",
    [
        {"layer1.*": 0.5, "layer2.conv1": np.float32(0.75)},
        "layer1.*=0.5,layer2.conv1=0.75",
        " layer1.*= 50% , layer2.conv1=.75",
        PerLayer({"layer1.*": 0.5, "layer2.conv1": 0.75}),
    ],
)
def test_ways_to_write_it(given):
    pattern = parse_pattern(given)
    assert pattern.sparsities == {"layer1.*": 0.5, "layer2.conv1": 0.75}
    assert parse_pattern(str(pattern)) == pattern and hash(pattern) == hash(parse_pattern(given))


def test_a_name_goes_before_globs_and_the_last_glob_before_others():
    pattern = PerLayer({"layer1.conv2": 0.9, "*": 0.1, "layer?.*": 0.5, "*.conv1": 0.7})
    resolved = pattern.resolved(LAYERS).sparsities
    assert resolved == {"stem": 0.1, "layer1.conv1": 0.7, "layer1.conv2": 0.9, "layer2.conv1": 0.7}
    assert list(resolved) == LAYERS
    assert pattern.resolved(iter(LAYERS)).sparsities == resolved  # names that can be read once
    assert PerLayer({"layer1.*": 0.5}).resolved(LAYERS).sparsities == {"layer1.conv1": 0.5, "layer1.conv2": 0.5}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "expected a sparsity above 0 for at least one layer"),
        ({"a": 0.0}, "expected a sparsity above 0 for at least one layer"),
        ({"a": 1.0}, r"pattern of 'a': got 1.0; expected a finite number >= 0 and below 1"),
        ({"a": "half"}, r"pattern of 'a': got 'half'; expected a finite number"),
        ({"a": True}, r"pattern of 'a': got True; expected a finite number"),
        ({3: 0.5}, r"pattern: got the name 3; expected names or globs of layers"),
        ("a=0.5,b", r"pattern: got 'b'; expected name=sparsity"),
        ("a=0.5,a=0.6", r"pattern: got 'a' twice; expected each layer once"),
        ("a=1/0", r"pattern: got 'a=1/0'; expected name=sparsity"),
        ("a=150%", r"pattern of 'a': got 1.5; expected a finite number >= 0 and below 1"),
        ("=0.5", r"pattern: got the name ''; expected names or globs of layers"),
    ],
)
def test_what_is_no_pattern_is_refused(given, message):
    with pytest.raises(SnowsError, match=message):
        parse_pattern(given)


def test_an_entry_that_names_no_layer_is_refused_with_the_nearest():
    message = r"pattern: got 'layer1.conv3'; expected names or globs of this model's 4 layers. Nearest: layer1.conv\d"
    with pytest.raises(SnowsError, match=message):
        PerLayer({"layer1.conv3": 0.5}).resolved(LAYERS)
    with pytest.raises(SnowsError, match=r"pattern: got a=0.1,b=0.2; expected the pattern of one layer"):
        PerLayer({"a": 0.1, "b": 0.2}).mask(torch.ones(4))
    with pytest.raises(SnowsError, match="pattern: got list; expected a mapping"):
        PerLayer([0.5])


def test_stages_are_geometric_in_each_layer():
    stages = schedule(PerLayer({"a": 0.9, "b": 0.5, "c": 0.0}), 3)
    kept = np.array([[1 - s for s in stage.sparsities.values()] for stage in stages])
    np.testing.assert_allclose(kept, np.array([0.1, 0.5, 1.0]) ** (np.arange(1, 4) / 3)[:, None], atol=1e-6)
    assert stages[-1].sparsities == {"a": 0.9, "b": 0.5, "c": 0.0}


def test_listed_stages():
    listed = [{"a": 0.5, "b": 0.5}, "a=0.8,b=0.5"]
    assert schedule(parse_pattern("a=0.8,b=0.5"), listed) == tuple(map(parse_pattern, listed))
    for wrong, message in [
        ([{"a": 0.5}, {"a": 0.8, "b": 0.5}], "a=0.5 is of another kind or names other layers"),
        ([0.5, {"a": 0.8, "b": 0.5}], "unstructured 0.5 is of another kind"),
        ([{"a": 0.5, "b": 0.6}, {"a": 0.8, "b": 0.5}], "expected increasing sparsity"),
        ([{"a": 0.8, "b": 0.5}, {"a": 0.8, "b": 0.5}], "expected increasing sparsity"),
    ]:
        with pytest.raises(SnowsError, match=message):
            schedule(parse_pattern("a=0.8,b=0.5"), wrong)


@pytest.mark.parametrize("stages", [3, [0.5, 0.9]])
def test_stages_of_an_overall_sparsity_that_is_shared_out(stages):
    """Where all layers keep the share of the pattern, each stage is that of the overall sparsity."""
    overall = schedule(Unstructured(0.9), stages)
    same = allocated(overall, PerLayer({"a": 0.9, "b": 0.9}))
    assert len(same) == len(overall)
    for one, whole in zip(same, overall, strict=True):
        assert list(one.sparsities.values()) == pytest.approx([whole.sparsity] * 2, abs=2e-6)
    uneven = allocated(overall, PerLayer({"a": 0.5, "b": 0.99}))
    assert uneven[-1].sparsities == {"a": 0.5, "b": 0.99}
    assert uneven[0].sparsities["a"] < overall[0].sparsity < uneven[0].sparsities["b"]


def test_its_title_is_short():
    few, many = PerLayer({"a": 0.5}), PerLayer({f"layer{i}.conv": i / 100 for i in range(40)})
    assert few.title == "a=0.5" and many.title == "40 layers, 0 to 0.39"
