"""eligibility.yaml: each rule can decide, agrees with what is installed, and a slip of the pen in it is refused."""

from __future__ import annotations

import importlib.metadata
import re

import pytest
import torch
import yaml
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from snows_core.errors import SnowsError
from snows_core.export.kernels.rule_file import RULE_FILE, read_rules, rules
from snows_core.export.kernels.rules import DTYPES, Facts, Target

AMPERE, TURING, HOPPER = (8, 0), (7, 5), (9, 0)
GOOD = {"kind": "linear", "outputs": 256, "inputs": 256, "patterns": ("2:4", "1:2"), "held": "it is 1:4"}

# For every rule a layer and a target for which it alone is not met: what differs from a layer that all backends take.
DECIDED = {
    ("cusparselt", "architecture"): {"capability": TURING},
    ("cusparselt", "dtype"): {"dtype": "float32"},
    ("cusparselt", "layer"): {"kind": "1x1 convolution"},
    ("cusparselt", "shape"): {"outputs": 24},
    ("cusparselt", "pattern"): {"patterns": ()},
    ("cutlass", "architecture"): {"capability": HOPPER},
    ("cutlass", "dtype"): {"dtype": "float64"},  # no number format that can be asked about is refused there
    ("cutlass", "layer"): {"kind": "attention"},
    ("cutlass", "shape"): {"inputs": 48},
    ("cutlass", "pattern"): {"dtype": "float32", "patterns": ("2:4",)},
    ("tensorrt", "architecture"): {"capability": TURING},
    ("tensorrt", "dtype"): {"dtype": "bfloat16"},
    ("tensorrt", "layer"): {"kind": "transposed convolution"},
    ("tensorrt", "channels"): {"inputs": 27},
    ("tensorrt", "pattern"): {"patterns": ()},
}
NOTED = {
    ("cusparselt", "batch-side"): {"positions": 197, "dtype": "int8"},
    ("cutlass", "batch-side"): {"positions": 197},
    ("tensorrt", "narrow"): {"outputs": 64},
}


def asked(**changes):
    target = {"capability": AMPERE, "dtype": "float16", "batch": 1}
    target |= {key: changes.pop(key) for key in tuple(changes) if key in target}
    return Facts(**{**GOOD, **changes}), Target(**target)


def test_the_tables_below_name_every_rule_of_the_file():
    known = {(backend.key, rule.id) for backend in rules().backends for rule in backend.rules}
    assert known == DECIDED.keys()
    assert {(backend.key, note.id) for backend in rules().backends for note in backend.notes} == NOTED.keys()


@pytest.mark.parametrize("backend", rules().backends, ids=lambda backend: backend.key)
def test_every_rule_can_decide_and_says_why(backend):
    facts, target = asked()
    assert backend.decide(facts, target) is None
    for rule in backend.rules:
        facts, target = asked(**DECIDED[backend.key, rule.id])
        assert backend.decide(facts, target) is rule
        assert "{" not in rule.reason(facts, target) and rule.sources
    for note in backend.notes:
        facts, target = asked(**NOTED[backend.key, note.id])
        assert backend.decide(facts, target) is None and not note.is_met(facts, target)
        assert re.search(r"\b(197|256)\b", note.reason(facts, target))
        assert note.is_met(*asked(positions=200))


@pytest.mark.parametrize("backend", rules().backends, ids=lambda backend: backend.key)
def test_where_there_is_no_hardware_nothing_else_is_said(backend):
    first, *others = backend.rules
    assert first.id == "architecture" and others
    for other in others:
        changes = DECIDED[backend.key, other.id] | DECIDED[backend.key, first.id]
        assert backend.decide(*asked(**changes)) is first


@pytest.mark.parametrize(
    ("key", "tensor"),
    [("cusparselt", SparseSemiStructuredTensorCUSPARSELT), ("cutlass", SparseSemiStructuredTensorCUTLASS)],
)
def test_shapes_are_those_of_the_installed_pytorch(key, tensor):
    backend = next(backend for backend in rules().backends if backend.key == key)
    by_check = {rule.check: rule.allows for rule in (*backend.rules, *backend.notes)}
    installed = {str(dtype).removeprefix("torch."): sizes for dtype, sizes in tensor._DTYPE_SHAPE_CONSTRAINTS.items()}
    known = {name: sizes for name, sizes in installed.items() if name in DTYPES}  # 8-bit floats are not asked about
    if key == "cusparselt":
        known.pop("float32", None)  # earlier versions list it (pytorch/pytorch#115550)
    assert {name: [s.sparse_min_rows, s.sparse_min_cols] for name, s in known.items()} == by_check["shape"]
    assert {name: s.dense_min_rows for name, s in known.items()} == by_check["batch"]
    assert set(by_check["dtype"]) == known.keys()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("pattern", ["2:4", "1:2"])
