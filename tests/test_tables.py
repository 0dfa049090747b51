"""tables.py: a result on one screen, and its layers in a table that fits the terminal."""

import pandas as pd
import pytest
import torch
from torch import nn

from snows_core.result import PruneResult
from snows_core.tables import WIDTH, layer_table, table

MODEL_STOP = "the loss fell as the quadratic model foretold; another step would gain less than the tolerance"
LONG = "backbone.model.encoder.layers.encoder_layer_{}.self_attention.residual_block.projection.out_proj_{}"


def row(layer, status="pruned", **more):
    values = dict(layer=layer, kind="linear", shape="768x3072x3x3", weights=1000, kept=1000, sparsity=0.0, reason="")
    values["status"] = status
    if status == "pruned":
        values |= dict(kept=250, sparsity=0.75, k=5, loss_masked=0.2, loss_start=0.123456, loss_end=1.2e-5)
        values |= dict(newton_steps=2, products=12345, image_products=99, stop=MODEL_STOP, seconds=123.456)
    return values | more


def report(*rows):
    return pd.DataFrame(rows)


def resnet(stop=lambda i: MODEL_STOP):
    return report(
        row("conv1", "skipped", reason="first layer (reads the image)"),
        *(row(f"layer{i}.conv{i}", stop=stop(i)) for i in range(18)),
        *(row(f"up.{i}", "skipped", reason="transposed convolution") for i in range(30)),
        row("fc", "skipped", reason="classifier"),
    )


def test_one_line_a_pruned_layer_and_what_all_share_once():
    text = layer_table(resnet())
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH == 100
    assert lines[0].split() == ["layer", "shape", "sparsity", "loss_start", "loss_end", "products", "seconds"]
    assert [line.split()[0] for line in lines[1:19]] == [f"layer{i}.conv{i}" for i in range(18)]
    assert lines[1].split()[1:] == ["768x3072x3x3", "0.75", "0.1235", "1.2e-05", "12345", "123.5"]
    assert lines[19] == "k = 5 in every layer"
    assert " ".join(text.split()).count(MODEL_STOP) == 1 and f"every layer stopped because {MODEL_STOP[:50]}" in text
    assert "left dense: first layer (reads the image): conv1" in lines and "left dense: classifier: fc" in lines
    joined = " ".join(text.split())
    assert "left dense: transposed convolution: up.0, up.1, up.2" in joined and joined.count("transposed") == 1
    assert "up.29" in joined
    assert lines[-1] == "sparsity: 75.0% of the weights of the 18 pruned layers, 27.0% of all 50,000 weights listed"


def test_remarks_that_differ_are_marked():
    text = layer_table(resnet(lambda i: "the gradient is zero" if i == 3 else MODEL_STOP if i else ""))
    lines = text.splitlines()
    assert lines[0].endswith("stop") and lines[2].endswith(" a") and lines[4].endswith(" b")
    assert not lines[1].endswith((" a", " b"))
    assert "stop b: the gradient is zero" in lines and any(line.startswith("stop a: the loss fell") for line in lines)


def test_k_that_differs_has_a_column():
    lines = layer_table(report(row("a", k=2.0), row("b", k=20.0))).splitlines()
    assert lines[0].split()[3] == "k" and [line.split()[3] for line in lines[1:3]] == ["2", "20"]
    assert "every layer" not in lines[3].replace("every layer stopped", "")


def test_long_names_are_cut_in_the_middle_and_stay_apart():
    text = layer_table(
        report(
            *(row(LONG.format(i, i), stop=str(i)) for i in range(30)),
            row(LONG.format("x", "x") * 2, "skipped", reason="excluded"),
        )
    )
    lines = text.splitlines()
    assert all(len(line) <= WIDTH for line in lines[:31])
    names = [line.split()[0] for line in lines[1:31]]
    assert len(set(names)) == 30 and all("..." in name and name.endswith(f"_{i}") for i, name in enumerate(names))


def test_columns_without_a_value_are_left_out():
    frame = report(*(row(name, loss_start=float("nan"), stop="") for name in "ab"))
    assert "loss_start" not in layer_table(frame) and "stop" not in layer_table(frame)
    assert layer_table(frame.drop(columns=["k", "stop", "seconds", "products"])).splitlines()[0].split() == [
        "layer",
        "shape",
        "sparsity",
        "loss_end",
    ]


def test_layers_that_were_not_reached_and_nothing_pruned():
    text = layer_table(
        report(row("a"), row("b", "not reached", reason="interrupted"), row("", "skipped", reason="1-dim"))
    )
    assert "not reached: interrupted: b" in text and "left dense: 1-dim: (the model)" in text
    assert "of the weights of the 1 pruned layer, 25.0% of all 3,000" in text
    none = layer_table(report(row("b", "not reached", reason="interrupted")))
    assert none.splitlines() == ["not reached: interrupted: b", "sparsity: no layer pruned; 1,000 weights listed"]


def test_values_of_a_table():
    text = table(pd.DataFrame({"a": [1.0, float("nan"), 0.123456], "b": [None, "x", 7]}))
    assert text.split() == ["a", "b", "1", "x", "0.1235", "7"]


RECORD = {
    "pattern": "2:4",
    "k": 5,
    "recipe": {"name": "fast", "steps": 3},
    "calibration": {"images": 256},
    "seed": 3,
    "device": "cuda",
    "refinement": {"steps": 150, "loss": [0.5, 0.4, 0.25]},
}


def test_a_result_in_stages_says_through_what():
    stages = [{"pattern": pattern} for pattern in ("3:4", "2:4")]
    assert "2:4 in 2 stages (through 3:4), recipe fast" in repr(result(resnet(), RECORD | {"stage_records": stages}))
    assert "2:4, recipe fast" in repr(result(resnet(), RECORD | {"stage_records": stages[1:]}))
    long = [{"pattern": f"unstructured 0.{n} global cap 0.95"} for n in range(3, 9)]
    assert "2:4 in 6 stages, recipe fast" in repr(result(resnet(), RECORD | {"stage_records": long}))


def result(frame, record, model=True):
    layers = {name: torch.ones(10, 10, dtype=torch.bool) for name in frame["layer"]}
    return PruneResult(nn.Linear(3, 3) if model else None, layers, frame, record, {"w": torch.zeros(1000)}, {})


def test_a_result_is_shown_on_one_screen():
    text = repr(result(resnet(), RECORD))
    lines = text.splitlines()
    assert len(lines) <= 14 and max(map(len, lines)) <= WIDTH
    assert lines[0] == "PruneResult: Linear"
    for words in (
        "2:4, recipe fast, k 5",
        "18 pruned, 32 left dense, 0 not reached",
        "27.0% of all 50,000 weights",
        "3.6 with the masked dense weights, 0.000216 after the solve",
        "150 joint steps, loss 0.5 before, 0.25",
        "256 calibration images, on cuda, seed 3",
        "complete yes",
        "result.model (the pruned network), print(result.report), result.save",
    ):
        assert words in " ".join(text.split())
    assert "tensor" not in text


@pytest.mark.parametrize("record", [{}, {"recipe": "mine", "calibration": [1], "refinement": 3}, {"calibration": {}}])
def test_a_result_with_any_record_is_shown(record):
    frame = report(row("a", loss_masked=0.0), row("b", "not reached", reason="interrupted"))
    text = repr(result(frame, record, model=False))
    assert "no, interrupted: pass it as resume=" in text and "weights without a model" in text and "unknown" in text
    assert len(text.splitlines()) <= 14
    bare = frame[["layer", "weights", "kept", "status", "reason"]]
    assert "1 pruned" in repr(result(bare, record))
