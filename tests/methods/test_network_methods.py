"""NETWORK_METHODS: each method that looks at the whole network, against what its paper says with dense Fishers."""

import itertools

import pytest
import torch
from toys import layer_named, nudged, random_images, relative, same, small_resnet

from snows_core.loss.gauss_newton_diagonal import gauss_newton_diagonal
from snows_core.masks.patterns import parse_pattern
from snows_core.methods import NETWORK_METHODS, NetworkProblem, cap, cbs, chita, woodfisher
from snows_core.network.graph import Network
from snows_core.solvers.pairwise_swaps import removal_quadratic

pytestmark = pytest.mark.usefixtures("few_images_are_fine")
LAYERS = ["layer1.conv1", "layer2.downsample.0"]
INNER = ["layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.downsample.0"]
IMAGES = random_images(10)


def problem(pattern=0.6, before=(), labels=None, room=1e9, layers=LAYERS, images=IMAGES):
    """Two layers of a small network; ``before`` are those that stand at other weights than the dense ones."""
    model = small_resnet()
    network = Network(model, example=IMAGES[:2])
    names = {name: layer_named(network, name).weight_name for name in layers}
    moved = {name: nudged(model.get_parameter(names[name]).detach()) for name in before}
    for name in before:
        moved[name].view(-1)[::3] = 0.0
    return NetworkProblem(network, names, images, parse_pattern(pattern), 5, labels, moved, room)


def fisher(of, gradients=None):
    gradients = of.gradients if gradients is None else gradients
    return gradients.mT @ gradients / len(gradients) + of.damping * torch.eye(gradients.shape[1], dtype=gradients.dtype)


def blocks_of(matrix, edges):
    """Return a matrix with blocks between edges alone."""
    kept = torch.zeros_like(matrix)
    for start, stop in itertools.pairwise(edges):
        kept[start:stop, start:stop] = matrix[start:stop, start:stop]
    return kept


def woodfisher_edges(of):
    edges = [0]
    for size in of.sizes:
        start = edges[-1]
        edges += [*range(start + 64, start + size, 64), start + size]
    return edges


def test_what_a_problem_says_of_the_network():
    of = problem(before=["layer1.conv1"], labels=torch.arange(10) % 3)
    dense = {name: of.network.module.get_parameter(f"{name}.weight").detach() for name in LAYERS}
    assert torch.equal(of.weights["layer1.conv1"], of.before["layer1.conv1"])
    assert torch.equal(of.weights["layer2.downsample.0"], dense["layer2.downsample.0"])
    vector = of.vector(of.weights)
    assert of.sizes == [144, 32] and vector.shape == (176,)
    assert same(of.by_layer(vector), of.weights)
    assert of.damping == pytest.approx(10 * float(of.gradients.square().mean()), rel=1e-9)
    masks = of.masks(vector.abs())
    assert [int(mask.sum()) for mask in masks.values()] == [144 - 86, 32 - 19]
    of.network.module.get_parameter("layer1.conv1.weight").data.view(-1)[:100] = 0.0
    masks = problem_like(of).masks(torch.ones(176, dtype=torch.float64))
    assert not masks["layer1.conv1"].flatten()[:100].any() and int(masks["layer1.conv1"].sum()) == 44


def problem_like(of):
    return NetworkProblem(of.network, of.names, of.images, of.pattern, of.seed, of.labels, of.before, of.room)


def test_gradients_are_at_the_current_weights_and_of_the_labels_given():
    labels = torch.arange(10) % 3
    of = problem(before=["layer1.conv1"], labels=labels)
    free = {of.names[name]: weight.clone().requires_grad_(True) for name, weight in of.weights.items()}
    loss = torch.nn.functional.cross_entropy(
        torch.func.functional_call(of.network.module, free, (IMAGES[4:5],)), labels[4:5]
    )
    wanted = torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(free.values()))])
    assert len(of.gradients) == 10 and relative(of.gradients[4], wanted) < 1e-9
    drawn = problem(before=["layer1.conv1"])
    assert not torch.equal(drawn.gradients, of.gradients)
    assert torch.equal(drawn.gradients, problem(before=["layer1.conv1"]).gradients)


