"""select.py: what stays dense and why, in networks of many kinds; masks made elsewhere."""

import copy

import pytest
import torch
from timm.layers import ScaledStdConv2dSame, StdConv2dSame
from torch import nn
from torch.nn import functional as F
from toys import Wrapped, awake, chosen, plan, random_images, random_mask, reasons, small_resnet, small_vit

from snows_core.errors import SnowsError
from snows_core.masks.patterns import NM, Unstructured
from snows_core.network.check_trace import check_trace
from snows_core.network.graph import Network
from snows_core.sweep.choose_masks import choose_masks, read_masks
from snows_core.sweep.select import select_layers


class Zoo(nn.Module):
    """Layers that a pattern does not fit, or that cannot be pruned."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.narrow = nn.Conv2d(12, 6, 1)
        self.odd = nn.Conv2d(6, 12, 1)
        self.standard = StdConv2dSame(12, 12, 1, bias=False)
        self.computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(12, 12, 1))
        self.tokens = nn.Conv1d(12, 12, 1)
        self.query = nn.Parameter(torch.randn(1, 12))
        self.apart = nn.Linear(12, 12)
        self.fits = nn.Linear(12, 8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.odd(self.narrow(self.depthwise(self.grouped(self.stem(x)))))
        x = self.computed(self.standard(x)).flatten(2)
        return self.fc(self.fits(self.tokens(x).mean(2) + self.apart(self.query * 2)))


def test_what_stays_dense_says_why():
    model = awake(Zoo())
    network = Network(model)
    planned = select_layers(network, model, random_images(2))
    assert reasons(planned) == {
        "stem": "first layer (reads the image)",
        "fc": "classifier",
        "standard": "its stored weight is transformed before use (weight standardisation?)",
        "computed": "its weight is computed, not stored",
        "tokens": "1-dimensional convolution",
        "apart": "does not depend on the image",
    }
    planned, masks = choose_masks(network, planned, NM(2, 4))
    assert set(masks) == {"narrow", "fits"}
    assert "grouped convolution (3 groups)" in reasons(planned)["grouped"]
    assert "grouped convolution (12 groups)" in reasons(planned)["depthwise"]
    assert reasons(planned)["odd"] == "6 inputs do not divide into groups of 4"


def test_grouped_and_depthwise_are_fine_for_unstructured():
    model = awake(Zoo())
    network = Network(model)
    _, masks = choose_masks(network, select_layers(network, model, random_images(2)), Unstructured(0.5))
    assert set(masks) == {"grouped", "depthwise", "narrow", "odd", "fits"}


def test_a_pattern_that_fits_nothing_is_refused_with_reasons():
    network = Network(small_resnet())
    planned = select_layers(network, small_resnet(), random_images(2))
    with pytest.raises(SnowsError, match=r"pattern: got 7:9; expected a pattern that fits .*4 inputs do not divide"):
        choose_masks(network, planned, NM(7, 9))


def test_modules_that_the_graph_does_not_show_are_listed():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unused = nn.Linear(4, 4), nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(x) if x.sum() > -1e9 else x

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.mid, self.hidden = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), Hidden()

        def forward(self, x):
            return self.hidden(self.mid(self.conv(x)).mean((2, 3)))

    model = awake(Outer())
    planned = select_layers(Network(model, ["hidden"]), model, random_images(2))
    assert chosen(planned) == ["mid"]
    assert reasons(planned)["hidden.inner"] == "used inside a module that is not traced"
    assert "hidden.unused" in reasons(planned)


class Shared(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 2)
        self.way = way
        if way == "tied":
            self.b.weight = self.a.weight

    def forward(self, x):
        x = self.a(self.stem(x)).relu()
        if self.way == "function":
            x = F.conv2d(x, self.a.weight)
        elif self.way == "transposed":
            x = torch.einsum("nchw,cd->ndhw", x, self.a.weight.flatten(1))
        else:
            x = self.a(x) if self.way == "module" else self.b(x)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    "way",
    [
        "module",
        "tied",
        "function",
        "transposed",
    ],
)
def test_a_weight_used_twice_is_refused_unless_left_dense(way):
    model = awake(Shared(way))
    with pytest.raises(SnowsError, match=r"layers: got 'a', whose weight is used 2 times \(.*exclude=\['a'\]"):
        plan(model)
    assert chosen(plan(model, layers="*", exclude=["[ab]*", "fc"])) == ["stem"]


def test_one_activation_used_many_times_is_fine():
    assert len(chosen(plan(small_resnet()))) == 5  # its blocks use one ReLU object twice


def test_a_layer_that_reads_a_parameter_or_buffer_stays_dense():
    class Positions(nn.Module):
        """As Swin-V2's position bias: an MLP on a table of coordinates."""

        def __init__(self):
            super().__init__()
            self.stem, self.mid, self.mlp = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)
            self.register_buffer("table", torch.randn(1, 4))

        def forward(self, x):
            return self.head(self.mid(self.stem(x)).mean((2, 3)) + self.mlp(self.table))

    planned = plan(awake(Positions()))
    assert reasons(planned)["mlp"] == "does not depend on the image"


