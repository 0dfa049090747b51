"""Animations: what they show was computed and is right, and the committed files move and fit into a notebook."""

from __future__ import annotations

import base64
import operator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import snows_core as snows
from snows_core import zoo
from snows_core.book import animation
from snows_core.book.animations import conjugate_gradients, encode, error_travels, mask_forms, segment_grows
from snows_core.book.animations.__main__ import main
from snows_core.book.animations.show import FOLDER, NAMES

COMMITTED = Path(__file__).resolve().parents[2] / FOLDER


def frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as picture:
        found = []
        for number in range(getattr(picture, "n_frames", 1)):
            picture.seek(number)
            found.append(np.asarray(picture.convert("RGB"), dtype=float))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_animation_moves_and_is_small(name):
    path = COMMITTED / f"{name}.png"
    with Image.open(path) as picture:
        assert 8 <= picture.n_frames <= 24 and 480 <= picture.width <= 640
        assert picture.info["loop"] == 0  # for ever
        assert not picture.info.get("default_image")  # the first frame is part of the animation
    assert path.stat().st_size <= encode.LIMIT
    assert (COMMITTED / f"{name}-strip.png").stat().st_size <= encode.LIMIT


@pytest.mark.parametrize("name", NAMES)
def test_the_first_frame_shows_the_most_and_every_frame_is_another(name):
    shown = frames(COMMITTED / f"{name}.png")
    assert (shown[0] < 128).any(axis=-1).mean() > 0.02  # ink: it is not blank
    assert all(np.abs(one - other).mean() > 0.02 for one, other in zip(shown, [*shown[1:], shown[0]], strict=True))


@pytest.mark.parametrize(
    ("name", "colours"),
    [
        ("error-travels", (encode.BLUE, encode.ORANGE)),
        ("conjugate-gradients", (encode.BLUE, encode.ORANGE)),
        ("segment-grows", (encode.BLUE, encode.ORANGE, encode.GREEN)),
        ("mask-forms", (encode.BLUE, encode.ORANGE, encode.GREEN)),
    ],
)
def test_few_colours_still_hold_those_that_mean_something(name, colours):
    first = frames(COMMITTED / f"{name}.png")[0]
    for colour in colours:
        away = np.abs(first - 255 * np.array(to_rgb(colour))).max(axis=-1)
        assert (away < 24).sum() > 20  # pixels of it, of 256 steps a channel


@pytest.mark.parametrize("name", NAMES)
def test_the_strip_has_frames_of_the_animation(name):
    shown, (strip,) = frames(COMMITTED / f"{name}.png"), frames(COMMITTED / f"{name}-strip.png")
    height, width = shown[0].shape[:2]
    corners = [(y, x) for y in range(0, strip.shape[0] - height + 1, height + 12) for x in (0, width + 12)]
    assert 4 <= len(corners) <= 6
    for y, x in corners:
        part = strip[y : y + height, x : x + width]
        assert min(np.abs(part - frame).mean() for frame in shown) < 0.01


@pytest.mark.parametrize("name", ["conjugate-gradients", "segment-grows"])
def test_a_committed_animation_is_what_the_code_draws(name, tmp_path):
    assert main([name, "--out", str(tmp_path)]) == 0
    drawn, committed = frames(tmp_path / f"{name}.png"), frames(COMMITTED / f"{name}.png")
    assert len(drawn) == len(committed)
    gaps = np.array([[np.abs(one - other).mean() for other in committed] for one in drawn])  # of 255
    assert (gaps.argmin(axis=1) == np.arange(len(drawn))).all()  # nothing is nearer to another state
    assert gaps.diagonal().max() < 4  # all lines and letters half a pixel aside make 3.2 to 3.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["error-travels", "mask-forms"])
def test_what_takes_a_minute_is_what_the_code_draws_too(name, tmp_path):
    test_a_committed_animation_is_what_the_code_draws(name, tmp_path)


def test_conjugate_gradients_end_at_the_minimiser_and_steepest_descent_does_not():
    runs = conjugate_gradients.compute()
    minimiser = torch.linalg.solve(runs.matrix, -runs.gradient)
    torch.testing.assert_close(runs.conjugate[-1], minimiser)
    assert (runs.conjugate[1] - runs.descent[1]).norm() < 1e-12  # the first step is the same
    left = (runs.descent[-1] - minimiser).norm() / minimiser.norm()
    assert left > 0.01


def test_ritz_values_and_polynomial_are_those_of_the_residuals():
    runs = conjugate_gradients.compute()
    for steps, residual in enumerate(runs.residuals):
        wanted = runs.polynomial(steps, runs.eigenvalues) * runs.residuals[0]
        torch.testing.assert_close(residual, wanted, atol=1e-8, rtol=0)  # products of up to eight numbers below ten
        ritz = runs.ritz[steps]
        assert len(ritz) == steps
        assert (ritz >= runs.eigenvalues.min() - 1e-9).all() and (ritz <= runs.eigenvalues.max() + 1e-9).all()
    # Lanczos' own Ritz values, from a library that knows nothing of residuals.
    matrix = scipy.sparse.linalg.aslinearoperator(np.diag(runs.eigenvalues.numpy()))
    start = runs.residuals[0].numpy()
    basis, _ = np.linalg.qr(np.stack([np.diag(runs.eigenvalues.numpy() ** i) @ start for i in range(4)], axis=1))
    assert np.allclose(np.linalg.eigvalsh(basis.T @ matrix.matmat(basis)), runs.ritz[4], atol=1e-8)


