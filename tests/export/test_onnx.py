"""export_onnx: a file that passes is there, one that does not is not; names, zeros, formats, exporters, silence."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision
from torch import nn
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export.onnx import export_onnx as exporting
from snows_core.export.onnx import exporters as onnx_exporters
from snows_core.export.onnx import files as onnx_files
from snows_core.export.onnx import parity
from snows_core.export.onnx.weights import name_weights
from snows_core.export.promise import support_digest

FAST = "torchscript"  # a tenth of a second where the other exporter takes seconds


def pruned(model, images, pattern="2:4"):
    return snows.prune(model, images, pattern=pattern, update="none", progress=False)


def images_of(count=40, size=8):
    return random_images(count, size, dtype=torch.float32)


@pytest.fixture(scope="module")
def result():
    return pruned(small_resnet().float(), images_of())


@pytest.fixture(scope="module", params=["dynamo", "torchscript"])
def export(request, result, tmp_path_factory):
    place = tmp_path_factory.mktemp("onnx") / f"{request.param}.onnx"
    return snows.export_onnx(result, images_of(), place, exporter=request.param)


def weights_in(path):
    return {i.name: torch.tensor(onnx.numpy_helper.to_array(i)) for i in onnx.load(str(path)).graph.initializer}


def run(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.numpy()})


def test_the_file_computes_the_same_for_any_number_of_images(result, export):
    assert (export.exporter, export.images, export.agreement, export.failed) == (export.path.stem, 40, 100, {})
    assert export.batches[0] == 1 and export.batches[-1] > 2
    for count in (1, 2, 7):
        images = random_images(count, seed=5, dtype=torch.float32)
        [given] = run(export.path, images)
        with torch.no_grad():
            wanted = result.module(images).numpy()
        assert np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max()  # rounding of some sums of float32
    file = onnx.load(str(export.path))
    assert [value.name for value in (*file.graph.input, *file.graph.output)] == ["images", "outputs"]
    assert export.opset == file.opset_import[0].version
    assert export.relative_difference <= 1e-4


def test_pruned_weights_have_their_names_and_zeros_in_the_file_and_the_promise_says_so(result, export):
    held, file = weights_in(export.path), onnx.load(str(export.path))
    promise = json.loads({entry.key: entry.value for entry in file.metadata_props}["snows"])
    assert promise["pattern"] == "2:4" and set(promise["layers"]) == set(result.weight_names.values())
    for layer, name in result.weight_names.items():
        assert not held[name][~result.masks[layer]].any() and held[name][result.masks[layer]].all()
        entry = promise["layers"][name]
        assert entry["layer"] == layer and entry["support"] == support_digest(held[name])
        assert entry["zeros"] == int((held[name] == 0).sum()) and entry["shape"] == list(held[name].shape)
    assert export.table["folded"].all() and set(export.table["operator"]) == {"Conv"}
    assert "batch norm is folded into" in str(export) and "(2:4)" in str(export)


def test_matrices_of_linear_layers_are_found_where_they_are_transposed(tmp_path):
    vit = torchvision.models.VisionTransformer(32, 8, 1, 4, 32, 48, num_classes=5).eval()
    images = images_of(40, 32)
    done = pruned(vit, images)
    export = snows.export_onnx(done, images, tmp_path / "vit.onnx", exporter=FAST)
    held = weights_in(export.path)
    assert export.table["transposed"].any() and "MatMul" in set(export.table["operator"])
    for row in export.table.itertuples():
        stored = held[row.weight].T if row.transposed else held[row.weight]
        assert not stored[~done.masks[row.layer]].any()
        assert torch.equal(stored, done.module.get_parameter(row.weight))


def test_scales_of_zero_empty_rows_and_whole_weights_and_both_are_found(tmp_path):
    model = small_resnet().float()
    with torch.no_grad():
        model.layer1.bn1.weight[0] = 0
        model.layer2.bn2.weight.zero_()
    done = pruned(model, images_of())
    table = snows.export_onnx(done, images_of(), tmp_path / "net.onnx", exporter=FAST).table.set_index("layer")
    assert table.loc["layer2.conv2", "sparsity"] == 1 and 0.5 < table.loc["layer1.conv1", "sparsity"] < 1


def test_a_network_without_a_result_is_exported_with_its_zeros_and_without_a_promise(result, tmp_path):
    export = snows.export_onnx(result.module, images_of(), tmp_path / "net.onnx", exporter=FAST)
    assert set(export.table["layer"]) == set(result.masks) and not export.pattern
    assert not onnx.load(str(export.path)).metadata_props


FORMATS = {torch.float16: ("float16", 1e-2), torch.bfloat16: ("float32", 1e-4), torch.float64: ("float32", 1e-4)}


@pytest.mark.parametrize("dtype", FORMATS)
def test_other_number_formats(dtype, tmp_path):
    model = pruned(small_resnet().float(), images_of()).module.to(dtype)
    export = snows.export_onnx(model, images_of().to(dtype), tmp_path / "net.onnx", exporter=FAST)
    name, most = FORMATS[dtype]
    assert export.dtype == name and export.relative_difference <= most and len(export.table) == 5
    assert next(model.parameters()).dtype == dtype, "the caller's network is changed"


class Several(nn.Module):
    """Several outputs, one of them in a list, and what is no tensor."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, *images):
        hidden = self.body(images[0].flatten(1))
        return {"hidden": [hidden, None], "logits": self.head(hidden), "classes": 4}


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_of_several_outputs_each_has_a_name_and_parameters_keep_theirs(exporter, tmp_path):
    export = snows.export_onnx(Several().eval(), images_of(3, 2), tmp_path / "net.onnx", exporter=exporter)
    outputs = [value.name for value in onnx.load(str(export.path)).graph.output]
    assert outputs == ["outputs_hidden_0", "outputs_logits"]
    assert {"body.weight", "head.weight", "body.bias", "head.bias"} <= set(weights_in(export.path))
    assert [value.shape for value in run(export.path, images_of(5, 2))] == [(5, 8), (5, 4)]


