"""What processes tell one another, who writes, and what becomes of a run that one of them leaves."""

import os
import signal
import time
import warnings

import groups
import pytest
import torch
from toys import random_images, small_resnet

import snows_core as snows
from snows_core.distributed import (
    ALONE,
    LIMIT,
    Processes,
    Share,
    alone,
    broadcast,
    current,
    is_main,
    joined,
    on_main,
    time_limit,
)
from snows_core.sweep.sweep import Sweep

OPTIONS = {"pattern": 0.5, "k": 1, "effort": "quick", "progress": False}
LAYERS = ["layer1.conv1", "layer2.conv1"]


def fail(text):
    raise snows.SnowsError(text)


def talked(rank):
    """Return what a process hears from the others."""
    found = {"before": (current() is ALONE, is_main())}
    with joined():
        group = current()
        wide = torch.arange(12.0).view(1, 2, 2, 3).contiguous(memory_format=torch.channels_last) * (rank + 1)
        total = group.total(wide.clone(memory_format=torch.preserve_format))
        found |= {
            "group": (group.rank, group.world, group.is_main),
            "total": total,
            "strides": total.stride() == wide.stride(),
            "totals": group.totals([torch.full((2,), float(rank)), torch.full((1, 1), 10.0 * rank)]),
            "number": group.total_number(rank + 0.5),
            "least": group.least(5.0 - rank),
            "agreed": group.agreed([float(rank), -1.0]),
            "mask": group.from_main(torch.tensor([rank == 0, rank == 1])),
            "broadcast": broadcast({"rank": rank}),
            "gathered": group.gathered(rank),
            "on main": on_main(os.getpid) == os.getpid(),
        }
        with alone():
            found["alone"] = current() is ALONE, is_main(), broadcast(rank)
            with joined():
                found["joined again"] = current() is ALONE
        found["refused"] = refused(lambda: on_main(fail, "not here"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with joined():
                warnings.warn("said", stacklevel=1)
        found["warnings"] = len(caught)
    return found | {"after": current() is ALONE}


def refused(function):
    """Return the message of the SnowsError that a function raises."""
    try:
        function()
    except snows.SnowsError as error:
        return str(error)
    return None


def test_processes_hear_sums_and_the_word_of_the_first():
    for rank, found in enumerate(groups.run(2, talked)):
        assert found["before"] == (True, rank == 0) and found["after"]
        assert found["group"] == (rank, 2, rank == 0)
        assert torch.equal(found["total"], 3 * torch.arange(12.0).view(1, 2, 2, 3)) and found["strides"]
        assert [part.tolist() for part in found["totals"]] == [[1.0, 1.0], [[10.0]]]
        assert (found["number"], found["least"], found["agreed"]) == (2.0, 4.0, [0.0, -1.0])
        assert found["mask"].tolist() == [True, False]
        assert found["broadcast"] == {"rank": 0} and found["gathered"] == [0, 1]
        assert found["on main"] == (rank == 0)
        assert found["alone"] == (True, True, rank) and found["joined again"]
        assert found["refused"] == "not here"
        assert found["warnings"] == (1 if rank == 0 else 0)


def test_one_process_hears_itself():
    tensor = torch.ones(2)
    with joined():
        assert current() is ALONE and is_main()
    assert ALONE.total(tensor) is tensor and ALONE.from_main(tensor) is tensor and ALONE.own(tensor) is tensor
    assert ALONE.totals([tensor])[0] is tensor
    assert (ALONE.total_number(3.0), ALONE.least(3.0), ALONE.gathered(3), broadcast(3)) == (3.0, 3.0, [3], 3)
    assert on_main(max, 1, 2) == 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_image_is_of_one_process(world):
    images, sizes = torch.arange(11.0)[:, None].expand(11, 2), [4, 1, 4, 2]
    shares = [Share(sizes, Processes(rank, world)) for rank in range(world)]
    parts = [share.cut(images) for share in shares]
    for batch, whole in enumerate(images.split(sizes)):
        places = [torch.tensor(share.places(batch), dtype=torch.long) for share in shares]
        assert torch.equal(torch.cat([part[batch] for part in parts])[:, 0].sort().values, whole[:, 0])
        for part, place, share in zip(parts, places, shares, strict=True):
            assert torch.equal(part[batch], whole[place]) and share.own[batch] == len(place)
            assert share.of([batch]).own == [len(place)]
            assert (batch in share.held()) == bool(len(place))
    assert {share.images for share in shares} == {11}
    counts = [sum(share.own) for share in shares]
    assert max(counts) - min(counts) <= 1 and max(counts) == Processes(0, world).most(11)


@pytest.mark.parametrize("shape, axis", [((4, 3), 0), ((8, 3), 0), ((7, 4, 3), 1)])
def test_what_is_drawn_for_a_batch_is_cut_as_its_images_are(shape, axis):
    shares = [Share([9], Processes(rank, 2)) for rank in range(2)]
    share = shares[1]  # four of nine images
    whole, found = share.whole_of(shape, 0)
    assert found == axis and whole[axis] == shape[axis] // 4 * 9
    values = torch.arange(float(torch.tensor(whole).prod())).view(whole)
    part = share.pick(values, 0, axis)
    rows = values.unflatten(axis, (9, -1)).index_select(axis, torch.tensor([1, 3, 5, 7])).flatten(axis, axis + 1)
    assert part.shape == shape and torch.equal(part, rows)


def test_images_keep_their_layout_when_they_are_shared():
    images = torch.randn(5, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    own = Processes(1, 2).own(images)
    assert torch.equal(own, images[1::2]) and own.is_contiguous(memory_format=torch.channels_last)


def begun_apart(rank, difference):
    seed = rank if difference == "images" else 0
    images = random_images(1 if difference == "few" else 8, seed=seed)
    steps = {"steps": 1 + rank} if difference == "recipe" else {}
    return snows.prune(small_resnet(rank if difference == "model" else 0), images, layers=LAYERS, **OPTIONS, **steps)


@pytest.mark.parametrize("difference", ["images", "model", "recipe"])
def test_a_run_that_was_not_begun_alike_is_refused_everywhere(difference):
    for error in groups.run_failing(2, begun_apart, difference):
        assert error.startswith(f"SnowsError: {difference}: got ") and "the same in every process" in error


def test_fewer_images_than_processes_are_refused():
    for error in groups.run_failing(2, begun_apart, "few"):
        assert error.startswith("SnowsError: images: got 1 images; expected at least one for each of 2 processes")


def saved(rank, folder):
    """Save a result in every process, and try what processes cannot share."""
    result = snows.prune(small_resnet(), random_images(4), layers=LAYERS, **OPTIONS)
    result.save(folder)
    images = random_images(4)
    return refused(lambda: snows.compare(small_resnet(), images, test=images, masks="magnitude", updates="none"))


def test_the_first_process_writes_alone(tmp_path):
    words = groups.run(2, saved, tmp_path / "result")
    assert sorted(os.listdir(tmp_path)) == ["result"]
    assert snows.load(tmp_path / "result", small_resnet()).masks.keys() == set(LAYERS)
    assert all(text.startswith("compare: got a call in each of 2 processes") for text in words)


def left(rank, way):
    """Prune where process 1 goes at its second layer."""
    solve = Sweep._solve

    def leaving(self, entry):
        if rank == 1 and self.solutions:
            if way == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if way == "interrupted":
                raise KeyboardInterrupt
            if way == "silent":
                time.sleep(4)
            raise RuntimeError("of its own")
        return solve(self, entry)

    Sweep._solve = leaving
    snows.prune(small_resnet(), random_images(8), layers=LAYERS, refine=2, **OPTIONS)


@pytest.mark.parametrize("way", ["killed", "failed", "interrupted", "silent"])
def test_where_one_process_goes_the_others_end_with_a_sentence(way):
    start = time.monotonic()
    first, second, third = groups.run_failing(3, left, way, limit=2)
    for error in (first, third):
        assert error.startswith("LostProcess: several processes: another one ended, or did not answer")
        assert "with a checkpoint folder" in error
    told = {"killed": "killed", "interrupted": "KeyboardInterrupt: "}
    assert second == told.get(way, "RuntimeError: of its own")
    assert time.monotonic() - start < 60


def test_a_time_limit_that_is_none_is_refused(monkeypatch):
    assert time_limit().total_seconds() == 600
    monkeypatch.setenv(LIMIT, "2.5")
    assert time_limit().total_seconds() == 2.5
    for text in ("-1", "0", "soon", "nan", "1e9"):
        monkeypatch.setenv(LIMIT, text)
        with pytest.raises(snows.SnowsError, match=f"^{LIMIT}: got '{text}'; expected a number of seconds"):
            time_limit()
