"""sweep/stages.py: masks chosen by re-fitted weights, stage by stage; interruption, resumption, costs."""

import pytest
import torch
from spies import noted, stop_after
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.sweep.prepare import checked_settings, prepare, with_refinement

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
IMAGES = random_images(24)


def run(model=None, pattern="1:4", stages=3, **options):
    options = {"k": 2, "progress": False, "refine": 0, "batch_size": 8, "permute": False, **options}
    options.setdefault("mask", "magnitude")
    return snows.prune(model or small_resnet(), IMAGES, pattern, stages=stages, **options)


@pytest.mark.parametrize("pattern, stages", [("1:4", 3), ("global:0.9:0.95", ["global:0.5", "global:0.9:0.95"])])
def test_every_stage_is_the_sweep_of_the_weights_before(pattern, stages):
    """The stages by hand: each a run of its own whose masks the weights of the run before choose."""
    whole = run(pattern=pattern, stages=stages, stage_k=1)
    patterns = ["3:4", "2:4", "1:4"] if stages == 3 else stages
    weights, few = {}, {"steps": 1, "cg_iterations": 4}  # between two stages
    for stage, last in zip(patterns, [False] * (len(patterns) - 1) + [True], strict=True):
        score = lambda name, weight, known=dict(weights): known.get(name, weight).abs()  # noqa: E731
        by_hand = run(pattern=stage, stages=1, k=2 if last else 1, saliency=score, **({} if last else few))
        weights = {name: by_hand.state[key] for name, key in by_hand.weight_names.items()}
    assert all(torch.equal(whole.masks[name], mask) for name, mask in by_hand.masks.items())
    for name, key in whole.weight_names.items():
        # The last stage may start at the weights of the stage before where their loss is lower.
        torch.testing.assert_close(whole.state[key], weights[name], rtol=0.2, atol=0.02)
    assert not torch.equal(whole.masks["layer2.conv1"], run(pattern=pattern, stages=1).masks["layer2.conv1"])


def test_between_stages_least_squares_are_solved_on_the_mask():
    dense = small_resnet()
    first = run(stages=["3:4", "1:4"], stage_k=0, ridge=1e-3)
    between = snows.prune(dense, IMAGES, "3:4", k=0, ridge=1e-3, effort="quick", progress=False, batch_size=8)
    score = lambda name, _: between.state[f"{name}.weight"].abs()  # noqa: E731
    masks = snows.make_masks(dense, IMAGES, "1:4", saliency=score)
    assert all(torch.equal(first.masks[name], mask) for name, mask in masks.items())


def test_the_report_and_the_manifest_know_stages():
    result = run(stage_k=2)
    records = result.manifest["stage_records"]
    assert [record["pattern"] for record in records] == ["3:4", "2:4", "1:4"] and result.manifest["stages"] == 3
    assert [round(record["sparsity"], 6) for record in records] == [0.25, 0.5, 0.75]
    assert all(record["complete"] and record["layers"] == len(result.masks) for record in records)
    pruned = result.report[result.report["status"] == "pruned"]
    assert (pruned["stage"] == 3).all() and result.stage == 3 and not result.pending
    assert pruned["products"].sum() == sum(record["products"] for record in records) > records[-1]["products"]
    assert pruned["image_products"].sum() == sum(record["image_products"] for record in records)
    assert pruned["seconds"].sum() <= sum(record["seconds"] for record in records)


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 6])
def test_resuming_ends_where_an_uninterrupted_run_ends(monkeypatch, tmp_path, count, saved):
    """Three layers and two stages: in the first, between the two, in the second, and after it."""
    chosen = {"layers": ["layer1.conv1", "layer1.conv2", "layer2.conv1"], "pattern": "2:4", "stages": 2}
    whole = run(**chosen)
    with monkeypatch.context() as patch:
        stop_after(patch, count)
        partial = run(**chosen)
    assert partial.complete == (count == 6) and partial.stage == 1 + (count >= 3)
    assert len(partial.solved) == (3 if count == 6 else count % 3)
    if saved:
        partial = snows.load(partial.save(tmp_path / "partial"), small_resnet())
    with monkeypatch.context() as patch:
        solved = stop_after(patch, 99)
        resumed = run(**chosen, resume=partial)
    assert len(solved) == 6 - count
    for name, key in whole.weight_names.items():
        assert torch.equal(whole.state[key], resumed.state[key]) and torch.equal(whole.masks[name], resumed.masks[name])
    costs = ["layer", "products", "image_products", "loss_end"]
    assert whole.report[costs].equals(resumed.report[costs])
    kept = ["pattern", "sparsity", "complete"]
    for once, again in zip(whole.manifest["stage_records"], resumed.manifest["stage_records"], strict=True):
        assert [once[name] for name in kept] == [again[name] for name in kept]