class Branching(nn.Module):
    """Another function for images that are bright: one run of it does not stand for all."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (2 if x.sum() > 0 else 1)


class Unknown(nn.Module):
    """An operation that ONNX does not have."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return torch.special.bessel_j0(self.fc(x.flatten(1)))


def test_a_file_that_computes_something_else_is_not_left_and_the_difference_is_named(tmp_path):
    bright = torch.cat([torch.ones(4, 3, 2, 2), -torch.ones(4, 3, 2, 2)])
    with pytest.raises(SnowsError, match=r"dynamo=True.*data-dependent.*outputs differ by .* where 0.0001 passes") as e:
        snows.export_onnx(Branching().eval(), bright, tmp_path / "net.onnx")
    assert not e.value.argument and not list(tmp_path.iterdir())
    export = snows.export_onnx(Branching().eval(), bright, tmp_path / "net.onnx", tolerance=10)
    assert export.exporter == "torchscript" and "GuardOnDataDependent" in export.failed["dynamo"]
    assert export.relative_difference > 0.1 and "not by PyTorch's torch.export" in str(export)


def test_both_reasons_are_named_in_one_sentence_and_nothing_is_printed(tmp_path, capfd):
    with pytest.raises(SnowsError, match=r"model: got a network .*bessel_j0.*dynamo=False.*bessel_j0.*not supported"):
        snows.export_onnx(Unknown().eval(), images_of(4, 2), tmp_path / "net.onnx")
    sys.stdout.flush()
    assert capfd.readouterr() == ("", "")


