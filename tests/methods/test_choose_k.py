"""k="auto": a reproducible choice per layer, within the ladder, that a deeper gain moves and a poor one stops."""

from types import SimpleNamespace

import pytest
import torch
from spies import stop_after
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.methods import choose_k
from snows_core.methods.choose_k import LADDER, choose_segment, ladder
from snows_core.network.graph import Network
from snows_core.settings import NewtonOptions, read_k


def run(**options):
    layers = ["layer1.conv1", "layer1.conv2", "layer2.conv1"]
    options = {"k": "auto", "layers": layers, "progress": False, **options}
    return snows.prune(small_resnet(), random_images(32, 8), "2:4", **options, effort="quick")


def pruned(result):
    return result.report.query("status == 'pruned'").set_index("layer")


def test_the_ladder_holds_prefixes_and_no_segment_twice():
    network = Network(small_resnet())
    segments = ladder(network, network.layers[-2], "auto")
    lengths = [segment.k for segment in segments]
    assert lengths == sorted(set(lengths)) and lengths[0] <= LADDER[0]
    for segment in segments:
        assert segments[-1].taps[: len(segment.taps)] == segment.taps
    assert len(ladder(network, network.layers[1], 3)) == 1


def test_each_layer_gets_a_k_of_the_ladder_and_the_trials_are_counted():
    report = pruned(run())
    network = Network(small_resnet())
    for layer in network.layers:
        if layer.name in report.index:
            assert report["k"][layer.name] in {segment.k for segment in ladder(network, layer, "auto")}
    first = report.iloc[0]
    fixed = pruned(run(k=int(first["k"]))).iloc[0]
    assert first["products"] > fixed["products"] and first["image_products"] > fixed["image_products"]


def test_the_choice_is_reproducible():
    first, second = run(), run()
    assert list(pruned(first)["k"]) == list(pruned(second)["k"])
    for name, tensor in first.state.items():
        assert torch.equal(tensor, second.state[name]), name


@pytest.mark.parametrize(("share", "chosen"), [(1e9, LADDER[0]), (-1e9, None)])
def test_the_share_asked_for_ends_the_climb(monkeypatch, share, chosen):
    monkeypatch.setattr(choose_k, "SHARE_PER_DOUBLING", share)
    network = Network(small_resnet())
    layer = next(layer for layer in network.layers if layer.name == "layer1.conv1")
    k = run(layers=["layer1.conv1"]).report.query("status == 'pruned'")["k"].item()
    assert k == (chosen or ladder(network, layer, "auto")[-1].k)


def test_resuming_an_automatic_run_changes_nothing(monkeypatch):
    whole = run()
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        part = run()
    resumed = run(resume=part)
    assert list(pruned(resumed)["k"]) == list(pruned(whole)["k"])
    for name, tensor in whole.state.items():
        torch.testing.assert_close(resumed.state[name], tensor)


@pytest.mark.parametrize("k", ["Auto", -1, True, 2.0, "5"])
def test_what_is_no_k(k):
    with pytest.raises(snows.SnowsError, match=r'^k: got .*expected an integer >= 0, or "auto"'):
        read_k(k)


def test_the_estimate_takes_auto_as_an_upper_bound():
    images = random_images(8, 8)
    table = snows.estimate(small_resnet(), images, "2:4", k="auto", layers=["layer1.conv1"], effort="quick")
    network = Network(small_resnet())
    assert table["k"].item() == ladder(network, network.layers[1], "auto")[-1].k


@pytest.mark.parametrize(("gain", "doublings", "chosen"), [(0.09, 1, 5), (0.07, 1, 2), (0.17, 2, 5), (0.15, 2, 2)])
def test_a_doubling_of_the_cost_has_to_lower_the_error_by_eight_hundredths(monkeypatch, gain, doublings, chosen):
    """The rule of the module's head, on errors and costs that are made up: only the rule decides."""

    class Loss:
        contexts = (0, 1)
        products = image_products = 3

        def __init__(self, segment):
            self.segment = segment

        def on(self, batches):
            return self

        def per_tap(self, weight):
            return [0.0, {2: 1.0, 5: 1.0 - gain}[int(weight)]]

    segments = [SimpleNamespace(k=2), SimpleNamespace(k=5)]
    monkeypatch.setattr(choose_k, "newton", lambda loss, *rest: SimpleNamespace(weight=torch.tensor(loss.segment.k)))
    monkeypatch.setattr(choose_k, "_flops", lambda loss, start: {2: 1.0, 5: 2.0**doublings}[loss.segment.k])
    segment, products, image_products = choose_segment(
        segments, Loss, torch.zeros(()), NewtonOptions(), lambda loss: None
    )
    assert segment.k == chosen and products == image_products == 6
