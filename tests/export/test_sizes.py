"""sizes: every formula equals the bytes of a really packed buffer, which is unpacked; compressed is compressed."""

from __future__ import annotations

import io
import math
import zipfile

import numpy as np
import pytest
import scipy.sparse
import torch
import zstandard
from results import made_up
from torch import nn
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import size_words
from snows_core.export.storage import packing
from snows_core.masks.patterns import NM, Unstructured


def weight_of(pattern, shape=(48, 64)):
    weight = torch.randn(shape)
    return (weight * pattern.mask(weight.abs())).half().numpy()


def bits_of(numbers, width):
    return np.packbits(((np.asarray(numbers)[:, None] >> np.arange(width)) & 1).astype(np.uint8).ravel())


def numbers_of(packed, width, count):
    return (np.unpackbits(packed)[: count * width].reshape(count, width) << np.arange(width)).sum(1)


def places_of(weight, n, m):
    """Return, for each group of m inputs, the places of its n stored values in order: kept ones, then some zeros."""
    groups = weight.reshape(-1, m)
    order = np.argsort(groups == 0, axis=1, kind="stable")[:, :n]
    return groups, np.sort(order, axis=1)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (4, 8), (1, 16), (3, 6)])
def test_packed_groups(n, m):
    weight = weight_of(NM(n, m), (40, 48))
    groups, places = places_of(weight, n, m)
    width = math.ceil(math.log2(m))
    buffer = np.take_along_axis(groups, places, 1).tobytes() + bits_of(places.ravel(), width).tobytes()
    assert len(buffer) == packing.group_packed(weight.size, n, m, 2)

    values = np.frombuffer(buffer[: places.size * 2], np.float16).reshape(places.shape)
    read = numbers_of(np.frombuffer(buffer[places.size * 2 :], np.uint8), width, places.size).reshape(places.shape)
    unpacked = np.zeros_like(groups)
    np.put_along_axis(unpacked, read, values, 1)
    assert np.array_equal(unpacked.reshape(weight.shape), weight)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_packed_groups_with_all_places_as_one_number(n, m):
    weight = weight_of(NM(n, m), (8, 32))
    groups, places = places_of(weight, n, m)
    rank = [sum(math.comb(int(place), i + 1) for i, place in enumerate(row)) for row in places]  # combinatorial number
    whole = sum(one * math.comb(m, n) ** i for i, one in enumerate(rank))
    size = packing.group_packed_fewest(weight.size, n, m, 2) - places.size * 2
    packed = whole.to_bytes(size, "little")  # fails where it does not fit
    most = math.comb(m, n) ** len(groups) - 1
    assert size == -(-most.bit_length() // 8), "one byte fewer would not hold all choices"

    whole, found = int.from_bytes(packed, "little"), []
    for _ in groups:
        whole, one = divmod(whole, math.comb(m, n))
        row = []
        for i in range(n, 0, -1):
            place = max(p for p in range(m) if math.comb(p, i) <= one)
            one -= math.comb(place, i)
            row.append(place)
        found.append(row[::-1])
    assert np.array_equal(np.array(found), places)


@pytest.mark.parametrize("index", [np.int32, np.int16])
def test_compressed_rows_are_scipys(index):
    weight = weight_of(Unstructured(0.8)).astype(
        np.float32
    )  # SciPy has no half precision; its values count 2 bytes each
    matrix = scipy.sparse.csr_matrix(weight)
    matrix.indices, matrix.indptr = matrix.indices.astype(index), matrix.indptr.astype(np.int32)
    size = matrix.data.astype(np.float16).nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    kept = int((weight != 0).sum())
    assert size == packing.compressed_rows(len(weight), kept, 2, np.dtype(index).itemsize)
    assert np.array_equal(matrix.toarray(), weight)


def test_16_bit_columns_reach_as_far_as_the_formula_says():
    assert np.iinfo(np.int16).max == packing.INT16_COLUMNS - 1


@pytest.mark.parametrize("shape", [(48, 64), (3, 3)])
def test_bitmap(shape):
    weight = weight_of(Unstructured(0.6), shape)
    buffer = np.packbits(weight.ravel() != 0).tobytes() + weight[weight != 0].tobytes()
    assert len(buffer) == packing.bitmap(weight.size, int((weight != 0).sum()), 2)
    kept = np.unpackbits(np.frombuffer(buffer[: -(-weight.size // 8)], np.uint8))[: weight.size].astype(bool)
    unpacked = np.zeros(weight.size, np.float16)
    unpacked[kept] = np.frombuffer(buffer[-(-weight.size // 8) :], np.float16)
    assert np.array_equal(unpacked.reshape(shape), weight)


def two_layers():
    """One 2:4 layer, one unstructured, one dense with a buffer of whole numbers."""
    net = nn.Sequential(nn.Linear(64, 48), nn.Conv2d(16, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))
    with torch.no_grad():
        net[0].weight.mul_(NM(2, 4).mask(net[0].weight.abs()))
        net[1].weight.mul_(Unstructured(0.5).mask(net[1].weight.abs()))
    return net


def test_the_table_adds_up():
    net = two_layers()
    frame = snows.sizes(net).set_index("storage")
    first, second = net[0].weight.numel(), net[1].weight.numel()
    floats = sum(v.numel() for v in net.state_dict().values() if v.is_floating_point())
    dense = frame.loc[["dense float32", "dense float16"]]
    assert dense["pruned_weights"].tolist() == [4 * (first + second), 2 * (first + second)]
    assert dense["whole_model"].tolist() == [4 * floats + 8, 2 * floats + 8]  # a count of batches is whole: 8 bytes
    assert frame.loc["2:4 packed", "pruned_weights"] == first + first // 8 + 2 * second
    assert frame.loc["CSR, int32 columns", "pruned_weights"] == 6 * (first + second) // 2 + 4 * (48 + 1 + 8 + 1)
    assert frame.loc["CSR, int16 columns", "pruned_weights"] == 4 * (first + second) // 2 + 4 * (48 + 1 + 8 + 1)
    assert frame.loc["bitmap", "pruned_weights"] == (first + second) // 8 + (first + second)
    formulas = frame[frame["how"] == "formula"]
    rest = 2 * floats + 8 - 2 * (first + second)
    assert (formulas["whole_model"] - formulas["pruned_weights"]).iloc[1:].tolist() == [rest] * (len(formulas) - 1)
    assert frame["share"].tolist() == pytest.approx((frame["whole_model"] / frame["whole_model"].iloc[0]).tolist())
    assert frame.index[frame["faster"] != "no"].tolist() == ["2:4 packed"]


def test_compressed_is_really_compressed():
    net = two_layers()
    frame = snows.sizes(net).set_index("storage")
    state = {name: v.half() if v.is_floating_point() else v for name, v in sorted(net.state_dict().items())}
    content = {name: v.numpy().tobytes() for name, v in state.items()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, raw in content.items():
            archive.writestr(name, raw)
    assert frame.loc["zip of float16", "whole_model"] == len(buffer.getvalue())
    one = zstandard.ZstdCompressor(level=3).compress(b"".join(content.values()))
    assert frame.loc["zstd of float16", "whole_model"] == len(one)
    assert (
        frame.loc["zip of float32", "formula"] == "deflate, level 6"
        and "level 3" in frame.loc["zstd of float32", "formula"]
    )
    assert (frame["pruned_weights"] <= frame["whole_model"]).all()


def test_other_nm_and_wide_rows():
    net = nn.Sequential(nn.Linear(16, 8), nn.Linear(40_000, 2))
    with torch.no_grad():
        net[0].weight.mul_(NM(4, 8).mask(net[0].weight.abs()))
        net[1].weight.mul_(Unstructured(0.5).mask(net[1].weight.abs()))
    frame = snows.sizes(net).set_index("storage")
    assert "2:4 packed" not in frame.index and "no layer holds 2:4" in size_words(frame.reset_index())
    assert frame.loc["N:M packed (4:8)", "pruned_weights"] == 64 * 2 + 64 * 3 // 8 + 80_000 * 2
    assert frame.loc["CSR, int16 columns", "pruned_weights"] == (64 * 4 + 4 * 9) + (
        40_000 * 6 + 4 * 3
    )  # too wide for 16
    widest = nn.Linear(32_768, 1)  # columns 0 to 32,767
    with torch.no_grad():
        widest.weight.mul_(Unstructured(0.5).mask(widest.weight.abs()))
    assert snows.sizes(widest).set_index("storage").loc["CSR, int16 columns", "pruned_weights"] == 16_384 * 4 + 4 * 2


def test_sentences_say_who_wins():
    equal = nn.Linear(64, 64)
    with torch.no_grad():
        equal.weight.copy_(torch.tensor([1.0, 0.0, 1.0, 0.0]).repeat(64, 16))
    assert "less than the smallest formula" in " ".join(size_words(snows.sizes(equal)).split())
    text = " ".join(size_words(snows.sizes(two_layers())).split())
    assert "more than the smallest formula" in text and "None but 2:4 packed runs faster" in text


@pytest.mark.usefixtures("few_images_are_fine")
def test_results_with_and_without_a_model(tmp_path):
    result = snows.prune(small_resnet(), random_images(8), "2:4", update="none", effort="quick", progress=False)
    frame = snows.sizes(result)
    assert snows.sizes(result.module).equals(frame)
    assert snows.sizes(snows.load(result.save(tmp_path / "result"))).equals(frame)
    assert frame["pruned_weights"].iloc[0] == 4 * int(result.report.query("status == 'pruned'")["weights"].sum())


def test_mistakes_are_one_sentence():
    with pytest.raises(SnowsError, match="model: got a network whose layers have no zeros; expected a pruned one"):
        snows.sizes(nn.Linear(4, 4))
    with pytest.raises(SnowsError, match="model: got str"):
        snows.sizes("resnet50")
    assert len(snows.sizes(made_up()))
