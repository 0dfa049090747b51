"""names.py: the spellings of other tools, and what a name may mean."""

import pytest

from snows_core.errors import SnowsError
from snows_core.masks.names import Names, read_spelling, without_wrappers


def test_a_name_that_may_mean_two_things_is_refused():
    names = Names({"a.module.b": "x", "a._orig_mod.b": "y", "c": "z"})
    with pytest.raises(SnowsError, match=r"the name 'a\.b', which may be any of a\._orig_mod\.b, a\.module\.b"):
        names.find("a.b")
    assert names.find("module.a.module.b") == "x" and names.find("module.c") == "z" and names.find("d") is None


@pytest.mark.parametrize(
    "key, base, role",
    [
        ("a.weight_mask", "a.weight", "mask"),
        ("weight_orig", "weight", "weight"),
        ("a.mask", "a", "mask"),
        ("a.b.parametrizations.weight.original", "a.b.weight", "weight"),
        ("parametrizations.weight.0.mask", "weight", "mask"),
        ("a.parametrizations.weight.10.my_mask", "a.weight", "mask"),
        ("a.parametrizations.weight.original1", "a.weight", "weight"),
        ("a.parametrizations.weight.original0", "a.weight", "other"),
        ("a.parametrizations.weight.0._u", "a.weight", "other"),
    ],
)
def test_spellings(key, base, role):
    assert read_spelling(key) == (base, role)


def test_buffers_of_asp_are_masks_and_what_was_pruned_is_none():
    assert read_spelling("layer1.0.__weight_mma_mask") == ("layer1.0.weight", "mask")
    assert read_spelling("__weight_mma_mask") == ("weight", "mask")
    assert read_spelling("layer1.0.__weight_mma_pruned_p") == ("layer1.0.weight", "other")


@pytest.mark.parametrize("key", ["a.weight", "weight", "mask", "a.unmasked", "a.origin"])
def test_plain_names(key):
    assert read_spelling(key) is None


def test_wrappers_are_whole_parts_of_a_name():
    assert without_wrappers("module._orig_mod.a.module.weight") == "a.weight"
    assert without_wrappers("modules.a_orig_mod.b") == "modules.a_orig_mod.b"
