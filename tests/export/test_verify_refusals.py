"""verify refuses what is no promise, or nothing to verify, in one sentence."""

import pytest
import torch
from safetensors.torch import save_file

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import METADATA_KEY


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[" * 100 + "]" * 100,
        "{}",
        '{"pattern": "2:4", "layers": {"fc.weight": 3}}',
        '{"pattern": "2:4", "layers": {"fc.weight": {"layer": "fc", "pattern": "2:4", "shape": [-1], "zeros": 1,'
        ' "support": ""}}}',
    ],
)
def test_a_damaged_promise_is_one_error(text, tmp_path):
    save_file({"fc.weight": torch.ones(2, 4)}, tmp_path / "a.safetensors", metadata={METADATA_KEY: text})
    with pytest.raises(SnowsError, match="whose metadata 'snows' cannot be read"):
        snows.verify(tmp_path / "a.safetensors")


def test_what_cannot_be_verified_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("nothing")
    (tmp_path / "model.pt2").write_bytes(b"PK")
    torch.save([1, 2], tmp_path / "list.pth")
    for source, words in {
        3: "source: got a int",
        tmp_path / "no.safetensors": "does not exist",
        tmp_path / "empty": "no result and no model.safetensors",
        tmp_path / "text.pth": "which cannot be read",
        tmp_path / "model.pt2": "is not opened here",
        tmp_path / "list.pth": "which holds no weight",
    }.items():
        with pytest.raises(SnowsError, match=words):
            snows.verify(source)
    state = {"fc.weight": torch.ones(2, 4)}
    with pytest.raises(SnowsError, match=r"pattern: got 'structured 0\.5'"):
        snows.verify(state, "structured:0.5")
    with pytest.raises(SnowsError, match="against: got"):
        snows.verify(state, against=tmp_path / "empty")