def test_a_weight_that_the_file_lacks_is_refused(result, tmp_path, monkeypatch):
    whole = exporting.name_weights

    def without_first(file, weights):
        found = whole(file, weights)
        return {name: place for name, place in found.items() if name != "layer1.conv2.weight"}

    monkeypatch.setattr(exporting, "name_weights", without_first)
    with pytest.raises(SnowsError, match=r"the weight 'layer1.conv2.weight' and its zeros are not in the file"):
        snows.export_onnx(result, images_of(), tmp_path / "net.onnx", exporter=FAST)
    assert not list(tmp_path.iterdir())


def test_a_zero_that_is_filled_when_the_file_is_written_is_noticed(result, tmp_path, monkeypatch):
    whole = exporting.write_file

    def filled(file, path):
        whole(file, path)
        written = onnx.load(str(path))
        [tensor] = [one for one in written.graph.initializer if one.name == "layer1.conv2.weight"]
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[values == 0] = 1e-12  # too little for the outputs
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        onnx.save(written, str(path))

    monkeypatch.setattr(exporting, "write_file", filled)
    with pytest.raises(SnowsError, match=r"the zeros of 'layer1.conv2.weight' were moved when the file was written"):
        snows.export_onnx(result, images_of(), tmp_path / "net.onnx", exporter=FAST)
    assert not list(tmp_path.iterdir())


def test_a_folded_weight_with_a_filled_zero_is_none():
    weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 4.0]])
    stored = weight * torch.tensor([[2.0], [3.0]])

    def found():
        tensor = onnx.numpy_helper.from_array(stored.numpy(), "w")
        model = onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], [tensor]))
        return name_weights(model, {"fc.weight": weight})

    assert found()["fc.weight"].scaled
    stored[0, 1] = 1e-9  # rounding, if it were no zero
    assert not found()


class Session:
    """What stands in for ONNX Runtime: it flattens images, and changes what it is asked to."""

    def __init__(self, change):
        self.change = change

    def run(self, names, given):
        answers = given["images"].reshape(len(given["images"]), -1).copy()
        self.change(given["images"], answers)
        return [answers]


def compared(monkeypatch, images, change):
    monkeypatch.setattr(parity, "session_of", lambda path: Session(change))
    return parity.compare(Path("net.onnx"), nn.Flatten().eval(), [images[:25], images[25:]], torch.float32)


@pytest.mark.parametrize("number", [0, 1, 24, 25, 39])
def test_every_image_is_compared_alone_or_in_a_batch(number, monkeypatch):
    images = images_of(40, 2)

    def change(given, answers):
        answers[(given == images[number].numpy()).all((1, 2, 3))] += 1

    found = compared(monkeypatch, images, change)
    assert found.difference == pytest.approx(1, abs=1e-6) and found.images == 40 and found.relative > 0.1


def test_nan_is_as_far_as_can_be_from_any_number(monkeypatch):
    images = images_of(40, 2)

    def change(given, answers):
        answers[0, 0] = np.nan

    assert compared(monkeypatch, images, change).relative == float("inf")
    images[:, 0, 0, 0] = torch.nan
    assert compared(monkeypatch, images, change).relative == 0


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch):
    made, path = tmp_path / "made" / "net.onnx", tmp_path / "net.onnx"
    made.parent.mkdir()
    made.write_text("a new file")
    path.write_text("mine")

    def half(source, target):
        Path(target).write_text("a new")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_files.shutil, "copyfile", half)
    with pytest.raises(OSError, match="No space"):
        onnx_files.place_file(made, path)
    assert path.read_text() == "mine" and sorted(os.listdir(tmp_path)) == ["made", "net.onnx"]


def test_zeros_that_were_trained_away_are_refused(result, tmp_path):
    model = small_resnet().float()
    lost = snows.PruneResult(model, result.masks, result.report, result.manifest, {}, result.weight_names)
    with pytest.raises(SnowsError, match=r"model: got a result whose model has lost the zeros of 'layer1.conv1'"):
        snows.export_onnx(lost, images_of(), tmp_path / "net.onnx")


