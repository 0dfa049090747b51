"""How a comparison judges: each test image once, paired with the best cell, and ties where they tell nothing apart."""

from __future__ import annotations

import pytest
import torch
from comparisons import GRID, QUICK
from scipy import stats
from torch import nn
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.comparison import Cell
from snows_core.comparison.judge import Judge
from snows_core.comparison.pairs import compare_pair, mcnemar
from snows_core.comparison.results import Comparison, Row

pytestmark = pytest.mark.usefixtures("few_images_are_fine")


def test_dense_outputs_on_the_test_images_are_computed_once(network, images, test):
    calls, network = [], small_resnet()
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    judge = Judge(network, test)
    pruned = snows.apply_masks(small_resnet(), snows.make_masks(small_resnet(), images, "2:4"))
    judge(pruned), judge(pruned)
    hook.remove()
    assert len(calls) == 1


def rows_of(values):
    cells = [Cell("1:4", mask, "none") for mask in values]
    return dict(zip(cells, [Row("done", values=given) for given in values.values()], strict=True))


def test_ties_are_what_the_images_do_not_tell_apart():
    right = torch.ones(200, dtype=torch.float64)
    one_less, many_less = right.clone(), right.clone()
    one_less[3] = 0.0
    many_less[:150] = 0.0
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kl = {"a": 1 + noise, "b": 1.01 + noise.flip(0), "c": 3 + noise}
    values = dict(zip("abc", [right, one_less, many_less], strict=True))
    found = Comparison(rows_of({name: {"accuracy": values[name], "kl": kl[name]} for name in "abc"}), {})
    table = found.table.set_index("mask")
    assert table["best"].to_list() == [True, False, False] and table["tie"].to_list() == [False, True, False]
    assert table["kl_best"].to_list() == [True, False, False] and table["kl_tie"].to_list() == [False, True, False]
    assert table.loc["b", "difference"] == pytest.approx(-0.5) and table.loc["c", "kl_difference"] == pytest.approx(2)


def test_a_constant_difference_is_no_tie_however_small():
    noise = torch.rand(50, dtype=torch.float64)
    pair = compare_pair(noise + 1 / 1024, noise)
    assert not pair.tie and pair.interval < 1e-9
    assert compare_pair(noise, noise).tie and compare_pair(noise[:1], noise[1:2]).tie


def test_intervals_and_mcnemar_are_those_of_scipy():
    generator = torch.Generator().manual_seed(1)
    one, other = torch.rand(300, generator=generator).double(), torch.rand(300, generator=generator).double()
    pair, differences = compare_pair(one, other), (one - other).numpy()
    low, high = stats.norm.interval(0.95, loc=differences.mean(), scale=stats.sem(differences))
    assert (pair.difference - pair.interval, pair.difference + pair.interval) == pytest.approx((low, high), rel=1e-6)
    for b, c in ((0, 0), (1, 0), (0, 6), (12, 30), (2000, 2300)):
        expected = stats.binomtest(b, b + c, 0.5).pvalue if b + c else 1.0
        assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9)


def test_equal_accuracy_is_decided_by_kl():
    same_answers = torch.tensor([1.0, 1.0, 0.0])
    rows = rows_of(
        {name: {"accuracy": same_answers, "kl": torch.full((3,), kl)} for name, kl in (("a", 0.2), ("b", 0.1))}
    )
    assert Comparison(rows, {}).table["best"].to_list() == [False, True]


def test_a_loader_that_shuffles_is_found_out(network, images):
    data = torch.utils.data.TensorDataset(*[random_images(64), torch.zeros(64, dtype=torch.long)])
    loader = torch.utils.data.DataLoader(data, batch_size=32, shuffle=True)
    found = snows.compare(network, images, "2:4", test=loader, **GRID)
    assert len(found.crashed) == 4 and "other images than the first time" in found.table["reason"][0]


def test_images_without_labels_are_judged_by_agreement_and_features_by_cosine(network, images):
    found = snows.compare(network, images, "1:4", test=[random_images(20, seed=9), random_images(9, seed=8)], **GRID)
    table = found.table
    assert "accuracy" not in table and table.loc[table["best"], "agreement"].iloc[0] == table["agreement"].max()
    backbone = nn.Sequential(*list(network.children())[:4], nn.Flatten()).eval()
    backbone.num_classes = 0
    table = snows.compare(backbone, images, "1:4", test=random_images(12, seed=9), **GRID).table
    assert "kl" not in table and table.loc[table["best"], "cosine"].iloc[0] == table["cosine"].max() < 1


def test_of_pixels_an_image_has_its_share(images):
    dense = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1)).double().eval()
    labels = torch.randint(0, 3, (20, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[:10, 0] = 255  # no label
    test = random_images(20, seed=9), labels
    pruned = snows.prune(dense, images, "2:4", layers=["2"], update="none", mask="magnitude", **QUICK).model
    values = Judge(dense, test)(pruned)
    for image in range(20):
        once = snows.evaluate(pruned, test[0][[image]], labels[[image]], reference=dense)
        got = [float(values[name][image]) for name in ("accuracy", "agreement", "kl")]
        assert got == pytest.approx([once.accuracy / 100, once.agreement / 100, once.kl], rel=1e-9)
