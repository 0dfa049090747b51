"""verify: what is promised of a network holds in each form of it, and one weight that moved is found in each."""

import json
import math
from collections import OrderedDict

import pytest
import torch
from results import made_up
from safetensors.torch import load_file, save_file
from torch import nn
from toys import random_images, small_resnet, small_vit, torch_attention

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.export import METADATA_KEY, promise_of, support_digest

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
PATTERNS = {
    "2:4": "2:4",
    "unstructured": 0.5,
    "global with cap": "global:0.6:0.8",
    "structured": "structured:0.5",
    "by layer": "layer1.*=0.5,layer2.conv1=0.25",
}


def pruned(pattern="2:4", model=None, size=8, **options):
    options = {"update": "none", "effort": "quick", "progress": False, **options}
    return snows.prune(model or small_resnet(), random_images(8, size=size), pattern, **options)


@pytest.fixture(scope="module", params=PATTERNS)
def result(request):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pruned(PATTERNS[request.param])


def tensors(state):
    return {name: value.clone() for name, value in state.items()}


def moved(state, name="layer2.conv1.weight"):
    """Swap a zero with a weight of the same output and kernel position; return the state and the zero's place."""
    state = tensors(state)
    weight = state[name]
    place = tuple((weight == 0).nonzero()[0].tolist())
    rest = weight[(place[0], slice(None), *place[2:])]
    full = rest.nonzero()
    if len(full):
        rest[place[1]], rest[int(full[0])] = rest[int(full[0])].clone(), 0.0
    else:  # the whole position is zero: a weight comes from elsewhere
        weight[place], weight.flatten()[int(weight.flatten().nonzero()[0])] = 1.0, 0.0
    return state, place


def as_result(result, state, folder):
    return snows.PruneResult(None, result.masks, result.report, result.manifest, state, result.weight_names)


def as_folder(result, state, folder):
    saved = result.save(folder / "saved", overwrite=True)
    save_file(state, saved / "model.safetensors")
    return saved


def as_file(result, state, folder):
    path = folder / "exported.safetensors"
    save_file(state, path, metadata={METADATA_KEY: json.dumps(promise_of(result))})
    return path


def as_state_dict(result, state, folder):
    path, state = folder / "exported.pth", OrderedDict(state)
    state._metadata = OrderedDict({"": {METADATA_KEY: json.dumps(promise_of(result))}})
    torch.save(state, path)
    return path


def as_hub_folder(result, state, folder):
    hub = folder / "hub"
    hub.mkdir(exist_ok=True)
    as_file(result, state, folder).replace(hub / "model.safetensors")
    (hub / "config.json").write_text("{}")
    return hub


FORMS = {"result": as_result, "folder": as_folder, "safetensors": as_file, "hub folder": as_hub_folder}
FORMS["state dict"] = as_state_dict


@pytest.mark.parametrize("form", FORMS)
def test_what_is_promised_holds_until_a_weight_is_moved(result, form, tmp_path):
    made = snows.verify(FORMS[form](result, tensors(result.state), tmp_path))
    assert made.ok and made.promised == len(result.masks) and made.violations.empty
    assert made.table["violations"].sum() == 0 and "holds" in repr(made)
    state, place = moved(result.state)
    broken = snows.verify(FORMS[form](result, state, tmp_path))
    assert not broken.ok and set(broken.violations["layer"]) == {"layer2.conv1"}
    if form in ("result", "folder"):
        assert place in list(broken.violations.loc[broken.violations["kind"] == "mask", "index"])
        assert str(list(place)).removesuffix("]") in repr(broken)
    else:
        assert "support" in list(broken.violations["kind"])