def test_weights_of_a_large_network_lie_beside_the_file_and_go_with_it(result, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "LARGEST", 100)
    path = tmp_path / "net.onnx"
    for _ in range(2):
        export = snows.export_onnx(result, images_of(), path, exporter=FAST, overwrite=path.exists())
        assert sorted(os.listdir(tmp_path)) == ["net.onnx", "net.onnx.data"]
        assert run(path, images_of(2))[0].shape == (2, 3) and export.agreement == 100
    monkeypatch.undo()
    snows.export_onnx(result, images_of(), path, exporter=FAST, overwrite=True)
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_the_same_network_gives_the_same_bytes_without_a_word_of_this_machine(result, export, tmp_path):
    again = snows.export_onnx(result, images_of(), tmp_path / "net.onnx", exporter=export.exporter)
    first = export.path.read_bytes()
    assert again.path.read_bytes() == first
    assert b".py" not in first and str(Path(torch.__file__).parent).encode() not in first


def test_the_opset_that_is_asked_for_is_the_file_s(result, tmp_path):
    export = snows.export_onnx(result, images_of(), tmp_path / "net.onnx", opset=16, exporter=FAST)
    file = onnx.load(str(export.path))
    assert export.opset == file.opset_import[0].version == 16


def test_what_was_there_stays_unless_it_may_be_replaced(result, tmp_path):
    path = tmp_path / "net.onnx"
    path.write_text("mine")
    with pytest.raises(SnowsError, match=r"path: got .*exists already; expected a new file") as error:
        snows.export_onnx(result, images_of(), path)
    with pytest.raises(SnowsError, match="bessel"):
        snows.export_onnx(Unknown().eval(), images_of(4, 2), path, overwrite=True, exporter=FAST)
    assert error.value.argument == "path" and path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


REFUSED = {
    "path: got .*ends in .onnx": lambda model, folder: snows.export_onnx(model, images_of(), folder / "net.pt"),
    "path: got the folder": lambda model, folder: snows.export_onnx(model, images_of(), folder),
    "path: got .*cannot be written": lambda model, folder: snows.export_onnx(model, images_of(), "/proc/no/net.onnx"),
    "exporter: got": lambda model, folder: snows.export_onnx(model, images_of(), folder / "a.onnx", exporter="dynam"),
    "opset: got 999; expected at most": lambda model, folder: snows.export_onnx(
        model, images_of(), folder / "a.onnx", opset=999
    ),
    "tolerance: got": lambda model, folder: snows.export_onnx(model, images_of(), folder / "a.onnx", tolerance=-1),
    "images: got 0 images": lambda model, folder: snows.export_onnx(model, images_of()[:0], folder / "a.onnx"),
    "images: got shape": lambda model, folder: snows.export_onnx(model, images_of()[:, :2], folder / "a.onnx"),
    "model: got a model in train mode": lambda model, folder: snows.export_onnx(
        small_resnet().train(), images_of(), folder / "a.onnx"
    ),
    "model: got str": lambda model, folder: snows.export_onnx("resnet20", images_of(), folder / "a.onnx"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_mistakes_are_refused_before_any_work(words, result, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "run_exporter", lambda *_: pytest.fail("it was exported"))
    with pytest.raises(SnowsError, match=words) as error:
        REFUSED[words](result, tmp_path)
    assert error.value.argument or words == "images: got shape"
    assert not list(tmp_path.iterdir())


def test_what_was_set_before_is_set_afterwards(result, tmp_path):
    before = [(p.data_ptr(), p.requires_grad) for p in result.module.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    snows.export_onnx(result, images_of(), tmp_path / "net.onnx", exporter=FAST)
    assert [(p.data_ptr(), p.requires_grad) for p in result.module.parameters()] == before
    assert torch.backends.mha.get_fastpath_enabled() == fast and onnx_exporters.logging.root.manager.disable == 0


def test_without_its_extra_it_says_what_to_install(result, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SnowsError, match=r"needs onnxruntime, not installed here.*snows-core\[export\]"):
        snows.export_onnx(result, images_of(), tmp_path / "net.onnx")
