"""tools/semi_structured_benchmark.py: its whole way on the CPU, what its table says, and what it says without a GPU."""

import pandas as pd
import pytest
import semi_structured_benchmark as tool
import torch

from snows_core.export.tuning.given import given_result
from snows_core.zoo import experiment


def test_a_dry_run_goes_the_whole_way(tmp_path, capsys):
    tool.main(["--dry-run", "--batch", "2", "--convolutions", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    frame = pd.read_csv(tmp_path / "semi-structured-cpu.csv")
    assert (frame["batch"] == 2).all() and (frame["run"] == "compiled").all()
    network = frame[frame["what"] == "network"]
    assert network["input"].tolist() == ["2x3x160x160"] and network["layers"].tolist() == [24]
    layers = frame[frame["what"] == "linear"]
    assert layers["layers"].sum() == 24 and set(layers["weight"]) == {"192x64", "64x64", "64x192"}
    assert layers["input"].str.startswith("2x101x").all() and (frame["dense ms"] > 0).all()
    assert "24 of 25 layers run on 2:4 kernels (stand-in)" in shown and "| what | name |" in shown
    assert "dense: " in shown and "head" in shown and "saved to" in shown


@pytest.mark.parametrize(("times", "word"), [((2.0, 1.0), "faster"), ((1.0, 2.0), "slower"), ((1.0, 1.01), "the same")])
def test_slow_downs_are_said_as_plainly_as_gains(monkeypatch, times, word):
    monkeypatch.setattr(tool, "medians", lambda *_: times)
    layer = torch.nn.Linear(4, 4)
    row = tool.compared(layer, layer, torch.ones(2, 4), tool.parsed(["--dry-run"]))
    assert row["2:4 is"] == word and row["ratio"] == round(times[0] / times[1], 3)


def test_what_cannot_be_compiled_runs_as_it_is_and_the_table_says_so(monkeypatch, capsys):
    class Uncompiled(torch.nn.Linear):
        pass

    def refuses(module, **_):
        if isinstance(module, Uncompiled):
            raise RuntimeError("an unknown tensor")
        return module

    monkeypatch.setattr(torch, "compile", refuses)
    row = tool.compared(torch.nn.Linear(4, 4), Uncompiled(4, 4), torch.ones(2, 4), tool.parsed(["--dry-run"]))
    assert row["run"] == "dense compiled, 2:4 eager" and "an unknown tensor" in capsys.readouterr().err


def test_a_saved_result_is_measured(tmp_path, capsys):
    model = experiment("digits-resnet20").load_model()
    for name in ("layer2.0.downsample.0", "layer3.0.downsample.0"):
        model.get_submodule(name).weight.data[:, ::2] = 0
    result = given_result(model)
    result.manifest["source"] = {"model": "digits-resnet20"}
    folder = result.save(tmp_path / "pruned")
    tool.main(["--dry-run", "--folder", str(folder), "--batch", "2", "--convolutions", "--out", str(tmp_path)])
    frame = pd.read_csv(tmp_path / "semi-structured-cpu.csv")
    assert frame["what"].tolist() == ["1x1 convolution", "1x1 convolution", "network"]
    assert "2 of 3 layers" in capsys.readouterr().out and frame["name"].iloc[-1] == "digits-resnet20"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_ends_with_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: device: got no CUDA GPU .* T4 has 7.5"):
        tool.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no CUDA device with 2:4"
)
def test_a_gpu_is_measured(tmp_path):
    tool.main(["--model", "vit_small_patch16_224", "--batch", "8", "--seconds", "0.05", "--out", str(tmp_path)])
    frame = pd.read_csv(next(tmp_path.glob("*.csv")))
    assert (frame["what"] == "linear").any() and (frame["2:4 ms"] > 0).all()
