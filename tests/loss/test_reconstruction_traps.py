"""reconstruction.py: wide layers, attention backends, networks whose layer meets itself, and how work is counted."""

import pytest
import torch
from cases import resnet_case, vit_case
from torch import nn
from torch.nn import functional as F
from toys import awake, make_problem, nudged, random_images, relative, torch_attention


def test_products_are_counted_with_their_images():
    case = resnet_case(2, sizes=[3, 2])
    product = case.objective.linearise(case.weight).product
    product(case.weight)
    product(case.weight)
    assert (case.objective.products, case.objective.image_products) == (2, 10)


def test_masked_on_both_sides():
    case = vit_case(3)
    product = case.objective.linearise(case.weight).product
    direction = torch.randn(case.weight.shape, dtype=torch.float64)
    assert torch.equal(product(direction), product(direction * case.mask))
    assert (product(direction)[~case.mask] == 0).all()


class Windows(nn.Module):
    """Tokens cut into windows along the batch axis, as in Swin, or flattened into it."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y = self.fc(tokens.flatten(0, 1)).relu().unflatten(0, (-1, tokens.shape[1]))
        return self.head(y.mean(1))


def test_images_are_counted_where_the_batch_axis_holds_more_than_images():
    problem = make_problem(awake(Windows()), random_images(5).split(3), "fc", 2)
    assert problem.objective.images == 5


class Dynamic(nn.Module):
    """A convolution whose kernel is computed from the image (CondConv, dynamic convolution)."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 16)

    def forward(self, x):
        y = self.b(self.a(x))
        return F.conv2d(y, self.c(y.mean((2, 3)).mean(0)).reshape(4, 4, 1, 1))


class BatchStatistics(nn.Module):
    """Batch norm without running statistics: it divides by the spread of the batch, also in eval mode."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.n = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        return self.n(self.b(self.a(x))).relu()


class Gated(nn.Module):
    """Squeeze-excite: the layer's output multiplies itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.b(self.a(x))
        return y * self.c(y.mean((2, 3), keepdim=True)).sigmoid().relu() + y.relu() * y.relu()


@pytest.mark.parametrize(
    "make",
    [
        Gated,
        Dynamic,
        BatchStatistics,
    ],
)
def test_products_are_exact_where_the_layers_output_meets_itself(make):
    model = make()
    keep = {name: None for name in ("running_mean", "running_var") if getattr(model, "n", 0) != 0}
    model = awake(model)
    for name in keep:
        setattr(model.n, name, None)
    problem = make_problem(model, random_images(3), "b", 5)
    weight = nudged(problem.weight)
    direction = torch.randn_like(weight)
    ahead, behind = (problem.objective.linearise(weight + s * 1e-6 * direction).gradient for s in (1, -1))
    product = problem.objective.linearise(weight).product(direction)
    assert relative(product, (ahead - behind) / 2e-6) < 1e-6


class Attending(nn.Module):
    """Attention inside a module that is not looked into."""

    def __init__(self):
        super().__init__()
        self.q = nn.Linear(8, 8)

    def forward(self, y):
        return F.scaled_dot_product_attention(self.q(y), self.q(y), y)


class LeafAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.pre = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 8)
        self.attention, self.head = Attending(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attention(self.pre(self.embed(x).flatten(2).transpose(1, 2))).mean(1))


def test_attention_inside_a_leaf_module_has_products_too():
    model = awake(LeafAttention())
    problem = make_problem(model, random_images(3), "pre", 3, leaf_modules=["attention"])
    weight = nudged(problem.weight)
    assert torch.isfinite(problem.objective.linearise(weight).product(weight)).all()


def test_products_are_exact_for_torch_attention_in_either_layout():
    for batch_first in (True, False):
        model = torch_attention(batch_first=batch_first)
        problem = make_problem(model, random_images(3, 4), "attn.in_proj_weight", 6)
        weight = nudged(problem.weight)
        at = problem.objective.linearise(weight)
        direction = torch.randn_like(weight)
        ahead, behind = (problem.objective.linearise(weight + s * 1e-6 * direction).gradient for s in (1, -1))
        assert relative(at.product(direction), (ahead - behind) / 2e-6) < 1e-6


def wide_case(activation):
    """A linear layer with 131,072 of 262,144 weights kept, an activation and a linear layer behind it."""
    model = awake(nn.Sequential(nn.Flatten(), nn.Linear(12, 512), nn.Linear(512, 512), activation, nn.Linear(512, 8)))
    mask = torch.zeros(512, 256, 2, dtype=torch.bool)
    mask[..., 0] = True
    return make_problem(model, random_images(8, 2), "2", 2, mask=mask.flatten(1))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_a_layer_with_more_than_1e5_kept_weights_has_exact_products(activation):
    # Trap, and fault 2 of the published code: above 1e5 kept weights it splits the product into chunks of weights and
    # drops the cross terms between them. Here the whole product is one; the chunked one fails the same check.
    problem = wide_case(activation)
    assert int(problem.mask.sum()) > 1e5
    weight = nudged(problem.weight) * problem.mask
    direction = torch.randn(weight.shape, dtype=torch.float64) * problem.mask
    product = problem.objective.linearise(weight).product
    got = product(direction)
    step = 1e-6
    ahead, behind = (problem.objective.linearise(weight + s * step * direction).gradient for s in (1, -1))
    expected = (ahead - behind) / (2 * step)
    assert relative(got, expected) < 1e-5  # finite differences are good to about 1e-7 here
    first = direction * (torch.arange(512)[None] < 256)
    assert relative(product(first) + product(direction - first), got) < 1e-12
    inside = (torch.arange(512)[None] < 256).expand_as(weight)
    chunked = torch.where(inside, product(direction * inside), product(direction * ~inside))
    assert float((chunked - got).norm() / got.norm()) > 0.5, "dropping the cross terms would have gone unseen"


def test_attention_backends_are_restored_after_use_also_on_error(monkeypatch):
    # Trap: fused attention has no second derivative; the math backend is used inside the solver only.
    flags = [
        getattr(torch.backends.cuda, f"{name}_sdp_enabled") for name in ("flash", "mem_efficient", "math", "cudnn")
    ]
    before = [flag() for flag in flags]
    case = vit_case(5)
    inside = []
    run = type(case.problem.network).run

    def spy(self, nodes, values, weights=None):
        inside.append([flag() for flag in flags])
        return run(self, nodes, values, weights)

    monkeypatch.setattr(type(case.problem.network), "run", spy)
    at = case.objective.linearise(case.weight)
    assert [False, False, True, False] in inside
    at.product(case.weight)
    assert [flag() for flag in flags] == before

    def fail(self, nodes, values, weights=None):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(type(case.problem.network), "run", fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        case.objective.linearise(case.weight)
    with pytest.raises(RuntimeError, match=r"shape|size"):
        at.product(torch.ones(3, dtype=torch.float64))
    assert [flag() for flag in flags] == before
