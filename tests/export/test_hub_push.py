"""Uploading without a network: what a hub is asked to take, and one sentence where it cannot be asked."""

import json
from pathlib import Path

import huggingface_hub
import pytest
from elsewhere import card_lines

import snows_core as snows
from snows_core.errors import SnowsError

TOKEN = "hf_secretsecretsecret"
CARD = """---
license: mit
---

# A network

Needs timm. `net` is the folder of this file.

```python
import timm
model = timm.create_model("local-dir:net", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

Words of the owner's.
"""


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "net"
    path.mkdir()
    (path / "model.safetensors").write_bytes(b"weights")
    config = {"architecture": "resnet10t", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 32, 32]}}
    (path / "config.json").write_text(json.dumps(config))
    (path / "README.md").write_text(CARD)
    return path


class Hub:
    """What stands in for the hub: it keeps what it was asked."""

    def __init__(self, token=None):
        self.asked.append(("token", token))

    asked: list = []  # noqa: RUF012 # of all instances; emptied by the fixture
    failure: Exception | None = None

    def create_repo(self, repo_id, *, private=False, exist_ok=False):
        if self.failure:
            raise self.failure
        self.asked.append(("create", repo_id, private, exist_ok))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.asked.append(("upload", repo_id, files, commit_message))


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(Hub, "asked", [])
    return Hub.asked


def test_a_folder_is_uploaded_with_a_card_that_loads_it_from_the_hub(folder, asked):
    (folder / "notes.txt").write_text("not for others")
    url = snows.push_to_hub(folder, "user/net-2to4", private=True, token=TOKEN)
    assert url == "https://huggingface.co/user/net-2to4"
    assert asked[0] == ("token", TOKEN) and asked[1] == ("create", "user/net-2to4", True, True)
    _, repo_id, files, message = asked[2]
    assert repo_id == "user/net-2to4" and files.keys() == {"model.safetensors", "config.json", "README.md"}
    assert files["model.safetensors"] == b"weights"
    card = files["README.md"].decode()
    assert 'timm.create_model("hf_hub:user/net-2to4", pretrained=True)' in card_lines(card)
    assert "local-dir" not in card and "folder of this file" not in card and "Words of the owner's." in card
    assert TOKEN not in card + message and (folder / "README.md").read_text() == CARD


def test_weights_of_another_network_are_fetched_by_the_lines_of_the_card(folder, asked):
    config = {"class": "torchvision.models.ResNet", "import": "torchvision", "build": "torchvision.models.resnet18()"}
    (folder / "config.json").write_text(json.dumps(config))
    lines = [
        "import safetensors.torch, torchvision",
        "model = torchvision.models.resnet18().eval()",
        'model.load_state_dict(safetensors.torch.load_file("net/model.safetensors"))',
    ]
    (folder / "README.md").write_text("\n".join(["---", "---", "```python", *lines, "```", ""]))
    snows.push_to_hub(folder, "user/net", token=TOKEN)
    assert card_lines(asked[2][2]["README.md"].decode()).splitlines() == [
        "import huggingface_hub, safetensors.torch, torchvision",
        "model = torchvision.models.resnet18().eval()",
        'model.load_state_dict(safetensors.torch.load_file(huggingface_hub.hf_hub_download("user/net",'
        ' "model.safetensors")))',
    ]


def test_the_token_that_is_stored_is_taken(folder, asked, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    snows.push_to_hub(folder, "user/net")
    assert asked[0] == ("token", TOKEN) and asked[1][2] is False


def test_without_a_token_nothing_is_asked(folder, asked):
    with pytest.raises(SnowsError, match=r"token: got none; .*hf auth login") as raised:
        snows.push_to_hub(folder, "user/net")
    assert not raised.value.argument and not asked


def test_a_hub_that_cannot_be_reached_is_one_sentence_without_the_token(folder, asked, monkeypatch):
    monkeypatch.setattr(Hub, "failure", ConnectionError(f"no route\nfor Bearer {TOKEN}"))
    with pytest.raises(SnowsError, match="no route for Bearer") as raised:
        snows.push_to_hub(folder, "user/net", token=TOKEN)
    assert TOKEN not in str(raised.value) and not raised.value.argument
    assert raised.value.__suppress_context__ and raised.value.__cause__ is None  # a traceback has no token either
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("lost", ["model.safetensors", "config.json", "README.md"])
def test_a_folder_that_is_none_is_refused(folder, asked, lost):
    (folder / lost).unlink()
    with pytest.raises(SnowsError, match=rf"folder: got .* no {lost}; .*hf-hub-folder") as raised:
        snows.push_to_hub(folder, "user/net", token=TOKEN)
    assert raised.value.argument == "folder" and not asked


@pytest.mark.parametrize(("file", "text"), [("config.json", "[1]"), ("config.json", "{"), ("README.md", "# notes")])
def test_files_of_something_else_are_refused(folder, asked, file, text):
    (folder / file).write_text(text)
    with pytest.raises(SnowsError, match="folder: got") as raised:
        snows.push_to_hub(folder, "user/net", token=TOKEN)
    assert raised.value.argument == "folder" and not asked


@pytest.mark.parametrize("name", ["net", "a/b/c", "user/..", "user/na me", "", 3])
def test_names_that_no_hub_takes_are_refused(folder, asked, name):
    with pytest.raises(SnowsError, match="repo_id: got"):
        snows.push_to_hub(folder, name, token=TOKEN)
    assert not asked
