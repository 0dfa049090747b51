"""A hub folder gives the pruned network back, bit for bit, to those who do not have this package; its card is true."""

import dataclasses
import json
import os
import sysconfig
import venv
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from elsewhere import card_lines, run_elsewhere
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export.hub import hub_folder as hub
from snows_core.export.hub.push import on_hub
from snows_core.loss.intervals import wilson

pytestmark = pytest.mark.filterwarnings("ignore:.*calibration images")
FILES = ["README.md", "config.json", "model.safetensors"]


def pruned(model, images, **options):
    options = {"pattern": "2:4", "effort": "quick", "update": "none"} | options
    return snows.prune(model.float().eval(), images.float(), **options)


TIMM = {
    "another input": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=4, num_classes=5
    ),
    "features": lambda: timm.create_model("resnet10t", num_classes=0),
    "grey": lambda: timm.create_model("resnet10t", in_chans=1, num_classes=3),
}


@pytest.fixture(scope="module", params=TIMM)
def of_timm(request, tmp_path_factory):
    torch.manual_seed(0)
    model = TIMM[request.param]()
    images = torch.rand(4, 1 if request.param == "grey" else 3, 32, 32)
    result = pruned(model, images)
    return result, images, snows.hub_folder(result, tmp_path_factory.mktemp("hub") / request.param.replace(" ", "-"))