def test_a_kernel_that_is_a_buffer_stays_as_it_is():
    class Blurred(nn.Module):
        """As TResNet: a fixed blur kernel applied by ``F.conv2d``."""

        def __init__(self):
            super().__init__()
            self.stem, self.mid, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)
            self.register_buffer("filt", torch.full((4, 1, 3, 3), 1 / 9))

        def forward(self, x):
            return self.fc(self.mid(F.conv2d(self.stem(x), self.filt, groups=4)).mean((2, 3)))

    assert chosen(plan(awake(Blurred()))) == ["mid"]


def test_a_convolution_that_pads_in_its_own_way_stays_dense():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.odd = nn.Conv2d(3, 4, 1), ScaledStdConv2dSame(4, 4, 3, stride=2)
            self.mid, self.fc = nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.mid(self.odd(self.stem(x))).mean((2, 3)))

    planned = plan(awake(Padded()))
    assert chosen(planned) == ["mid"] and "transformed before use" in reasons(planned)["odd"]


def test_a_bias_that_is_computed_does_not_hide_the_layer():
    class ComputedBias(nn.Module):
        """As BEiT's and EVA's qkv: stored weight, bias put together from parts."""

        def __init__(self):
            super().__init__()
            self.stem, self.qkv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 12, bias=False), nn.Linear(12, 2)
            self.q, self.v = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
            self.register_buffer("k", torch.zeros(4))

        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            y = F.linear(x, weight=self.qkv.weight, bias=torch.cat((self.q, self.k, self.v)))
            return self.head(y.mean(1))

    assert chosen(plan(awake(ComputedBias()))) == ["qkv"]


def test_a_bias_that_depends_on_the_image_leaves_the_layer_dense():
    class Conditional(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shift, self.mid = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            y = self.stem(x).mean((2, 3))
            return self.head(F.linear(y, self.mid.weight, self.shift(y).mean(0)).relu())

    planned = plan(awake(Conditional()))
    assert chosen(planned) == ["shift"]
    assert reasons(planned)["mid"] == "its bias is computed from the image"


def test_images_that_do_not_fit_the_model_are_refused():
    with pytest.raises(SnowsError, match=r"images: got shape \(2, 1, 8, 8\) .*, which the model refuses"):
        plan(small_resnet(), random_images(2, channels=1))
    with pytest.raises(SnowsError, match=r"images: got shape \(2, 3, 6, 6\).*which the model refuses"):
        plan(small_vit(), random_images(2, 6))


def test_a_graph_that_differs_from_the_model_is_refused():
    model = small_resnet()
    network = Network(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc.weight.mul_(2)
    with pytest.raises(SnowsError, match=r"model: its traced graph differs from the model by .*leaf_modules="):
        check_trace(network, other, random_images(2))


def test_check_trace_returns_every_layers_input_and_output():
    model = small_resnet()
    network = Network(model)
    seen = check_trace(network, model, random_images(2))
    for layer in network.layers:
        x, y, _ = seen[layer.name]
        assert torch.equal(model.get_submodule(layer.name)(x), y)


@pytest.mark.parametrize("output", [lambda y: (y, 0), lambda y: [y], lambda y: {"out": y}])
def test_networks_that_return_more_than_a_tensor(output):
    assert len(chosen(plan(Wrapped(small_resnet(), output).eval()))) == 5


def test_foreign_masks_are_accepted_as_they_are_also_where_a_pattern_would_not_fit():
    model = awake(Zoo())
    network = Network(model)
    planned = select_layers(network, model, random_images(2))
    given = {"odd": random_mask((12, 6, 1, 1)), "depthwise": random_mask((12, 1, 3, 3))}
    planned, masks = read_masks(network, planned, NM(2, 4), given)
    assert masks.keys() == given.keys()
    assert reasons(planned)["narrow"] == "no zeros in the given masks"


def test_foreign_masks_of_first_layer_and_classifier_are_accepted_too():
    model = small_resnet()
    network = Network(model)
    planned = select_layers(network, model, random_images(2), keep_ends=False)
    given = {"fc": random_mask((3, 8)), "layer1.conv1": random_mask((4, 4, 3, 3))}
    _, masks = read_masks(network, planned, NM(2, 4), given)
    assert masks.keys() == given.keys()
