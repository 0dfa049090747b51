"""Splits: what comes out, in which order, and what is refused."""

import pytest
import torch
from torch.utils.data import TensorDataset

from snows_core.errors import SnowsError
from snows_core.zoo.bundle import ArrayImages, DataBundle, Split


@pytest.fixture
def split():
    images = torch.arange(40.0).view(10, 1, 2, 2)
    return Split(TensorDataset(images, torch.arange(10)), [8, 1, 5, 3, 0, 9])


def test_tensors_keep_the_order_of_the_split(split):
    images, labels = split.tensors()
    assert labels.tolist() == [8, 1, 5, 3, 0, 9]
    assert images.shape == (6, 1, 2, 2)
    assert images[0, 0, 0, 0] == 32
    assert split.tensors(2)[1].tolist() == [8, 1]
    assert split.tensors(indices=[5, 0])[1].tolist() == [9, 8]


def test_sample_is_seeded_and_without_replacement(split):
    first, again, other = split.sample(4, seed=3), split.sample(4, seed=3), split.sample(4, seed=4)
    assert torch.equal(first[2], again[2]) and torch.equal(first[0], again[0])
    assert len(set(first[2].tolist())) == 4
    assert not torch.equal(first[2], other[2])
    images, labels = split.tensors(indices=first[2])
    assert torch.equal(images, first[0]) and torch.equal(labels, first[1])
    assert sorted(split.sample(6)[2].tolist()) == list(range(6))


def test_drawn_images_are_the_sample_read_a_batch_at_a_time(split):
    batches, positions = split.drawn(5, seed=3, batch_size=2)
    images, _, same = split.sample(5, seed=3)
    parts = list(batches)
    assert [len(part) for part in parts] == [2, 2, 1] and torch.equal(torch.cat(parts), images)
    assert torch.equal(positions, same)


def test_sample_does_not_touch_the_global_generator(split):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    split.sample(3)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_sample_of_less_than_one_is_refused(split, n):
    with pytest.raises(SnowsError, match=r"^n: got .*expected an integer >= 1"):
        split.sample(n)


def test_sample_of_too_many_is_refused(split):
    with pytest.raises(SnowsError, match="n: got 7 images to read; expected at most 6, all that this split has"):
        split.sample(7)


@pytest.mark.parametrize("indices", [[6], [-1], []])
def test_positions_outside_are_refused(split, indices):
    with pytest.raises(SnowsError, match="positions from 0 to 5"):
        split.tensors(indices=indices)


def test_count_and_positions_together_are_refused(split):
    with pytest.raises(SnowsError, match="either n or indices"):
        split.tensors(2, indices=[0])


def test_loader_drops_nothing(split):
    batches = list(split.loader(4))
    assert [len(x) for x, _ in batches] == [4, 2]
    assert torch.cat([x for x, _ in batches]).equal(split.tensors()[0])
    with pytest.raises(SnowsError, match="batch_size"):
        split.loader(0)


def test_bytes_and_floats_are_normalised_alike():
    pixels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
    expected = torch.tensor([[[-1.0, 1.0]]])
    assert ArrayImages(pixels, torch.tensor([1]), (0.5,), (0.5,))[0][0].equal(expected)
    assert ArrayImages(pixels / 255, torch.tensor([1]), (0.5,), (0.5,))[0][0].equal(expected)


def test_missing_labels_are_named_where_accuracy_is_asked():
    images = [torch.zeros(1, 2, 2) for _ in range(3)]
    split = Split(images, labelled=False)
    assert split.tensors()[1] is None
    assert next(iter(split.loader(2))).shape == (2, 1, 2, 2)
    bundle = DataBundle("folder:x", split, split, [], (1, 2, 2), (0.5,), (0.5,), "files")
    with pytest.raises(SnowsError, match=r"no labels.*one folder a class"):
        bundle.test_tensors()