@pytest.mark.parametrize("wrapped", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_bare_file_is_held_against_a_result(result, suffix, wrapped, tmp_path):
    folder = result.save(tmp_path / "result")

    def written(state):
        state, path = {wrapped + name: value for name, value in state.items()}, tmp_path / f"bare{suffix}"
        torch.save({"state_dict": state, "epoch": 3}, path) if suffix == ".pth" else save_file(state, path)
        return path

    assert snows.verify(written(tensors(result.state)), against=folder).ok
    state, place = moved(result.state)
    broken = snows.verify(written(state), against=result)
    found = broken.violations[broken.violations["kind"] == "mask"]
    assert place in list(found["index"]) and set(found["weight"]) == {f"{wrapped}layer2.conv1.weight"}


def test_a_group_with_three_weights_is_named_by_its_place():
    weight = torch.zeros(2, 8, 1, 2)
    weight[:, :2], weight[:, 4:6] = 1.0, 2.0
    assert snows.verify({"conv.weight": weight}, "2:4").ok
    weight[1, 7, 0, 1] = 3.0
    done = snows.verify({"conv.weight": weight}, "2:4")
    [row] = done.violations.to_dict("records")
    assert row["index"] == (1, 4, 0, 1) and row["kind"] == "pattern"
    assert row["words"].startswith("inputs 4 to 7 of output 1 at kernel position (0, 1): 3 of 4 weights are not zero")
    assert done.table["violations"].tolist() == [1] and "2:4 allows 2" in repr(done)


def test_groups_do_not_run_along_the_last_axis():
    weight = torch.ones(4, 4, 1, 4)  # of each four kernel positions two are zero, of each four inputs none
    weight[..., :2] = 0
    assert not snows.verify({"conv.weight": weight}, "2:4").ok
    assert snows.verify({"conv.weight": weight.transpose(1, 3).contiguous()}, "2:4").ok


def test_violations_are_all_there_and_few_are_printed():
    done = snows.verify({"fc.weight": torch.ones(30, 8), "other.weight": torch.zeros(3, 8)}, "2:4")
    assert len(done.violations) == 60 and repr(done).count("\n  fc: ") == 3 and "57 more" in repr(done)
    assert "without any zero: fc. Leave out by exclude=" in repr(done)


BREAKAGES = {
    "not finite": lambda state: state["layer1.conv1.weight"].flatten()[0].fill_(float("nan")),
    "mask": lambda state: state["layer1.conv1.weight"].fill_(1.0),
    "missing": lambda state: state.pop("layer1.conv1.weight"),
    "shape": lambda state: state.update({"layer1.conv1.weight": torch.zeros(4, 4, 3, 1, dtype=torch.float64)}),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_each_kind_of_breakage_is_said_in_words(kind, tmp_path):
    result = pruned()
    state = tensors(result.state)
    BREAKAGES[kind](state)
    for form in (as_folder, as_file):
        done = snows.verify(form(result, state, tmp_path))
        assert not done.ok and set(done.violations["layer"]) == {"layer1.conv1"}
        expected = "pattern" if (kind, form) == ("mask", as_file) else kind
        assert expected in list(done.violations["kind"])
        assert all(done.violations["words"])
    assert "missing" in done.table["note"].tolist() or kind != "missing"


def test_whatever_is_not_zero_breaks_a_mask():
    result = pruned()
    state = tensors(result.state)
    weight = state["layer1.conv1.weight"]
    places = (weight == 0).nonzero()[:4]
    weight[tuple(places.T)] = torch.tensor([-1e-30, 1e-30, math.nan, -math.inf]).to(weight)
    found = snows.verify(as_result(result, state, None)).violations
    assert list(found.loc[found["kind"] == "mask", "index"]) == [tuple(place) for place in places.tolist()]


def test_whole_numbers_may_have_more_zeros_and_not_fewer(tmp_path):
    result = pruned()
    state = tensors(result.state)
    whole = state["layer1.conv1.weight"] = state["layer1.conv1.weight"].sign().to(torch.int8)
    kept, zeros = whole.nonzero(), (whole == 0).nonzero()
    whole[tuple(kept[0])] = 0  # rounding
    assert snows.verify(as_file(result, state, tmp_path)).ok
    whole[tuple(zeros[:2].T)] = 1
    assert "support" in list(snows.verify(as_file(result, state, tmp_path)).violations["kind"])


def test_a_folder_whose_records_contradict_each_other_is_found(tmp_path):
    folder = pruned(0.5).save(tmp_path / "result")
    masks, report = folder / "masks.safetensors", folder / "report.csv"
    kept = load_file(masks)
    kept["layer1.conv1"].fill_(True)
    save_file(kept, masks)
    assert list(snows.verify(folder).violations["kind"]) == ["promise"]
    del kept["layer1.conv1"]
    save_file(kept, masks)
    assert "there is no mask" in snows.verify(folder).violations["words"][0]
    report.unlink()
    with pytest.raises(SnowsError, match=r"without report\.csv"):
        snows.verify(folder)


def test_an_interrupted_result_promises_what_it_reached():
    result = made_up(("a", "b"), status=["pruned", "not reached"], reason=["", "interrupted"])
    result.state["a.weight"] = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    result.masks["a"] = result.state["a.weight"] != 0
    result.report["kept"] = [int(mask.sum()) for mask in result.masks.values()]
    done = snows.verify(result)
    assert done.ok and done.table["promised"].tolist() == ["2:4", "mask"]


def test_sparsities_that_are_asked_for_are_counted():
    half = {"a.weight": torch.tensor([[0.0, 1.0, 1.0, 1.0]]), "b.weight": torch.tensor([[0.0, 0.0, 0.0, 1.0]])}
    assert snows.verify(half, 0.25).ok and snows.verify(half, "global:0.5").ok
    assert snows.verify(half, "a=0.25,b=0.75").ok
    assert set(snows.verify(half, 0.5).violations["layer"]) == {"a"}
    assert set(snows.verify(half, "a=0.5").violations["layer"]) == {"a"}
    assert snows.verify({"a.weight": torch.ones(3, 0), "b.weight": torch.zeros(2, 4)}, "2:4").ok  # of no inputs at all
    capped = snows.verify(half, "global:0.5:0.6").violations
    assert capped["kind"].tolist() == ["cap"] and capped["layer"].tolist() == ["b"]
    assert snows.verify(half, "global:0.5:0.75").ok  # a layer may reach the cap
    assert "fewer than" in snows.verify(half, "global:0.6").violations["words"][0]


def test_a_pattern_stands_in_place_of_the_promised_one():
    result = pruned("1:4")
    assert snows.verify(result, "2:4").ok and snows.verify(result, "2:4").promised == 5
    assert not snows.verify(pruned(0.5), "2:4").ok
    with pytest.raises(SnowsError, match=r"pattern: got '5:7', which no layer can have"):
        snows.verify(result, "5:7")


def test_layers_that_do_not_fit_are_named_and_others_chosen_by_globs():
    state = {"conv1.weight": torch.ones(4, 3, 3, 3), "dw.weight": torch.ones(8, 1, 3, 3)}
    state |= {"a.fc.weight": torch.tensor([[1.0, 0.0, 0.0, 1.0]]), "b.fc.weight": torch.ones(2, 4)}
    done = snows.verify(state, "2:4", exclude="b.*")
    assert done.ok and done.promised == 1
    assert "3 inputs do not divide" in done.table.set_index("layer").loc["conv1", "note"]
    assert "1 inputs do not divide" in done.table.set_index("layer").loc["dw", "note"]
    assert snows.verify(state, "2:4", layers=["a.fc", "dw"]).table["layer"].tolist() == ["dw", "a.fc"]
    assert not snows.verify(state, "2:4", layers="*.fc.weight").ok
    with pytest.raises(SnowsError, match=r"layers: got 'a\.fd'.*Nearest: a\.fc"):
        snows.verify(state, layers="a.fd")
    with pytest.raises(SnowsError, match="exclude: got a choice that leaves no layer"):
        snows.verify(state, exclude="*")


PAIRS = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
FOUND = {
    "dense": torch.ones(4, 8),
    "2:4": PAIRS.repeat(2, 2),
    "1:4": torch.eye(4).repeat(1, 2),
    "4:8": torch.tensor([[1.0] * 4 + [0.0] * 4, [0.0] * 4 + [1.0] * 4]),
    "unstructured": (torch.rand(16, 16, generator=torch.Generator().manual_seed(0)) < 0.4).float(),
    "all zero": torch.zeros(2, 4),
    "1 of 2 outputs zero": torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
    "2:4, 1 of 3 outputs zero, 2 of 8 inputs zero": torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).repeat(
        1, 2
    ),
}


def test_where_nothing_is_promised_the_table_says_what_there_is():
    state = {f"{number}.weight": value for number, value in enumerate(FOUND.values())}
    done = snows.verify(state)
    assert done.ok and done.promised == 0 and repr(done).startswith("nothing is promised of the state dict")
    assert done.table["found"].tolist() == list(FOUND)


def test_networks_of_all_kinds():
    result = pruned(model=small_vit(), size=4)
    assert snows.verify(result.model, "2:4", layers=list(result.masks)).ok
    attention = pruned(model=torch_attention(), size=4)
    assert snows.verify(attention).ok
    hooked = nn.Sequential(nn.Linear(8, 4))
    nn.utils.prune.random_unstructured(hooked[0], "weight", 0.5)
    assert snows.verify(hooked.state_dict(), 0.5).ok and snows.verify(hooked, 0.5).ok
    half = {name: value.to(torch.bfloat16) for name, value in result.state.items()}
    assert snows.verify(half, against=result).ok


def test_masks_from_elsewhere_are_a_promise():
    masks = pruned(0.37).masks
    result = pruned(masks=masks)
    done = snows.verify(result)
    assert done.ok and set(done.table["promised"]) == {"", "given masks"}
    state, _ = moved(result.state)
    assert not snows.verify(as_result(result, state, None)).ok


def test_shares_of_an_allocation_are_the_promise_of_each_layer():
    promise = promise_of(pruned(0.6, allocation="erk"))
    shares = {entry["pattern"]: entry["zeros"] / math.prod(entry["shape"]) for entry in promise["layers"].values()}
    assert len(shares) > 2 and shares.pop("", 0) == 0  # a layer that loses nothing
    assert all(abs(float(text.removeprefix("unstructured ")) - share) < 0.01 for text, share in shares.items())


def test_a_digest_says_where_weights_are_and_nothing_else():
    weight = torch.randn(3, 5)
    assert support_digest(weight) == support_digest(weight.to(torch.float16) * 2) == support_digest(-weight)
    assert support_digest(weight) != support_digest(weight.roll(1, 1) * (torch.arange(15).view(3, 5) > 0))
    kernels = (torch.arange(48) % 5 > 1).float().view(4, 3, 2, 2)
    assert support_digest(kernels) == support_digest(kernels.to(memory_format=torch.channels_last))


def test_a_compacted_folder_shows_its_layers(tmp_path):
    result = pruned("structured:0.5")
    folder = snows.compact(result, random_images(2)).save(tmp_path / "small")
    done = snows.verify(folder)
    assert done.ok and done.promised == 0 and "layer1.conv1" in done.table["layer"].tolist()