def test_an_interrupted_run_holds_the_stage_before(monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        partial = run(layers=["layer1.*", "layer2.conv1"])
    rows = partial.report.set_index("layer")
    assert (rows.loc[list(partial.masks), "status"] == "not reached").all()
    assert rows.loc["layer1.conv1", "stage"] == 2 and rows.loc["layer1.conv2", "stage"] == 1
    assert rows.loc["layer1.conv1", "reason"] == "interrupted in stage 2 of 3"
    assert rows.loc["layer1.conv1", "sparsity"] == 0.5 and rows.loc["layer1.conv2", "sparsity"] == 0.25
    assert partial.pending.keys() == {"layer1.conv2", "layer2.conv1"}
    assert all(mask.float().mean() == 0.5 for mask in partial.pending.values())
    for name, mask in partial.masks.items():
        assert torch.equal(partial.state[partial.weight_names[name]] != 0, mask)
    with pytest.raises(SnowsError, match="resume: got a result with another schedule of stages"):
        run(layers=["layer1.*", "layer2.conv1"], stages=2, resume=partial)


def test_ctrl_c_while_masks_are_made_loses_nothing(monkeypatch):
    from snows_core.sweep import stages

    made, original = [], stages.stage_masks

    def interrupted(*args):
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(args)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stages, "stage_masks", interrupted)
        partial = run()
    assert not partial.complete and partial.stage == 2 and not partial.solved and len(partial.masks) == 5
    whole, resumed = run(), run(resume=partial)
    assert all(torch.equal(whole.state[key], resumed.state[key]) for key in whole.weight_names.values())


def test_dense_values_are_computed_once_for_all_stages_between(monkeypatch):
    calls = noted(monkeypatch, "snows_core.sweep.stages", "Sweep")
    options = {"pattern": "1:4", "stages": 3, "layers": ["layer2.*"]}
    result = run(**options)
    assert result.complete and len(calls) == 2, "one plan for the stages between, one for the last"
    from snows_core.sweep import sweep

    monkeypatch.setattr(sweep, "DENSE_SHARE", 0.0)
    again = run(**options)
    assert all(torch.equal(result.state[key], again.state[key]) for key in result.weight_names.values())


def test_a_weight_may_come_back():
    """A pruned weight whose score a later stage ranks higher is kept again, at the value of its re-fit."""
    seen = []

    def by_turns(name, weight):
        seen.append(name)
        order = torch.arange(weight.numel(), dtype=weight.dtype).view_as(weight)
        return order if seen.count(name) % 2 else -order

    result = run(pattern="0.5", stages=["0.4", "0.5"], layers=["layer1.conv1"], saliency=by_turns)
    assert len(set(seen)) == 1 and len(seen) >= 2
    mask = result.masks["layer1.conv1"]
    assert mask.float().mean() == 0.5
    assert torch.equal(result.state["layer1.conv1.weight"] != 0, mask)


def test_stages_and_given_masks_are_refused():
    masks = snows.make_masks(small_resnet(), IMAGES, "1:4")
    with pytest.raises(SnowsError, match=r"stages: got 3 with masks=; expected one stage beside given masks"):
        run(masks=masks)
    assert run(masks=masks, stages=None).manifest["stages"] == 1


def test_make_masks_refuses_stages():
    with pytest.raises(SnowsError, match="stages: got 3; expected 1: later masks are chosen by weights re-fitted"):
        snows.make_masks(small_resnet(), IMAGES, "1:4", stages=3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (1, 0)),  # swaps
        ({"mask": "magnitude"}, (3, 0)),
        ({"saliency": "obs"}, (3, 0)),
        ({"pattern": 0.9}, (5, 0)),
        ({"effort": "quick"}, (1, 0)),
        ({"effort": "quick", "stages": 2}, (2, 0)),
        ({"effort": "best"}, (1, 0)),
        ({"stages": 1}, (1, 0)),
        ({"stage_k": 2, "pattern": 0.9}, (5, 2)),
        ({"update": "layerwise"}, (1, 0)),
        ({"recipe": "paper"}, (1, 0)),
        ({"mask": "wanda"}, (1, 0)),
        ({"update": "layerwise", "stages": 3}, (3, 0)),
    ],
)
def test_effort_chooses_what_is_not_chosen(options, expected):
    settings = checked_settings(snows.prune, **{"pattern": "1:4", **options})
    assert (settings.stages, settings.stage_k) == expected


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, {24: 6, 256: 60, 4000: 120}),
        ({"effort": "best"}, {24: 38, 256: 400, 4000: 2000}),
        ({"effort": "quick"}, {256: 0}),
        ({"recipe": "paper"}, {256: 0}),
        ({"update": "layerwise"}, {256: 0}),
        ({"refine": 7}, {24: 7, 256: 7}),
        ({"refine": 0}, {256: 0}),
    ],
)
def test_effort_chooses_the_steps_of_refinement_by_the_number_of_images(options, steps):
    settings = checked_settings(snows.prune, pattern="1:4", **options)
    prepared = prepare(small_resnet(), [IMAGES[:2]], settings)
    assert {images: with_refinement(settings, prepared, images).refine for images in steps} == steps


def test_refinement_of_an_effort_is_done_and_recorded():
    result = run(effort="standard", refine=None)
    assert result.manifest["refinement"]["steps"] == result.manifest["settings"]["refine"] == 6
    assert "refinement" not in run(effort="standard").manifest


def test_sweeps_may_see_fewer_images_than_refinement(monkeypatch):
    calls = noted(monkeypatch, "snows_core.sweep.stages", "Sweep")
    refined = noted(monkeypatch, "snows_core.outcome", "refine_jointly")
    result = run(sweep_images=16, refine=1)
    assert [len(args[4]) for args, _ in calls] == [16, 16] and len(refined[0][0][1]) == 24
    order = result.manifest["calibration"]["order"]
    assert torch.equal(calls[0][0][4], IMAGES[order][:16])
    assert result.manifest["sweep_images"] == 16
