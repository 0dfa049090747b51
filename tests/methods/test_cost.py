"""cost.py: formulas of methods are evaluated as they read, no method does far more, and none holds more than it may."""

import re

import method_costs
import pytest
import torch
from spies import PeakBytes
from torch.utils.flop_counter import FlopCounterMode

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks import NM, Unstructured
from snows_core.methods import METHODS, SYMBOLS, Rates, Work, multiply_adds
from snows_core.methods.snows import Snows
from snows_core.solvers import row_factors, swaps
from snows_core.solvers.damped_gram import damped_gram
from snows_core.solvers.exact_obs import removal_order

SIZES = {"n": 100.0, "g": 2.0, "o": 6.0, "d": 10.0, "k": 5.0, "f": 1e4, "p": 1e3, "u": 40.0}
CALLS = [
    (name, pattern)
    for name, method in METHODS.items()
    for pattern in (None, Unstructured(0.5), NM(2, 4))
    if not issubclass(method, Snows)  # products are counted in tools/cost_of_scale.py, graphs bounded elsewhere
    and (method.updates_weights if pattern is None else method.chooses_masks)
    and (method.chooses_groups or not isinstance(pattern, NM))
]


@pytest.mark.parametrize("name", snows.methods().index)
def test_every_cost_is_a_formula_that_grows_with_all_that_stands_in_it(name):
    cost = snows.methods().loc[name, "cost"]
    whole = multiply_adds(cost, **SIZES)
    symbols = set(re.findall(r"\b[a-z]\b", cost.partition(";")[0]))
    assert whole.total > 0 and symbols and symbols <= set(SYMBOLS)
    for symbol in symbols:
        assert multiply_adds(cost, **{**SIZES, symbol: 2 * SIZES[symbol]}).total > whole.total


def test_terms_are_summed_by_their_rates():
    work = multiply_adds("300 o d^2 + d^3 / 6 / o (factors) + 1,000 o (passes) + n (passes); + words ^", o=2, d=3, n=7)
    assert work == Work(5400.0, 27 / 12, 2007.0) and work.total == pytest.approx(7409.25)
    assert work.seconds(Rates(10.0, 27.0, 1.0)) == pytest.approx(540 + 1 / 12 + 2007)


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("n d^2 + x o", "the symbol 'x' without a size"),
        ("a pass", "'pass' in the term 'a pass'"),
        ("n d^2 (sums)", r"the term 'n d\^2 \(sums\)'"),
        ("", "the term ''"),
    ],
)
def test_what_is_no_formula_is_refused(cost, said):
    with pytest.raises(SnowsError, match=f"^cost: got {said}; expected"):
        multiply_adds(cost, **SIZES, a=1.0)


def counting():
    """Count the operations of products of matrices and with vectors, and of convolutions."""

    def in_place(own, left, right, **_):
        return 2 * left[0] * left[1] * left[2] * right[2]

    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.baddbmm_: in_place})


@pytest.fixture(scope="module")
def layers():
    torch.manual_seed(0)
    return {
        "linear": method_costs.Prepared(*method_costs.linear(96, 64), room=1e6),
        "depthwise": method_costs.Prepared(*method_costs.depthwise(32), room=1e6),
    }


@pytest.mark.parametrize("layer", ["linear", "depthwise"])
@pytest.mark.parametrize(("name", "pattern"), CALLS, ids=str)
def test_no_method_takes_more_than_twice_the_products_of_its_formula(layers, layer, name, pattern):
    prepared = layers[layer]
    if layer == "depthwise" and isinstance(pattern, NM):
        pytest.skip("its inputs do not divide into groups")
    with counting() as counter:
        method_costs.solved(METHODS[name], prepared.problem(pattern))
    allowed = multiply_adds(METHODS[name].origin.cost, **prepared.sizes())
    assert counter.get_total_flops() / 2 <= 2 * (allowed.products + allowed.passes)


def test_all_removals_of_a_row_take_four_tenths_of_the_cube_of_its_width():
    rows, width = 2, 512
    x = torch.randn(2 * width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    damped = damped_gram((x.T @ x)[None], 1e-3)
    with counting() as counter:
        removal_order(damped, weight, torch.ones_like(weight, dtype=torch.bool))
    others = rows * 32 * 0.6 * width**2  # at most 64 vectors are read in each removal, half as many of a mean width
    # A third of the cube if places went one by one; they go a fifth at a time.
    assert rows * width**3 / 3 < counter.get_total_flops() / 2 - others < 0.45 * rows * width**3


@pytest.mark.parametrize(("name", "pattern"), CALLS, ids=str)
def test_no_method_holds_more_than_a_few_copies_of_its_layer_and_the_room_it_is_given(monkeypatch, name, pattern):
    rows, width, room = 256, 64, 5e5
    monkeypatch.setattr(row_factors, "ROOM_HOST", room)
    monkeypatch.setattr(swaps, "ROOM_HOST", 1e12)  # the room that it is given has to bound it
    torch.manual_seed(0)
    problem = method_costs.Prepared(*method_costs.linear(rows, width), room=room).problem(pattern)
    problem.budget = method_costs.Budget(factor_bytes=room, working_bytes=room)
    problem.normal_equations()
    with PeakBytes() as bytes_:
        method_costs.solved(METHODS[name], problem)
    # In double precision, 16 matrices of the weight's size (ADMM has most) and 8 of the Gram matrix's; the room, and
    # twice as much for factors on their way, which are copied once from double to single precision.
    copies = 8 * (16 * rows * width + 8 * width**2)
    assert bytes_.most < copies + 4 * room < 8 * rows * width**2 / 1.5  # far below an inverse for each row
