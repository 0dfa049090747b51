"""patterns.py: patterns are read from every spelling, print as they are read, and are refused if nothing is meant."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snows_core.errors import SnowsError
from snows_core.masks.patterns import NM, Unstructured, parse_pattern


@pytest.mark.parametrize("pattern", [NM(1, 4), NM(4, 8), Unstructured(0.75), Unstructured(0.5, "global", 0.9)])
def test_patterns_pass_through_and_print(pattern):
    assert parse_pattern(pattern) is pattern
    assert str(pattern)


def test_numbers_of_other_libraries_are_taken():
    assert NM(np.int64(2), torch.tensor(4)) == NM(2, 4) and str(NM(np.int64(2), 4)) == "2:4"
    assert Unstructured(np.float64(0.5), "global", torch.tensor(0.75)) == Unstructured(0.5, "global", 0.75)


@given(st.integers(1, 15), st.integers(1, 15))
def test_n_of_m_reads_back_from_its_own_text(n, extra):
    assert parse_pattern(str(NM(n, n + extra))) == NM(n, n + extra)
    assert parse_pattern(f" {n}:{n + extra} ") == NM(n, n + extra)


@given(st.floats(0.001, 0.999))
def test_sparsities_read_back_from_every_spelling(sparsity):
    sparsity = round(sparsity, 3)
    for text in (sparsity, f"{sparsity:.3f}", f"layer:{sparsity:.3f}", f"{100 * sparsity:.1f}%"):
        assert parse_pattern(text).sparsity == pytest.approx(sparsity)
        assert parse_pattern(text).scope == "layer"
    assert parse_pattern(f"global:{sparsity:.3f}") == Unstructured(sparsity, "global")
    assert parse_pattern(f"global:{sparsity:.3f}:0.9995") == Unstructured(sparsity, "global", 0.9995)


@pytest.mark.parametrize("pattern", [Unstructured(0.8), Unstructured(0.8, "global", 0.95)])
def test_unstructured_patterns_read_back_from_their_own_text(pattern):
    assert parse_pattern(str(pattern)) == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        "4:4",
        "0:4",
        "5:4",
        "2:0",
        "two of four",
        None,
        True,
        1,
        0,
        -0.5,
        1.5,
        "100%",
        "2/4",
        (2, 4),
        "global",
        "global:0.8.1",
        "global:.",
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(pattern):
    with pytest.raises(SnowsError, match=r"^pattern: got .*; expected "):
        parse_pattern(pattern)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: NM(2.0, 4), r"pattern: got 2\.0:4; expected n:m with integers"),
        (lambda: NM(True, 4), r"pattern: got True:4; expected n:m with integers"),
        (lambda: NM("2", 4), r"pattern: got 2:4; expected n:m with integers"),
        (lambda: Unstructured(0.8, "row"), r"scope: got 'row'; expected 'layer' or 'global'"),
        (lambda: Unstructured(0.8, "global", 0.5), r"cap: got 0\.5; expected a fraction between the sparsity \(0\.8\)"),
        (lambda: Unstructured(0.8, "global", 1.5), r"cap: got 1\.5"),
        (lambda: Unstructured("0.8"), r"pattern: got '0\.8'; expected a number"),
        (lambda: Unstructured(0.8, "global", None), r"cap: got None; expected a number"),
        (lambda: Unstructured(float("nan")), r"pattern: got nan; expected a sparsity between 0 and 1"),
    ],
)
def test_bad_pattern_objects_are_refused(make, message):
    with pytest.raises(SnowsError, match=message):
        make()
