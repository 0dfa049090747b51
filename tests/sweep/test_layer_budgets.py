"""sweep/layer_budgets.py: sparsities given by layer, or shared out by a closed form, from the call to the manifest."""

import json

import pytest
import torch
from spies import stop_after
from toys import RESNET_INNER, random_images, small_resnet

import snows_core as snows
from snows_core.cli.options import read_options
from snows_core.errors import SnowsError
from snows_core.masks.allocation import allocate
from snows_core.masks.patterns import Unstructured, masks_for

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
IMAGES = random_images(24)
OPTIONS = {"k": 1, "progress": False, "effort": "quick", "batch_size": 24}


def run(pattern, model=None, **options):
    return snows.prune(model or small_resnet(), IMAGES, pattern, **{**OPTIONS, **options})


def shares_of(result):
    rows = result.report[result.report["status"] == "pruned"]
    return {row.layer: row.weights - row.kept for row in rows.itertuples()}


def test_given_sparsities_are_those_of_the_result(tmp_path):
    given = {"layer1.*": 0.5, "layer2.conv1": 0.9, "layer1.conv2": 0}
    result = run(given)
    assert shares_of(result) == {"layer1.conv1": 72, "layer1.conv2": 0, "layer2.conv1": 259}
    reasons = result.report.set_index("layer")["reason"]
    assert reasons["layer2.conv2"] == "no entry of the pattern names it" and reasons["conv1"].startswith("first layer")
    assert not torch.equal(result.state["layer1.conv2.weight"], small_resnet().state_dict()["layer1.conv2.weight"])
    assert result.manifest["pattern"] == "layer1.*=0.5,layer2.conv1=0.9,layer1.conv2=0.0"
    loaded = snows.load(result.save(tmp_path / "result"))
    assert loaded.manifest["pattern"] == result.manifest["pattern"]
    as_text = snows.make_masks(small_resnet(), IMAGES, result.manifest["pattern"])
    assert all(torch.equal(as_text[name], mask) for name, mask in result.masks.items())
    table = snows.estimate(small_resnet(), IMAGES, given, **OPTIONS)
    assert list(table["layer"]) == list(shares_of(result))


@pytest.mark.parametrize(
    "stages", [3, [{"layer1.*": 0.2, "layer2.conv1": 0.5}, {"layer1.*": 0.5, "layer2.conv1": 0.9}]]
)
@pytest.mark.parametrize("count", [2, 4])
def test_stages_of_given_sparsities_and_resumption(monkeypatch, tmp_path, stages, count):
    pattern = {"layer1.*": 0.5, "layer2.conv1": 0.9}
    whole = run(pattern, stages=stages)
    assert shares_of(whole) == {"layer1.conv1": 72, "layer1.conv2": 72, "layer2.conv1": 259}
    first = whole.manifest["stage_records"][0]["pattern"]
    milder = (
        "0.206299,layer1.conv2=0.206299,layer2.conv1=0.535841"
        if stages == 3
        else "0.2,layer1.conv2=0.2,layer2.conv1=0.5"
    )
    assert first == f"layer1.conv1={milder}"
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        partial = run(pattern, stages=stages)
    loaded = snows.load(partial.save(tmp_path / "partial"), small_resnet())
    resumed = run(pattern, stages=stages, resume=loaded)
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.weight_names.values())
    with pytest.raises(SnowsError, match="resume: got a result with another pattern"):
        run({"layer1.*": 0.5, "layer2.conv1": 0.8}, stages=3, resume=loaded)


@pytest.mark.parametrize("allocation", ["uniform", "erk", "lamp"])
def test_an_overall_sparsity_is_shared_out(allocation):
    dense = small_resnet()
    weights = {name: dense.get_parameter(f"{name}.weight").detach() for name in RESNET_INNER}
    shares = allocate(weights, Unstructured(0.7), allocation)
    result = run("global:0.7", dense, allocation=allocation, stages=2)
    total = sum(weight.numel() for weight in weights.values())
    assert sum(shares_of(result).values()) == round(0.7 * total)
    assert result.manifest["allocation"] == {"name": allocation, "sparsities": shares.sparsities}
    json.dumps(result.manifest)
    masks = snows.make_masks(dense, IMAGES, 0.7, allocation=allocation)
    assert all(torch.equal(masks[name], mask) for name, mask in masks_for(weights, shares).items())
    wanda = run(0.7, dense, allocation="erk", mask="wanda", update="none")
    kept = {name: int(mask.sum()) for name, mask in wanda.masks.items()}
    erk = masks_for(weights, allocate(weights, Unstructured(0.7), "erk"))
    assert all(abs(kept[name] - int(mask.sum())) <= len(mask) / 2 for name, mask in erk.items()), "rounded row by row"


def test_resuming_with_another_allocation_is_refused(monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        partial = run(0.7, allocation="erk")
    with pytest.raises(SnowsError, match="resume: got a result with another allocation"):
        run(0.7, allocation="lamp", resume=partial)
    with pytest.raises(SnowsError, match="resume: got a result with another allocation"):
        run(0.7, resume=partial)
    resumed, whole = run(0.7, allocation="erk", resume=partial), run(0.7, allocation="erk")
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.weight_names.values())


@pytest.mark.parametrize(
    ("pattern", "options", "message"),
    [
        ({"layer1.conv3": 0.5}, {}, r"pattern: got 'layer1.conv3'; expected names or globs.*Nearest: layer1.conv\d"),
        ({"conv1": 0.5}, {}, r"pattern: got a sparsity for 'conv1'; .*first layer \(reads the image\). layers= may"),
        ({"f*": 0.5, "layer1.*": 0.5}, {}, r"pattern: got a sparsity for 'f\*'; .*'fc' stays dense: classifier"),
        ("2:4", {"allocation": "erk"}, r"allocation: got 'erk' with the pattern 2:4; expected an overall sparsity"),
        ({"*": 0.5}, {"allocation": "erk"}, r"allocation: got 'erk' with the pattern \*=0.5; .*leave allocation out"),
        (0.5, {"allocation": "ekr"}, r"allocation: got 'ekr'; expected one of .*Nearest: erk"),
    ],
)
def test_what_cannot_be_meant_is_refused(pattern, options, message):
    with pytest.raises(SnowsError, match=message):
        run(pattern, **options)


def test_other_refusals():
    masks = snows.make_masks(small_resnet(), IMAGES, 0.5)
    with pytest.raises(SnowsError, match=r"allocation: got 'erk' with masks=; .*either given or made"):
        run(0.5, masks=masks, allocation="erk")
    with pytest.raises(SnowsError, match=r"allocation: got 'measured'; expected another: .*calibration images"):
        snows.make_masks(small_resnet(), IMAGES, 0.5, allocation="measured")


def test_a_layer_that_was_chosen_or_left_out_by_the_caller():
    assert shares_of(run({"conv1": 0.5}, layers=["conv1"])) == {"conv1": 54}
    result = run({"layer1.*": 0.5, "layer2.conv1": 0.5}, exclude=["layer1.*"])
    assert shares_of(result) == {"layer2.conv1": 144}
    assert result.report.set_index("layer").loc["layer1.conv1", "reason"] == "excluded"


def test_the_command_line_reads_both():
    typed = {"pattern": "layer1.*=0.5", "allocation": None, "progress": False, "augment": False, "effort": "quick"}
    assert read_options(typed)["pattern"] == "layer1.*=0.5"
    assert read_options(typed | {"pattern": "0.9", "allocation": "measured"})["allocation"] == "measured"