def test_pytorchs_own_packing_loses_nothing_where_the_pattern_is_held(dtype, pattern):
    """CUTLASS's packing runs on the CPU: what the rule says of number formats and patterns is seen there."""
    from torch.sparse import _semi_structured_conversions as conversions

    row = [1.0, 2.0, 0.0, 0.0] if pattern == "2:4" else [0.0, 2.0, 3.0, 0.0]
    dense = torch.tensor(row).repeat(32, 16).to(getattr(torch, dtype))
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(dense)
    lossless = torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(packed, meta), dense)
    cutlass = next(backend for backend in rules().backends if backend.key == "cutlass")
    held = ("2:4", "1:2") if pattern == "1:2" else ("2:4",)
    assert lossless == (cutlass.decide(*asked(dtype=dtype, patterns=held)) is None)


def test_architectures_are_those_of_the_installed_cusparselt():
    wheels = [d for d in importlib.metadata.distributions() if d.name.startswith("nvidia-cusparselt")]
    text = next((str(wheel.metadata.get_payload()) for wheel in wheels), "")
    line = re.search(r"Supported SM Architectures\*: (.*)", text)
    if line is None:
        pytest.skip("no cuSPARSELt that lists its architectures is installed")
    listed = set(re.findall(r"SM (\d+\.\d)", line[1]))
    allowed = set(rules().backends[0].rules[0].allows)
    assert listed <= allowed and len(allowed - listed) <= 1  # one of them came later


def test_gpus_and_their_hardware():
    known = rules().gpus
    names = ("t4", "a100", "l4", "h100", "b200", "orin")
    assert [known[name] for name in names] == [(7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (8, 7)]
    for name, capability in known.items():
        taken = [backend.decide(*asked(capability=capability)) is None for backend in rules().backends]
        assert taken == [capability >= AMPERE, capability[0] == 8, capability >= AMPERE], name


def changed(path, value):
    """Return the text of the file with one value changed; None takes the key out."""
    found = yaml.safe_load(RULE_FILE.read_text())
    place = found
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return yaml.safe_dump(found)


RULE = ("backends", "cusparselt", "rules")
SLIPS = {
    "no source": ((*RULE, 0, "sources"), [], "cusparselt: rules: architecture: got no source"),
    "unknown source": ((*RULE, 0, "sources"), ["hearsay"], "'hearsay'"),
    "missing key": ((*RULE, 0, "because"), None, "where id, check"),
    "unknown check": ((*RULE, 0, "check"), "colour", "'colour', none of capability"),
    "a note among rules": ((*RULE, 0, "check"), "narrow", "'narrow', none of capability"),
    "capability": ((*RULE, 0, "allows"), [8.0, "eight"], "cannot use"),
    "shape": ((*RULE, 3, "allows"), {"float16": [16]}, "cannot use"),
    "a format without a shape": ((*RULE, 3, "allows"), {"float16": [16, 16]}, "bfloat16, float16, int8 pass"),
    "pattern": ((*RULE, 4, "allows"), {"float16": "3:4"}, "cannot use"),
    "kind": ((*RULE, 2, "allows"), ["linear", "lines"], "cannot use"),
    "reason": ((*RULE, 0, "because"), "not {this}", "words that nothing stands for"),
    "reason for a kind": ((*RULE, 2, "because"), {"linear": "no"}, "none for the others"),
    "two of one id": ((*RULE, 1, "id"), "architecture", "two rules of one id"),
    "gpu": (("gpus", "capabilities", "t4"), 7.5, "no compute capability such as '8.0'"),
    "checklist": (("checklist", 3, "sources"), [], "checklist: 4: got no source"),
    "top": (("checklist",), None, "the file: got the keys"),
}


@pytest.mark.parametrize("name", SLIPS)
def test_a_slip_of_the_pen_is_one_sentence(name):
    path, value, words = SLIPS[name]
    with pytest.raises(SnowsError, match=re.escape(words)) as caught:
        read_rules(changed(path, value))
    assert str(caught.value).startswith("eligibility.yaml: ")


def test_what_is_no_yaml_is_refused():
    with pytest.raises(SnowsError, match="no YAML"):
        read_rules("a: [")
    with pytest.raises(SnowsError, match="got list"):
        read_rules("[]")


def test_every_source_is_cited():
    found = yaml.safe_load(RULE_FILE.read_text())
    items = [*found["checklist"], found["gpus"]]
    for backend in found["backends"].values():
        items += [*backend["rules"], *backend["notes"]]
    assert {key for item in items for key in item["sources"]} == set(found["sources"])
