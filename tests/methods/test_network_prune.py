"""NETWORK_METHODS as a caller of prune has them: patterns, updates, stages, labels, interruption, refusals."""

import sys

import pytest
import torch
from toys import layer_named, random_images, relative, same, small_resnet, small_vit

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.masks.patterns import parse_pattern
from snows_core.methods import METHODS, NETWORK_METHODS, NetworkMethod, NetworkProblem
from snows_core.network.graph import Network
from snows_core.settings import PruneSettings
from snows_core.sweep import stages as staged
from snows_core.sweep.layer_steps import layer_steps
from snows_core.sweep.network_steps import SEED
from snows_core.sweep.sweep import Sweep

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
INNER = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.downsample.0"]
IMAGES = random_images(10)
OF_WEIGHTS = {name: method for name, method in NETWORK_METHODS.items() if method.chooses_weights}  # others: of units
UPDATING = [name for name, method in OF_WEIGHTS.items() if method.updates_weights]
READING = [name for name, method in NETWORK_METHODS.items() if method.reads_labels]


def run(name, pattern=0.6, model=None, images=IMAGES, **options):
    options = {"mask": name, "update": "none", "k": 0, "progress": False, "layers": INNER, **options}
    return snows.prune(model or small_resnet(), images, pattern, **options)


# Pattern to the share of zeros of each layer; None where the pattern says it of all together.
SHARES = {
    0.6: [0.6] * 4,
    "2:4": [0.5] * 4,
    "layer1.*=0.5,layer2.*=0.7": [0.5, 0.5, 0.7, 0.7],
    "global:0.6": None,
    "global:0.6:0.65": None,
}
MET = [
    (name, pattern)
    for name, method in OF_WEIGHTS.items()
    for pattern in SHARES
    if pattern != "2:4" or method.chooses_groups
]


@pytest.mark.parametrize(("name", "pattern"), MET)
def test_every_method_meets_every_pattern_and_repeats_itself(name, pattern):
    own = name if name in UPDATING else "none"
    result, again = (run(name, pattern, update=own) for _ in range(2))
    assert same(result.state, again.state) and same(result.masks, again.masks) and result.complete
    report = result.report.set_index("layer")
    for layer, key in result.weight_names.items():
        mask, weight = result.masks[layer], result.state[key]
        assert not weight[~mask].any() and torch.isfinite(weight).all() and mask.any()
        if own != "none":
            assert "whole network" in report.loc[layer, "stop"]
    masks = [result.masks[layer] for layer in INNER]
    removed = [int((~mask).sum()) for mask in masks]
    if SHARES[pattern] is None:
        assert sum(removed) == round(0.6 * sum(mask.numel() for mask in masks))
        cap = 0.65 if pattern == "global:0.6:0.65" else 1.0
        assert all(count <= cap * mask.numel() for count, mask in zip(removed, masks, strict=True))
    else:
        assert removed == [round(share * mask.numel()) for share, mask in zip(SHARES[pattern], masks, strict=True)]
    if pattern == "2:4":
        assert all((mask.movedim(1, -1).reshape(-1, 4).sum(1) == 2).all() for mask in masks)
    labels = "drawn from the dense network's softmax" if name in READING else None
    assert result.manifest["labels"] == labels and result.manifest["mask"] == name
    assert result.manifest["gradients"] == ({"images": 10, "rows": 10} if name in READING else None)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_any_update_follows_the_masks(name, monkeypatch):
    # Ten gradients say something beside a damping as small as this one.
    monkeypatch.setattr(sys.modules[NetworkProblem.__module__], "DAMPENING", 0.1)
    masks = run(name).masks
    for update in ("layerwise", "snows"):
        result = run(name, update=update, k=2, refine=0)
        assert same(result.masks, masks)
    assert same(snows.make_masks(small_resnet(), IMAGES, 0.6, mask=name, layers=INNER), masks)
    if name not in ("chita", "dimap", "falcon"):  # of few gradients, or in one layer, it is magnitude
        magnitude = snows.make_masks(small_resnet(), IMAGES, 0.6, layers=INNER)
        assert any(not torch.equal(masks[layer], mask) for layer, mask in magnitude.items())