def test_gradients_that_do_not_fit_are_of_mini_batches():
    with pytest.warns(UserWarning, match="max_memory: gradients of 10 images do not fit; 4 of mini-batches"):
        few = problem(room=4.5 * 176 * 8).gradients
    assert few.shape == (4, 176)


def test_obd_is_half_the_curvature_times_the_square_and_leaves_the_others():
    of = problem(before=["layer1.conv1"])
    exact = gauss_newton_diagonal(of.network, of.parameters, IMAGES, torch.Generator())
    wanted = torch.cat([(w.square() * exact[of.names[n]] / 2).flatten() for n, w in of.weights.items()])
    method = NETWORK_METHODS["obd"]()
    assert relative(method.saliencies(of), wanted) < 1e-12
    solution = method.solve(of)
    assert same(solution.masks, of.masks(wanted))
    for name, weight in solution.weights.items():
        assert torch.equal(weight, of.weights[name] * solution.masks[name])


@pytest.mark.parametrize("name", ["woodfisher", "mfac"])
def test_the_surgeons_scores_and_moves_are_those_of_the_dense_inverse(name):
    of = problem(before=["layer2.downsample.0"])
    inverse = torch.linalg.inv(blocks_of(fisher(of), woodfisher_edges(of) if name == "woodfisher" else [0, 176]))
    weight, method = of.vector(of.weights), NETWORK_METHODS[name]()
    assert woodfisher.BLOCK == 64
    masks = of.masks(weight.square() / (2 * inverse.diagonal()))
    assert same(method.choose(of), masks)
    kept, moved = of.vector(masks), weight.clone()
    for place in (~kept).nonzero().flatten():
        moved -= weight[place] * inverse[:, place] / inverse[place, place]
    moved[~kept] = 0.0
    solution = method.solve(of)
    assert same(solution.masks, masks) and same(solution.weights, method.update(of, masks))
    assert relative(of.vector(solution.weights), moved) < 1e-9


def test_one_removal_ends_at_the_minimum_of_the_quadratic():
    of = problem()
    masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in of.weights.items()}
    masks["layer1.conv1"].view(-1)[17] = False
    moved = of.vector(NETWORK_METHODS["mfac"]().update(of, masks))
    slope = fisher(of) @ (moved - of.vector(of.weights))
    kept = of.vector(masks)
    assert float(slope[kept].abs().max()) < 1e-9 * float(slope.abs().max()) and not moved[~kept].any()


@pytest.mark.parametrize("name", ["chita", "cbs"])
@pytest.mark.parametrize("blocks", [1, 2])
def test_updates_of_a_joint_removal_are_ridge_regressions(name, blocks, monkeypatch):
    monkeypatch.setattr(chita, "WHOLE", 1000 if blocks == 1 else 100)
    of, method = problem(before=["layer1.conv1"]), NETWORK_METHODS[name]()
    masks = method.choose(of)
    kept, weight = of.vector(masks), of.vector(of.weights)
    matrix = blocks_of(fisher(of), [0, 176] if blocks == 1 else [0, 144, 176])
    wanted = weight[kept] + torch.linalg.solve(matrix[kept][:, kept], matrix[kept][:, ~kept] @ weight[~kept])
    moved = of.vector(method.update(of, masks))
    assert relative(moved[kept], wanted) < 1e-8 and not moved[~kept].any()
    solution = method.solve(of)
    assert same(solution.masks, masks) and same(solution.weights, method.update(of, masks))


def test_chita_is_nearer_in_the_quadratic_than_magnitude_and_single_scores():
    of = problem(0.9, images=random_images(60))
    of.damping /= 100  # so that the Fisher decides
    matrix, ends = fisher(of), {}
    for name in ("chita", "mfac", "magnitude"):
        masks = of.masks(of.vector(of.weights).abs()) if name == "magnitude" else NETWORK_METHODS[name]().choose(of)
        away = of.vector(NETWORK_METHODS["chita"]().update(of, masks)) - of.vector(of.weights)
        ends[name] = float(away @ matrix @ away)
    assert ends["chita"] < min(ends["mfac"], ends["magnitude"])


