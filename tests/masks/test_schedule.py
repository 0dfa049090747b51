"""masks/schedule.py: the patterns between the dense network and the pattern asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snows_core.errors import SnowsError
from snows_core.masks.patterns import NM, Unstructured, parse_pattern
from snows_core.masks.schedule import most_stages, schedule


def test_one_stage_is_the_pattern():
    for pattern in (NM(1, 4), Unstructured(0.9), Unstructured(0.8, "global", 0.95)):
        assert schedule(pattern) == schedule(pattern, 1) == (pattern,)


@given(st.floats(0.05, 0.99), st.integers(1, 12))
def test_every_stage_keeps_the_same_share_of_the_one_before(sparsity, count):
    stages = schedule(Unstructured(sparsity, "global", cap=0.995), count)
    kept = np.array([1 - stage.sparsity for stage in stages])
    np.testing.assert_allclose(kept, (1 - sparsity) ** (np.arange(1, count + 1) / count), atol=1e-6)
    assert len(stages) == count and stages[-1].sparsity == sparsity
    assert all(stage.scope == "global" and stage.cap == 0.995 for stage in stages)


@given(st.integers(2, 16).flatmap(lambda m: st.tuples(st.integers(1, m - 1), st.just(m))), st.data())
def test_stages_of_a_group_keep_fewer_and_fewer(nm, data):
    n, m = nm
    count = data.draw(st.integers(1, m - n))
    kept = [stage.n for stage in schedule(NM(n, m), count)]
    assert len(kept) == count and kept[-1] == n and max(kept) < m
    assert all(after < before for before, after in pairwise(kept))
    assert {stage.m for stage in schedule(NM(n, m), count)} == {m}


def test_known_schedules():
    assert [str(stage) for stage in schedule(NM(1, 4), 3)] == ["3:4", "2:4", "1:4"]
    assert [str(stage) for stage in schedule(NM(1, 4), 2)] == ["2:4", "1:4"]
    assert [stage.n for stage in schedule(NM(1, 16), 5)] == [9, 5, 3, 2, 1]
    assert [round(stage.sparsity, 3) for stage in schedule(Unstructured(0.9), 3)] == [0.536, 0.785, 0.9]
    assert (most_stages(NM(1, 16), 5), most_stages(NM(3, 4), 5), most_stages(Unstructured(0.5), 5)) == (5, 1, 5)


def test_a_list_is_taken_as_it_is():
    listed = ["global:0.5", "global:0.8:0.9", Unstructured(0.9, "global", 0.95)]
    assert schedule(parse_pattern("global:0.9:0.95"), listed) == tuple(map(parse_pattern, listed))
    assert schedule(NM(1, 8), ["4:8", "1:8"]) == (NM(4, 8), NM(1, 8))


@pytest.mark.parametrize(
    ("pattern", "stages", "message"),
    [
        ("0.9", [0.5, 0.8], r"stages: got \[unstructured 0.5, unstructured 0.8\]; expected a list that ends with"),
        ("0.9", [0.8, 0.5, 0.9], r"expected increasing sparsity\. unstructured 0.5 comes after unstructured 0.8"),
        ("0.9", [0.9, 0.9], "expected increasing sparsity"),
        ("0.9", ["2:4", 0.9], r"expected stages of the kind of the pattern, unstructured 0.9\. 2:4 is of another kind"),
        ("0.9", ["global:0.5", 0.9], "stages of the kind of the pattern"),
        ("1:4", [0.5, "1:4"], "stages of the kind of the pattern"),
        ("1:4", ["4:8", "1:4"], "stages of the kind of the pattern"),
        ("1:4", ["2:4", "3:4", "1:4"], "expected increasing sparsity"),
        ("1:4", ["3:4", "2:4"], "a list that ends with the pattern, 1:4"),
        ("1:4", [], "a list that ends with the pattern, 1:4"),
        ("2:4", 3, r"stages: got 3; expected no more stages than 2:4 has steps\. At most 2: 3:4, 2:4"),
        ("2:4", 0, r"stages: got 0; expected a number of stages >= 1, or a list of patterns"),
        ("2:4", "many", r"stages: got 'many'; expected a number of stages"),
    ],
)
def test_what_does_not_lead_to_the_pattern_is_refused(pattern, stages, message):
    with pytest.raises(SnowsError, match=message):
        schedule(parse_pattern(pattern), stages)