@pytest.mark.parametrize("name", UPDATING)
def test_any_masks_made_before_the_sweep_may_be_updated(name):
    magnitude = run("magnitude", update=name, effort="quick")
    given = run(None, update=name, masks=magnitude.masks)
    assert same(magnitude.state, given.state)
    plain = run("magnitude", update="none", effort="quick")
    assert same(plain.masks, magnitude.masks) and not same(plain.state, magnitude.state)
    other = run("obd", update=name)
    assert same(other.masks, run("obd").masks) and not same(other.state, run("obd").state)


@pytest.mark.parametrize("name", [*UPDATING, "obd"])
def test_stages_take_gradients_at_the_weights_of_the_stage_before(name):
    own = name if name in UPDATING else "layerwise"
    result = run(name, 0.6, update=own, stages=2)
    records = result.manifest["stage_records"]
    assert len(records) == 2 and records[0]["sparsity"] < records[1]["sparsity"] == pytest.approx(0.6, abs=0.01)
    if name not in UPDATING:
        return
    first = run(name, records[0]["pattern"], update=own)
    network = Network(small_resnet(), example=IMAGES[:2])
    names = {layer: layer_named(network, layer).weight_name for layer in INNER}
    order = torch.tensor(result.manifest["calibration"]["order"])
    before = {layer: first.state[key] for layer, key in names.items()}
    second = NetworkProblem(network, names, IMAGES[order], parse_pattern(0.6), SEED, None, before, 1e9)
    wanted = NETWORK_METHODS[name]().solve(second)
    assert same(wanted.masks, result.masks)
    assert all(relative(result.state[key], wanted.weights[layer]) < 1e-9 for layer, key in names.items())