@pytest.mark.parametrize("pattern", [0.6, "global:0.6", "global:0.6:0.7"])
def test_cbs_lowers_the_quadratic_of_the_removed_weights(pattern):
    of = problem(pattern, layers=INNER)
    of.damping /= 100  # so that the Fisher decides
    weight = of.vector(of.weights)
    start, found = (of.vector(masks) for masks in (of.masks(weight.abs()), NETWORK_METHODS["cbs"]().choose(of)))
    assert int(start.sum()) == int(found.sum())
    before, after = (removal_quadratic(of.gradients, weight, ~kept, of.damping) for kept in (start, found))
    assert after < 0.8 * before
    counts = [[int(part.sum()) for part in kept.split(of.sizes)] for kept in (start, found)]
    assert (counts[0] == counts[1]) == (pattern != "global:0.6") and min(counts[1]) > 0


def test_cbs_never_empties_a_layer_and_gives_back_no_zero():
    of = problem("global:0.95", layers=INNER)
    of.network.module.get_parameter("layer1.conv2.weight").data.view(-1)[::2] = 0.0
    masks = NETWORK_METHODS["cbs"]().choose(of)
    assert all(mask.any() for mask in masks.values()) and not masks["layer1.conv2"].flatten()[::2].any()
    (movable,) = cbs._pools(of, of.vector(of.weights), ~of.vector(masks))
    assert int((~movable).sum()) == len(INNER) + 72


def test_cap_is_greedy_in_blocks_along_rows(monkeypatch):
    """Of rows of 36 inputs in blocks of 12, each block's removals one by one on the dense inverse."""
    monkeypatch.setattr(cap, "BLOCK", 17)
    monkeypatch.setattr(cap, "ROOM", 8 * 3 * 12**2 * 2)  # two rows at a time
    of, method = problem(0.5, layers=INNER[:2], before=["layer1.conv2"]), NETWORK_METHODS["cap"]()
    weight, matrix = of.weights["layer1.conv2"].flatten(), fisher(of)[144:, 144:]
    costs, ends = torch.zeros_like(weight), {}
    for start in range(0, 144, 12):
        at, gone, last = torch.arange(start, start + 12), [], 0.0
        inverse, own = torch.linalg.inv(matrix[at[:, None], at]), weight[at]
        total = 0.0
        for _ in range(12):
            trials = {}
            for place in set(range(12)) - set(gone):
                out = torch.tensor([*gone, place])
                trials[place] = float(own[out] @ torch.linalg.solve(inverse[out[:, None], out], own[out])) / 2
            best = min(trials, key=trials.get)
            last, total = max(last, trials[best] - total), trials[best]
            gone.append(best)
            costs[start + best] = last
        ends[start] = inverse
    masks = method.choose(of)
    kept = masks["layer1.conv2"].flatten()
    assert int(kept.sum()) == 72 and float(costs[kept].min()) >= float(costs[~kept].max()) * (1 - 1e-9)
    found = method.update(of, masks)["layer1.conv2"].flatten()
    for start, inverse in ends.items():
        own = slice(start, start + 12)
        out, part = (~kept[own]).nonzero().flatten(), weight[own]
        wanted = part - inverse[:, out] @ torch.linalg.solve(inverse[out[:, None], out], part[out])
        torch.testing.assert_close(found[own], wanted * kept[own], rtol=1e-7, atol=1e-10)


def test_cap_fills_up_the_last_block_of_a_row():
    of = problem(0.5, layers=["layer2.conv1", "layer2.conv2"])  # 36 and 72 inputs
    assert cap.BLOCK == 64
    masks = NETWORK_METHODS["cap"]().choose(of)
    assert [int(mask.sum()) for mask in masks.values()] == [144, 288]
    seven = [tuple(call[0].shape) for call in calls_of(of, 7)]
    assert seven == [(8 * 6, 6), (8 * 11, 7)]  # 36 in 6 blocks of 6, 72 in 11 of 7 with 5 places left over


def calls_of(of, block):
    calls, old = [], cap.BLOCK
    cap.BLOCK = block
    try:
        for layer, weight in of.weights.items():
            whole = torch.ones_like(weight, dtype=torch.bool)
            made = cap._in_blocks(of, layer, whole, lambda *given: calls.append(given) or given[0])
            assert torch.equal(made, weight.flatten(1)) and int(calls[-1][2].sum()) == weight.numel()
    finally:
        cap.BLOCK = old
    return calls
