"""features.py: likeness of two networks' features against definitions written out, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from snows_core.errors import SnowsError
from snows_core.loss import features
from snows_core.loss.features import FeaturePairs, linear_cka, mean_cosine, read_features, same_neighbour

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X + 0.5 * torch.randn(12, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gram_cka(x, y):
    """Kernel form of the definition: HSIC of the centred Gram matrices."""
    h = torch.eye(len(x), dtype=x.dtype) - 1 / len(x)
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    return float((k * m).sum() / (k.norm() * m.norm()))


def test_cka_is_that_of_the_centred_gram_matrices_and_blind_to_rotation_scale_and_shift():
    assert linear_cka(X, Y) == pytest.approx(gram_cka(X, Y), rel=1e-12)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    assert linear_cka(3 * X @ turn + 7, Y) == pytest.approx(linear_cka(X, Y), rel=1e-10)
    assert linear_cka(X, Y[:, :2]) < 1  # widths may differ


def test_cosine_and_neighbours_are_those_of_loops():
    cosines = [float(x @ y / (x.norm() * y.norm())) for x, y in zip(X, Y, strict=True)]
    assert mean_cosine(X, Y) == pytest.approx(sum(cosines) / 12, rel=1e-12)

    def nearest(values, i):
        others = [j for j in range(12) if j != i]
        return max(others, key=lambda j: float(values[i] @ values[j] / (values[i].norm() * values[j].norm())))

    same = [nearest(X, i) == nearest(Y, i) for i in range(12)]
    assert 0 < sum(same) < 12
    assert same_neighbour(X, Y) == pytest.approx(100 * sum(same) / 12)


def test_neighbours_do_not_depend_on_the_block(monkeypatch):
    whole = same_neighbour(X, Y)
    monkeypatch.setattr(features, "BLOCK", 5)
    assert same_neighbour(X, Y) == whole


@pytest.mark.parametrize(
    "output",
    [X, X[:, :, None, None], {"pooler_output": X, "last_hidden_state": X[:, None]}, SimpleNamespace(image_embeds=X)],
)
def test_one_vector_an_image_is_found(output):
    assert torch.equal(read_features(output, 12), X)


@pytest.mark.parametrize(
    ("output", "count", "words"),
    [
        (X[:, None], 12, r"shape \(12, 1, 5\) for 12 images; expected features of shape \(N, D\)"),
        (X, 3, "for 3 images"),
        (X.long(), 12, "expected features"),
        ({"last_hidden_state": X}, 12, "type dict"),
        (X / 0, 12, "NaN or infinite"),
    ],
)
def test_other_outputs_are_refused(output, count, words):
    with pytest.raises(SnowsError, match=words):
        read_features(output, count)


def test_pairs_join_batches_and_refuse_other_widths():
    pairs = FeaturePairs()
    pairs.add(X[:7], Y[:7], 7)
    pairs.add(X[7:], Y[7:], 5)
    assert pairs.compared() == {
        "cosine": mean_cosine(X, Y),
        "cka": linear_cka(X, Y),
        "neighbours": same_neighbour(X, Y),
    }
    narrow = FeaturePairs()
    narrow.add(X, Y[:, :3], 12)
    with pytest.raises(SnowsError, match=r"reference: got features of shape \(12, 3\); expected \(12, 5\)"):
        narrow.compared()
    alone = FeaturePairs()
    alone.add(X, None, 12)
    assert alone.compared() == {}