def test_the_error_that_is_shown_is_what_a_recomputation_finds():
    travel = error_travels.compute(images=16, tests=24)
    chosen = zoo.experiment("digits-resnet20")
    model, data = chosen.load_model().eval(), chosen.load_data()
    images, _ = data.test.tensors(24)
    weight = model.get_parameter(f"{error_travels.LAYER}.weight")

    def run(network):  # up to the end of the first block, spelled out
        x = network.relu(network.bn1(network.conv1(images)))
        block = network.layer1[0]
        inner = block.bn1(block.conv1(x))
        return inner, torch.relu(block.bn2(block.conv2(torch.relu(inner))) + x)

    with torch.no_grad():
        dense = run(model)
        groups = weight.abs().permute(0, 2, 3, 1).reshape(-1, 8)  # 1:8 along the input channels of a kernel position
        mask = (groups == groups.max(1, keepdim=True).values).view(16, 3, 3, 16).permute(0, 3, 1, 2)
        assert int(mask.sum()) * 8 == mask.numel()
        weight.mul_(mask)
        pruned = run(model)
    for place, (found, wanted) in enumerate(zip(pruned, dense, strict=True)):
        error = float((found - wanted).square().sum() / wanted.square().sum())
        assert float(travel.errors[0, place]) == pytest.approx(error, rel=1e-4)
        size = wanted[0].square().mean().sqrt()
        gap = (found - wanted)[0].square().mean(0).sqrt() / size
        torch.testing.assert_close(travel.maps[0][place], gap, atol=1e-5, rtol=1e-4)


def test_looking_farther_costs_at_the_layer_and_pays_at_the_end():
    """What the animation is there to show, on fewer images than it uses."""
    mask_alone, layer_wise, snows_far = error_travels.compute(images=64, tests=64).errors
    assert layer_wise[0] < snows_far[0] < mask_alone[0]
    assert snows_far[-1] < layer_wise[-1] < mask_alone[-1]


def test_a_segment_grows_by_one_operation_and_the_skip_connection_enters_behind_the_layer():
    growth = segment_grows.compute()
    states = [[growth.state(node, k) for node in growth.nodes] for k in range(segment_grows.FAR + 1)]
    for k, found in enumerate(states):
        assert found.count("layer") == 1 and found.count("compared") == k
    assert "enters" not in states[0] and all(found.count("enters") == 1 for found in states[1:])
    block_input = growth.nodes[states[1].index("enters")]
    addition = next(node for node in growth.nodes if node.target is operator.add)
    assert block_input in addition.all_input_nodes  # what enters is the input of the layer's own block
    added = [node for node in growth.nodes if node.target is operator.add]
    assert all(growth.state(node, segment_grows.FAR) == "computed" for node in added)


@pytest.fixture(scope="module")
def stages():
    return mask_forms.compute(images=16, stages=3, refine=0)


def test_masks_only_lose_weights_from_stage_to_stage(stages):
    for before, after in zip(stages.masks, stages.masks[1:], strict=False):
        assert not (after & ~before).any() and after.sum() < before.sum()
    kept = [float(mask.float().mean()) for mask in stages.masks]
    assert kept == pytest.approx([0.1 ** (i / 3) for i in (1, 2, 3)], abs=1e-3)  # the same share in every stage


def test_the_last_mask_is_that_of_the_pruned_network(stages):
    assert torch.equal(stages.masks[-1], stages.refined) and torch.equal(stages.refined, stages.final != 0)
    assert not stages.came_back.any()  # without refinement
    assert not torch.equal(stages.refined, stages.at_once)  # re-fitted weights choose otherwise


def test_a_frame_marks_what_goes_and_what_comes_back():
    weight = torch.ones(2, 1, 1, 2)
    mask = torch.tensor([True, False, True, True]).view(2, 1, 1, 2)
    gone = torch.tensor([False, True, False, False]).view(2, 1, 1, 2)
    back = torch.tensor([False, False, False, True]).view(2, 1, 1, 2)
    picture = mask_forms._picture(weight, mask, gone, back)
    assert picture.shape == (3, 2, 3)  # two kernels of 1 x 2 with a gap between them
    colours = [tuple(np.round(255 * picture[at]).astype(int)) for at in ((0, 0), (0, 1), (2, 0), (2, 1))]
    assert colours == [(0, 0, 0), (230, 159, 0), (0, 0, 0), (0, 158, 115)]


def test_too_large_a_file_is_refused(tmp_path):
    noise = Figure(figsize=(6, 6))
    noise.figimage(np.random.default_rng(0).random((600, 600, 3)))
    with pytest.raises(snows.SnowsError, match="expected at most"):
        encode.write(encode.Animation([noise], [1.0], [0]), tmp_path / "noise")


def test_a_cell_shows_the_file_and_a_wrong_name_is_refused(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    animation("segment-grows")
    data = shown[0]._repr_png_()
    raw = base64.b64decode(data) if isinstance(data, str) else data
    assert raw == (COMMITTED / "segment-grows.png").read_bytes()
    with pytest.raises(snows.SnowsError, match="segment-grows"):
        animation("segment-grow")


def test_an_unknown_name_on_the_command_line_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["error"])
    assert "expected some of error-travels" in capsys.readouterr().err
