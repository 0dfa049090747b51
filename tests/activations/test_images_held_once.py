"""Calibration images are held once: while layers are solved, the shuffled tensor is the only copy that a run makes."""

import gc

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset
from toys import layer_named, random_images, small_resnet

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.activations.calibration import shuffled
from snows_core.loss.joint import JointLoss
from snows_core.network.graph import Network

COUNT, SHAPE = 40, (3, 10, 6)  # no activation of the network has this shape
IMAGE = 3 * 10 * 6 * 4  # bytes


def images():
    return torch.randn(COUNT, *SHAPE, generator=torch.Generator().manual_seed(0))


def held():
    """Bytes of every tensor of images that Python still reaches, by place in memory; views share one."""
    tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.ndim == 4 and tensor.shape[1:] == SHAPE]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


class Made(Dataset):
    """Images that are made when they are asked for, so that nobody but the run holds them."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(index))


def handed_over():
    yield from (part.clone() for part in images().split(7))


SOURCES = {
    "a tensor": lambda: images(),
    "batches": lambda: list(part.clone() for part in images().split(7)),
    "a loader of a tensor": lambda: DataLoader(TensorDataset(images()), batch_size=16),
    "a loader": lambda: DataLoader(Made(), batch_size=16),
    "a generator": handed_over,
}
# What a run may hold beside the shuffled images: a few examples, and a step's batch where it is refined.
RUNS = {
    "fast": (1.5, {}),
    "paper": (1.5, {"recipe": "paper", "cg_iterations": 2, "batch_size": 16}),
    "bounded": (1.5, {"max_memory": 1e6}),
    "refined": (2.5, {"k": 0, "refine": 2}),
}


@pytest.mark.parametrize(
    "source, run",
    [*((source, "fast") for source in SOURCES), *(("a loader", run) for run in RUNS if run != "fast")],
)
def test_a_run_holds_one_copy_of_the_images(monkeypatch, source, run):
    given, peaks, (limit, options) = SOURCES[source](), [], RUNS[run]
    gc.collect()
    before = held()  # what the caller holds is the caller's

    def noting(function):
        def noted(*args, **options):
            found = function(*args, **options)
            peaks.append(sum(size for place, size in held().items() if place not in before))
            return found

        return noted

    monkeypatch.setattr(ActivationCache, "advance", noting(ActivationCache.advance))
    monkeypatch.setattr(JointLoss, "backward", noting(JointLoss.backward))
    snows.prune(
        small_resnet().float(),
        given,
        "2:4",
        **{"k": 1, "layers": "layer1*", "progress": False, **options},
        effort="quick",
    )
    assert len(peaks) > 3
    assert 1 <= max(peaks) / (COUNT * IMAGE) < limit


def test_a_cache_holds_views_of_the_images_and_lets_them_go():
    network, whole = Network(small_resnet()), random_images(6)
    cache = ActivationCache(network, whole.split(4))
    storages = [values[network.image].untyped_storage().data_ptr() for values in cache.values]
    assert storages == [whole.untyped_storage().data_ptr()] * 2
    cache.advance(network.index[layer_named(network, "layer1.conv1").node])
    assert all(network.image not in values for values in cache.values), "nobody reads them any more"


def test_laying_out_converts_a_few_images_at_a_time(monkeypatch):
    pieces, convert = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args: pieces.append(len(self)) or convert(self, *args))
    whole, order = shuffled([images().repeat(5, 1, 1, 1)], 0, torch.empty(1, *SHAPE, dtype=torch.float64))
    monkeypatch.undo()
    assert torch.equal(whole, images().repeat(5, 1, 1, 1)[order].double())
    assert max(pieces) <= 64 and sum(pieces) == 5 * COUNT