def test_timm_makes_the_network_from_the_folder_in_one_call(of_timm):
    result, images, made = of_timm
    assert made.library == "timm" and sorted(path.name for path in made.path.iterdir()) == FILES
    again = timm.create_model(f"local-dir:{made.path}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(again(images), result.model(images))
    assert type(again) is type(result.model) and again.num_classes == result.model.num_classes
    config = json.loads((made.path / "config.json").read_text())
    assert {"architecture", "num_classes", "num_features", "pretrained_cfg"} <= config.keys()
    assert "license" not in config["pretrained_cfg"]  # timm states that of weights which these are not


def test_timm_makes_it_from_the_hub_by_the_lines_that_are_uploaded(of_timm, monkeypatch):
    result, images, made = of_timm
    asked = []

    def download(repo_id, filename, **options):
        asked.append(repo_id)
        if not (made.path / filename).is_file():
            raise EntryNotFoundError(filename)
        return str(made.path / filename)

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", download)
    config = json.loads((made.path / "config.json").read_text())
    card, names = on_hub((made.path / "README.md").read_text(), config, made.path, "user/net"), {}
    exec(card_lines(card), names)
    with torch.no_grad():
        assert torch.equal(names["model"](images), result.model(images))
    assert set(asked) == {"user/net"}


def test_a_network_changed_by_hand_is_not_said_to_be_timms(tmp_path):
    model = timm.create_model("resnet10t", num_classes=7)
    model.maxpool = nn.Identity()  # no parameter says so
    made = snows.hub_folder(pruned(model, random_images(4, size=32)), tmp_path / "hub")
    assert made.library == "pytorch"
    assert json.loads((made.path / "config.json").read_text())["class"] == "timm.models.resnet.ResNet"


def test_a_network_of_ones_own_is_a_program_beside_its_weights(tmp_path):
    images = random_images(4).float()
    result = pruned(small_resnet(), images)
    about = snows.About(license="mit", build=("toys", "toys.small_resnet().float()"))
    made = snows.hub_folder(result, tmp_path / "hub", images=images, about=about)
    assert sorted(path.name for path in made.path.iterdir()) == ["README.md", "config.json", "model.pt2", FILES[2]]
    card = (made.path / "README.md").read_text()
    for block in (0, 1):
        names = {}
        exec(card_lines(card, block).replace('"hub/', f'"{made.path}/'), names)
        with torch.no_grad():
            assert torch.equal(names["model"](images), result.model(images))
    config = json.loads((made.path / "config.json").read_text())
    assert config["input_size"] == [3, 8, 8] and config["build"] == "toys.small_resnet().float()"
    plain = snows.hub_folder(result, made.path, overwrite=True)  # without images there is no program, nor an old one
    assert sorted(path.name for path in made.path.iterdir()) == FILES and "small_resnet" not in str(plain)
    assert "(...)" in plain.loading[1] and len(plain.loading) == 3


class Recorded(nn.Module):
    """A network that notices that it is recorded as a program, and is another one then."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return self.fc(x.flatten(1)) * (2 if torch.compiler.is_compiling() else 1)


def test_a_program_that_answers_otherwise_is_not_in_the_folder(tmp_path):
    images = random_images(4, size=2).float()
    made = snows.hub_folder(pruned(Recorded(), images, layers=["fc"]), tmp_path / "hub", images=images)
    assert sorted(path.name for path in made.path.iterdir()) == FILES
    assert "program" not in json.loads((made.path / "config.json").read_text())


def test_a_network_of_a_library_needs_no_program(tmp_path):
    model = torchvision.models.get_model("squeezenet1_1", num_classes=4)
    images = random_images(2, size=32).float()
    build = ("torchvision", "torchvision.models.get_model('squeezenet1_1', num_classes=4)")
    result = pruned(model, images)
    made = snows.hub_folder(result, tmp_path / "hub", images=images, about=snows.About(build=build))
    assert sorted(path.name for path in made.path.iterdir()) == FILES
    names = {}
    exec("\n".join(made.loading), names)
    with torch.no_grad():
        assert torch.equal(names["model"](images), result.model(images))


def test_without_this_package_the_lines_of_the_card_give_the_network(tmp_path):
    """Three folders, and the plain folder of a result, in one process that has only the libraries."""
    vit, grey = TIMM["another input"](), small_resnet()
    images = {"vit": torch.rand(4, 3, 32, 32), "own": random_images(4).float()}
    results = {"vit": pruned(vit, images["vit"]), "own": pruned(grey, images["own"])}
    code = "import safetensors.torch, torch\n"
    for name, result in results.items():
        snows.hub_folder(result, tmp_path / name, images=images[name])
        with torch.no_grad():
            save_file({"images": images[name], "outputs": result.model(images[name])}, tmp_path / f"{name}.safetensors")
        code += card_lines((tmp_path / name / "README.md").read_text()) + "\n" + checked(name)
    model = timm.create_model("resnet10t", num_classes=7).eval()
    result = pruned(model, torch.rand(4, 3, 32, 32))
    result.save(tmp_path / "pruned")
    with torch.no_grad():
        x = torch.rand(4, 3, 32, 32)
        save_file({"images": x, "outputs": result.model(x)}, tmp_path / "plain.safetensors")
    code += PLAIN + checked("plain")
    assert run_elsewhere(code, tmp_path).split() == ["vit", "own", "plain"]


@pytest.mark.slow
def test_a_fresh_environment_with_the_libraries_alone_loads_it(of_timm, tmp_path):
    """A virtual environment of its own, whose one .pth file names the folder of the libraries."""
    result, images, made = of_timm
    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    there = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "fresh")})
    (Path(there) / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    with torch.no_grad():
        save_file({"images": images, "outputs": result.model(images)}, made.path.parent / "fresh.safetensors")
    code = "import safetensors.torch, torch\n" + card_lines((made.path / "README.md").read_text()) + checked("fresh")
    assert run_elsewhere(code, made.path.parent, (str(python),)).split() == ["fresh"]


# As the README has them, for a folder that `snows prune` or result.save wrote.
PLAIN = """
import safetensors.torch, timm
model = timm.create_model("resnet10t", num_classes=7).eval()
model.load_state_dict(safetensors.torch.load_file("pruned/model.safetensors"))
"""


def checked(name):
    return f"""
known = safetensors.torch.load_file("{name}.safetensors")
with torch.no_grad():
    assert torch.equal(model(known["images"]), known["outputs"]), "{name}"
print("{name}")
"""


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    made = pruned(small_resnet(), random_images(8), exclude=["layer1*"])
    made.manifest["evaluation"] = {
        "dense": {"images": 500, "accuracy": 87.2, "agreement": None, "kl": None},
        "pruned": {"images": 500, "accuracy": 84.0, "agreement": 90.0, "kl": 0.125},
        "sample": {"split": "test", "images": 500, "of": 1000, "seed": 0},
    }
    return made


def card_of(result, folder, **options):
    return (snows.hub_folder(result, folder, **options).path / "README.md").read_text()


def test_a_card_says_what_was_done_and_measured(result, tmp_path):
    card = card_of(result, tmp_path / "hub", about=snows.About("apache-2.0", "timm/resnet10t.c3_in1k"))
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "timm/resnet10t.c3_in1k", "pytorch")
    assert data.metrics == ["accuracy", "agreement", "kl"] and "pruning" in data.tags
    for share in (87.2, 84.0, 90.0):
        low, high = (100 * bound for bound in wilson(share / 100, 500))
        assert f"{share:.2f} % [{low:.2f}, {high:.2f}]" in card
    assert "| 0.125 | 500 |" in card and "Images: 500 of the 1,000 of the test split." in card
    for row in result.report.itertuples():
        assert f"{row.layer}" in card and (row.reason in card if row.status == "skipped" else True)
    assert "`layer1.conv1`" in card and "50.0%" in card and "`2:4`" in card
    assert f"torch {torch.__version__.split('+')[0]}" in card and "8 images" in card and "seed 0" in card
    assert "without labels" in card and "those of the dense network." in card  # update="none"
    fitted = dataclasses.replace(result, manifest=result.manifest | {"update": "snows", "labels": "given, 5"})
    card = card_of(fitted, tmp_path / "fitted")
    assert "the next K = 5 operations stay" in card and "with their labels" in card
    assert "sparse tensor cores" in card and "not retrained" in card


def test_what_is_not_known_is_not_made_up(result, tmp_path):
    manifest = {name: value for name, value in result.manifest.items() if name != "evaluation"}
    card = card_of(dataclasses.replace(result, manifest=manifest), tmp_path / "hub")
    data = ModelCard(card).data
    assert data.license == "unknown" and data.base_model is None and data.metrics is None and data.datasets is None
    assert "Not measured" in card and "Unknown: see the base model" in card and "% [" not in card
    assert "does not say of which data set" in card


def test_a_bare_record_makes_a_card_all_the_same(result, tmp_path):
    card = card_of(dataclasses.replace(result, manifest={"pattern": "2:4"}), tmp_path / "hub")
    assert "Not measured" in card and "unknown" in card and "None" not in card


def test_a_card_tells_no_path_of_the_machine(result, tmp_path):
    source = {"model": "digits-resnet20", "data": f"folder:{tmp_path}/photos", "weights": f"{tmp_path}/own/best.pth"}
    manifest = result.manifest | {"source": source}
    card = card_of(dataclasses.replace(result, manifest=manifest), tmp_path / "hub")
    assert str(tmp_path) not in card and "folder:IMAGES" in card and "--weights best.pth" in card
    assert "a folder of the user's own" in card


def test_features_get_an_interval_for_neighbours_alone(result, tmp_path):
    found = {"images": 100, "cosine": 0.875, "cka": 0.75, "neighbours": 50.0}
    manifest = result.manifest | {"evaluation": {"dense": {"images": 100}, "pruned": found}}
    card = card_of(dataclasses.replace(result, manifest=manifest), tmp_path / "hub")
    assert "| pruned | 50.00 % [40.38, 59.62] | 0.875 | 0.75 | 100 |" in card
    assert ModelCard(card).data.pipeline_tag == "image-feature-extraction"


def test_another_type_is_said_with_what_it_lost(result, tmp_path):
    state = result.state | {"fc.bias": torch.full_like(result.state["fc.bias"], 1e-9)}
    changed = dataclasses.replace(result, state=state)
    card = card_of(changed, tmp_path / "hub", dtype="float16")
    assert "Written in float16." in card and "too small for float16" in card and "Measured before" in card
    assert load_file(tmp_path / "hub" / "model.safetensors")["fc.weight"].dtype == torch.float16


def test_mistakes_are_one_sentence_and_leave_nothing(result, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SnowsError, match=r"folder: got .*mine, which holds other files \(notes.txt\)"):
        snows.hub_folder(result, tmp_path / "mine")
    with pytest.raises(SnowsError, match="one with a model"):
        snows.hub_folder(dataclasses.replace(result, model=None), tmp_path / "hub")
    report = result.report.assign(status="not reached")
    with pytest.raises(SnowsError, match="interrupted"):
        snows.hub_folder(dataclasses.replace(result, report=report), tmp_path / "hub")
    snows.hub_folder(result, tmp_path / "there")
    with pytest.raises(SnowsError, match="holds a hub folder already"):
        snows.hub_folder(result, tmp_path / "there")
    before = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}

    def fail(*arguments):
        raise OSError("no space")

    monkeypatch.setattr(hub, "model_card", fail)
    for name in ("hub", "there"):
        with pytest.raises(OSError, match="no space"):
            snows.hub_folder(result, tmp_path / name, overwrite=True)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "there"]


def test_what_is_drawn_afterwards_does_not_depend_on_it(tmp_path):
    result = pruned(timm.create_model("resnet10t", num_classes=7), torch.rand(4, 3, 32, 32))
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    snows.hub_folder(result, tmp_path / "hub")
    assert torch.equal(torch.rand(3), wanted)