def test_labels_follow_their_images_through_the_shuffling():
    labels = torch.arange(10) % 3
    given = run("mfac", labels=labels, update="mfac")
    back = torch.arange(9, -1, -1)
    turned = run("mfac", labels=labels[back].tolist(), update="mfac", images=IMAGES[back], seed=0)
    # The order is another one then, so that the sums differ by rounding alone.
    assert same(given.masks, turned.masks)
    assert all(relative(turned.state[key], given.state[key]) < 1e-8 for key in given.weight_names.values())
    wrong = run("mfac", labels=labels[back], update="mfac")
    assert any(relative(wrong.state[key], given.state[key]) > 1e-3 for key in given.weight_names.values())
    assert given.manifest["labels"].startswith("given, ") and given.manifest["settings"]["labels"] == "given"
    assert given.manifest["labels"] != wrong.manifest["labels"]
    cut = run("mfac", labels=labels, update="mfac", max_images=6)
    assert same(cut.state, run("mfac", labels=labels[:6], update="mfac", images=IMAGES[:6]).state)
    assert cut.manifest["gradients"] == {"images": 6, "rows": 6}
    few = run("mfac", labels=labels, sweep_images=4)
    assert few.manifest["gradients"] == {"images": 4, "rows": 4}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"labels": [0] * 9}, r"^labels: got 9 labels; expected one per calibration image \(10\)\.$"),
        ({"labels": [0] * 11}, r"^labels: got 11 labels; expected one per calibration image \(10\)\.$"),
        ({"labels": [0] * 9 + [3]}, r"^labels: got 3 \(1 such labels\); expected class indices 0 to 2"),
        ({"labels": [0] * 10, "mask": "obd"}, r"^labels: got 10 labels with mask='obd' and update='none'; expected a"),
        ({"labels": [0] * 10, "mask": None}, r"^labels: got 10 labels with mask='magnitude'.*\['cap', 'cbs', 'chita'"),
        (
            {"mask": "cbs", "pattern": "2:4"},
            r"^mask: got 'cbs' with the pattern 2:4; expected a pattern without groups.*'chita', .*know N:M",
        ),
        (
            {"mask": "wanda", "update": "chita"},
            r"^update: got 'chita' with mask='wanda', which chooses during the sweep",
        ),
        ({"masks": {}}, r"^mask: got 'mfac'; expected no masks= beside it"),
        (
            {"update": "obd"},
            r"^update: got 'obd'; expected one of .*'snows'.*\], or of the whole network one of \['cap'",
        ),
        (
            {"mask": "mfec"},
            r"^mask: got 'mfec'; expected one of \['magnitude', .*or of the whole network .*Nearest: mfac",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(options, message):
    options = {"mask": "mfac", "update": "none", "pattern": 0.6, "k": 0, "progress": False, **options}
    with pytest.raises(SnowsError, match=message):
        snows.prune(small_resnet(), IMAGES, **options)


def test_methods_by_name():
    assert not NETWORK_METHODS.keys() & METHODS.keys()
    assert all(issubclass(method, NetworkMethod) and method.__doc__ for method in NETWORK_METHODS.values())
    steps = layer_steps(PruneSettings(0.5, mask="chita", update="chita", k=3))
    assert steps.choose is None and steps.update.k == 3 and steps.between.k == 0
    assert [name for name in OF_WEIGHTS if name not in UPDATING] == ["dimap", "obd"]


def interrupt(monkeypatch, count):
    """Let Ctrl-C come after ``count`` solved layers."""
    done, solve = [], Sweep._solve

    def interrupted(sweep, entry):
        if len(done) == count:
            raise KeyboardInterrupt
        done.append(entry)
        return solve(sweep, entry)

    monkeypatch.setattr(Sweep, "_solve", interrupted)


@pytest.mark.parametrize("update", ["layerwise", "chita"])
@pytest.mark.parametrize("stages", [1, 2])
def test_an_interrupted_run_goes_on_to_the_same_weights(update, stages, monkeypatch):
    whole = run("chita", update=update, stages=stages)
    interrupt(monkeypatch, 2)
    cut = run("chita", update=update, stages=stages)
    assert not cut.complete and cut.stage == 1 and len(cut.solved) == 2
    monkeypatch.undo()
    resumed = run("chita", update=update, stages=stages, resume=cut)
    assert same(resumed.state, whole.state) and same(resumed.masks, whole.masks)
    with pytest.raises(SnowsError, match="resume: got a result with another labels"):
        run("chita", update=update, stages=stages, resume=cut, labels=[0] * 10)


def test_a_run_that_ended_inside_a_later_stage_of_its_own_update_is_begun_anew(monkeypatch):
    interrupt(monkeypatch, len(INNER) + 2)
    cut = run("chita", update="chita", stages=2)
    monkeypatch.undo()
    assert cut.stage == 2 and len(cut.solved) == 2
    with pytest.raises(SnowsError, match=r"resume: got a result inside stage 2, with update='chita'.*Run it anew"):
        run("chita", update="chita", stages=2, resume=cut)


def test_measured_sparsities_are_for_these_masks_and_compared_with_those_of_magnitude(monkeypatch):
    made, original = [], staged.network_steps
    monkeypatch.setattr(staged, "network_steps", lambda *given: made.append(original(*given)) or made[-1])
    result = run("mfac", "global:0.6", allocation="measured", images=random_images(16))
    assert result.sparsity == pytest.approx(0.6, abs=0.01) and result.manifest["allocation"]["name"] == "measured"
    assert len(made) > 1 and sum(one is not None for one in made) == 1


def test_transformers_and_single_precision():
    images = random_images(8, 4, dtype=torch.float32)
    for name in OF_WEIGHTS:
        own = name if name in UPDATING else "none"
        result = run(name, 0.5, small_vit().float(), images, update=own, layers="blocks.*")
        assert result.sparsity == pytest.approx(0.5, abs=0.01)
        assert all(torch.isfinite(result.state[key]).all() for key in result.weight_names.values())


def test_an_estimate_charges_the_gradients():
    options = {"update": "chita", "mask": "chita", "k": 0, "progress": False, "layers": INNER}
    once, twice = (snows.estimate(small_resnet(), IMAGES, 0.6, stages=stages, **options) for stages in (1, 2))
    rows = [table.set_index("layer").loc["(gradients)"] for table in (once, twice)]
    assert all(row["seconds"] > 0 for row in rows) and rows[0]["peak_bytes"] == 2 * 10 * 8 * (144 + 144 + 288 + 32)
    obd = snows.estimate(small_resnet(), IMAGES, 0.6, **{**options, "mask": "obd", "update": "none"})
    assert "(gradients)" in set(obd["layer"])
    assert "(gradients)" not in set(snows.estimate(small_resnet(), IMAGES, 0.6, k=0, progress=False)["layer"])
