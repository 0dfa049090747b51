"""Weight files: what is read, what is refused, and that a refusal changes nothing."""

import copy
import hashlib
import os
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn

from snows_core.errors import SnowsError
from snows_core.zoo import sources, weights
from snows_core.zoo.resnet_cifar import ResNetCIFAR, resnet20, resnet56


@pytest.fixture
def model():
    torch.manual_seed(0)
    return resnet20(in_channels=1, width=4)


def _same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "parallel"])
def test_every_usual_form_is_read(tmp_path, model, form):
    state = model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, path)
    other = weights.load_state(resnet20(in_channels=1, width=4), weights.read_state(path), str(path))
    assert _same(model, other) and not other.training


def test_half_precision_comes_back_as_float32(tmp_path, model):
    save_file(
        {key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()},
        tmp_path / "w.safetensors",
    )
    state = weights.read_state(tmp_path / "w.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}


class _Unsafe:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "which is no file"),
        (lambda path: path.write_bytes(b"junk"), "cannot be read"),
        (lambda path: torch.save({"state_dict": _Unsafe()}, path), "cannot be read"),
        (lambda path: torch.save({"epoch": 3}, path), "no state dict"),
        (lambda path: torch.save([torch.zeros(1)], path), "no state dict"),
    ],
)
def test_files_without_weights_are_refused(tmp_path, make, message):
    path = tmp_path / "w.pth"
    make(path)
    with pytest.raises(SnowsError, match=f"weights: got .*{message}") as caught:
        weights.read_state(path)
    assert "\n" not in str(caught.value)


def test_damaged_safetensors_is_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"junk junk junk")
    with pytest.raises(SnowsError, match="cannot be read"):
        weights.read_state(tmp_path / "w.safetensors")


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_change_nothing(model, fault):
    state = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    if fault == "missing":
        del state["fc.weight"]
    elif fault == "unknown":
        state["head.weight"] = torch.zeros(1)
    else:
        state["fc.weight"] = torch.zeros(100, 16)
    before = copy.deepcopy(model)
    with pytest.raises(SnowsError, match=r"1 missing|1 unknown|1 wrongly shaped"):
        weights.load_state(model, state, "a file")
    assert _same(model, before)


def test_published_resnet20_without_network_says_where_to_put_it(tmp_path, monkeypatch, no_network):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(SnowsError, match=r"could not be downloaded .*Place the file at .*resnet20_cifar10-e08b9b71"):
        weights.published_resnet20()
    with pytest.raises(SnowsError, match="download=False"):
        weights.published_resnet20(download=False)


def test_published_resnet20_is_verified_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / weights.RESNET20_FILE).write_bytes(b"another file")
    with pytest.raises(SnowsError, match="wrong checksum"):
        weights.published_resnet20()


CACHED = Path(torch.hub.get_dir()) / "checkpoints" / weights.RESNET20_FILE


@pytest.mark.skipif(not CACHED.is_file(), reason="TORCH_HOME has no published ResNet-20")
def test_published_resnet20_loads_from_the_cache(no_network):
    model = sources.pretrained("published/resnet20")
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_our_resnet_has_the_names_and_sizes_of_the_published_one():
    state = resnet20().state_dict()
    for name in ("conv1.weight", "bn1.running_var", "layer1.2.conv2.weight", "layer2.0.downsample.0.weight", "fc.bias"):
        assert name in state
    assert state["layer2.0.downsample.0.weight"].shape == (32, 16, 1, 1)
    assert sum(isinstance(module, nn.Conv2d) for module in resnet20().modules()) == 21
    assert sum(isinstance(module, nn.Conv2d) for module in resnet56().modules()) == 57
    with pytest.raises(SnowsError, match="depth: got 21"):
        ResNetCIFAR(21)


def test_our_resnet_is_traceable_and_takes_any_size():
    model = resnet20(in_channels=1, num_classes=7).eval()
    traced = torch.fx.symbolic_trace(model)
    for size in (16, 32):
        x = torch.rand(2, 1, size, size)
        assert torch.equal(traced(x), model(x)) and model(x).shape == (2, 7)


def test_cached_hub_file_needs_no_network(tmp_path, monkeypatch, no_network):
    """The tiny test network of timm stands for all: its file in the hub's cache is enough."""
    name = "test_resnet.r160_in1k"
    torch.manual_seed(0)
    original = timm.create_model(name)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def cached(repository, file):
        asked.append((repository, file))
        return str(tmp_path / file) if (tmp_path / file).exists() else None

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    model = sources.pretrained(f"timm/{name}")
    assert asked == [(f"timm/{name}", "model.safetensors")]
    assert _same(model, original) and not model.training


def hub_cache(root, repository, name, content, etag):
    """Lay a file into a folder as huggingface_hub keeps it: under its checksum, with a link of its name."""
    folder = root / f"models--{repository.replace('/', '--')}"
    for part in ("refs", "blobs", "snapshots/rev"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("rev")
    (folder / "blobs" / etag).write_bytes(content)
    (folder / "snapshots" / "rev" / name).symlink_to(folder / "blobs" / etag)


@pytest.mark.parametrize("large", [True, False])
def test_a_damaged_file_of_the_hubs_cache_is_refused(large, tmp_path, monkeypatch, no_network):
    name = "test_resnet.r160_in1k"
    original = timm.create_model(name)
    content = save(original.state_dict())
    etag = hashlib.sha256(content) if large else hashlib.sha1(b"blob %d\0" % len(content) + content)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    hub_cache(tmp_path, f"timm/{name}", "model.safetensors", content, etag.hexdigest())
    assert _same(sources.pretrained(f"timm/{name}"), original)
    (blob,) = (tmp_path / f"models--timm--{name}" / "blobs").iterdir()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SnowsError, match=r"wrong checksum .* Delete it"):
        sources.pretrained(f"timm/{name}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("timm/vit_base_patch16_224.augreg_in1k", "hub cannot be reached.*weights='<path>'"),
        ("hub/edadaltocg/resnet50_cifar100", "hub cannot be reached.*weights='<path>'"),
        ("torchvision/resnet50:IMAGENET1K_V1", "could not be downloaded.*weights='<path>'"),
    ],
)
def test_hub_unreachable_is_one_sentence(source, message, monkeypatch, no_network):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: None)
    with pytest.raises(SnowsError, match=message) as caught:
        sources.pretrained(source)
    assert "\n" not in str(caught.value)


def test_a_host_that_does_not_exist_is_noticed_at_once(monkeypatch):
    from snows_core.zoo import fetch

    monkeypatch.setattr(fetch.urllib.request, "getproxies", dict)
    assert not fetch.reachable("https://localhost:9", seconds=1)
    monkeypatch.setattr(fetch.urllib.request, "getproxies", lambda: {"https": "http://proxy"})
    assert fetch.reachable("https://localhost:9")
