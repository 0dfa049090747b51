"""journal.py: what a folder of records gives back, and which of them go."""

import pytest
import torch

from snows_core.files.journal import Journal, Record

CONFIGURATION = {"k": 5}


def kept(folder):
    """Return the records of a folder as the next run finds them."""
    journal = Journal(folder, CONFIGURATION)
    journal.close()
    return journal.records


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "kept", CONFIGURATION)
    yield journal
    journal.close()


def test_a_record_replaces_those_before_it_and_not_itself(journal):
    for number in range(3):
        journal.add(Record("joint", {"step": number}), replaces=("joint",))
        journal.add(Record("layer", {"number": number}))
    journal.close()
    found = [(record.kind, dict(record.values)) for record in kept(journal.folder)]
    layers = [("layer", {"number": number}) for number in range(3)]
    assert found == [*layers[:2], ("joint", {"step": 2}), layers[2]]


def test_what_lies_behind_a_damaged_record_goes(journal):
    for number in range(4):
        journal.add(Record("layer", {"number": number}, {"weight": torch.full((2,), float(number))}))
    journal.close()
    second = sorted(journal.folder.glob("*.safetensors"))[1]
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="is damaged"):
        again = Journal(journal.folder, CONFIGURATION)
    again.add(Record("layer", {"number": "anew"}))
    again.close()
    assert [record.values["number"] for record in kept(journal.folder)] == [0, "anew"]


def test_tensors_come_back_in_their_strides(journal):
    plain = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {
        "plain": plain,
        "channels last": plain.contiguous(memory_format=torch.channels_last),
        "transposed": torch.arange(6).view(2, 3).T,
    }
    journal.add(Record("layer", {}, tensors))
    journal.close()
    (record,) = kept(journal.folder)
    for name, tensor in tensors.items():
        found = record.tensors[name]
        assert torch.equal(found, tensor) and found.dtype == tensor.dtype
        assert found.stride() == tensor.stride(), f"{name}: sums round by the order of numbers in memory"
