"""attention.py, spelled_out.py: attention and transformers of PyTorch in the open, in all uses, equal the modules."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import awake, chosen, plan, random_images, reasons

from snows_core.network.check_trace import without_fast_path
from snows_core.network.graph import Network
from snows_core.network.operations import Kind

pytestmark = pytest.mark.filterwarnings("ignore:.*(nested tensor|is_causal|mismatched key_padding_mask).*:UserWarning")

TOKENS, WIDTH, HEADS = 16, 8, 2


class Around(nn.Module):
    """Tokens of an image, some attention on them, a head; ``use`` returns tokens, and what else is to be compared."""

    def __init__(self, inner, use, batch_first=True):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 2, 2)
        self.inner, self.use, self.batch_first = inner, use, batch_first
        self.head = nn.Linear(WIDTH, 3)
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("mask", torch.rand(TOKENS, TOKENS, generator=generator) < 0.3)
        self.mask.fill_diagonal_(False)
        self.register_buffer("query", torch.randn(1, 5, WIDTH, generator=generator))

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y = tokens if self.batch_first else tokens.transpose(0, 1)
        out, *rest = self.use(self, y)
        out = out if self.batch_first else out.transpose(0, 1)
        return self.head(out.mean(1)), *rest


def check(inner, use, batch_first=True, example=True):
    """The graph gives what the model gives, for another number of images too; returns the network."""
    model = awake(Around(inner, use, batch_first))
    network = Network(model, example=random_images(2) if example else None)
    for count in (2, 3):
        images = random_images(count)
        with without_fast_path():
            for got, want in zip(network.module(images), model(images), strict=True):
                assert torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    assert Kind.ATTENTION in network.kinds.values()
    assert not network.module.meta["opaque"]
    return network


def own(module, y, **options):
    return module.inner(y, y, y, **options)


SELF = {
    "weights": lambda m, y: own(m, y),
    "weights of each head": lambda m, y: own(m, y, average_attn_weights=False),
    "no weights": lambda m, y: own(m, y, need_weights=False)[:1],
    "bool mask": lambda m, y: own(m, y, attn_mask=m.mask),
    "float mask": lambda m, y: own(m, y, attn_mask=m.mask.to(y.dtype) * 1.5),
    "mask for each head": lambda m, y: own(
        m, y, attn_mask=m.mask.expand(HEADS * y.shape[0 if m.batch_first else 1], TOKENS, TOKENS)
    ),
    "padding": lambda m, y: own(m, y, key_padding_mask=m.mask[:1].expand(y.shape[0 if m.batch_first else 1], TOKENS)),
    "padding and mask": lambda m, y: own(
        m,
        y,
        attn_mask=m.mask,
        key_padding_mask=torch.arange(TOKENS).expand(y.shape[0 if m.batch_first else 1], TOKENS) > TOKENS - 3,
    ),
    "causal": lambda m, y: own(
        m, y, attn_mask=torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1), is_causal=True, need_weights=False
    )[:1],
}


@pytest.mark.parametrize("use", SELF)
def test_self_attention_in_every_use_equals_the_module(use):
    for batch_first in (True, False):
        network = check(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first), SELF[use], batch_first)
        names = [layer.name for layer in network.layers]
        assert names == ["embed", "inner.in_proj_weight", "inner.out_proj", "head"]


OPTIONS = [
    {"bias": bias, "add_bias_kv": extra, "add_zero_attn": zero}
    for bias, extra, zero in itertools.product((True, False), repeat=3)
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(name for name, on in o.items() if on) or "none")
def test_biases_and_extra_tokens(options):
    uses = ["weights", "padding and mask", "no weights"]
    for use, batch_first in itertools.product(uses, (True, False)):
        inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        check(inner, SELF[use], batch_first)


def cut(y, module, count):
    return y[:, :count] if module.batch_first else y[:count]


CROSS = {
    "learnt queries": lambda m, y: m.inner(m.query.expand(len(y), -1, -1), y, y),
    "part as query": lambda m, y: m.inner(cut(y, m, 3), y, y),
    "query is key": lambda m, y: m.inner(y, y, y * 2),
    "key is value": lambda m, y: m.inner(y + 1, y, y, need_weights=False)[:1],
    "query is value": lambda m, y: m.inner(y, y * 2, y),
    "all different": lambda m, y: m.inner(query=y, key=y + 1, value=y * 2),
    "keywords": lambda m, y: m.inner(key=y, value=y, query=cut(y, m, 4)),
}


@pytest.mark.parametrize("use", CROSS)
def test_cross_attention_keeps_its_stacked_weight_one_layer(use):
    for batch_first in (True,) if use == "learnt queries" else (True, False):
        network = check(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first), CROSS[use], batch_first)
        assert [layer.name for layer in network.layers].count("inner.in_proj_weight") == 1
        layer = next(layer for layer in network.layers if layer.name == "inner.in_proj_weight")
        assert network.weight(layer).shape == (3 * WIDTH, WIDTH)


@pytest.mark.parametrize("bias", [True, False])
def test_keys_and_values_of_other_widths_have_a_layer_each(bias):
    inner = nn.MultiheadAttention(WIDTH, HEADS, kdim=4, vdim=6, bias=bias, batch_first=True)
    network = check(inner, lambda m, y: m.inner(y, y[..., :4], y[..., :6]))
    names = [layer.name for layer in network.layers]
    assert names[1:4] == [f"inner.{part}_proj_weight" for part in "qkv"]


def test_tokens_of_one_image_without_a_batch_axis():
    check(nn.MultiheadAttention(WIDTH, HEADS), lambda m, y: [own(m, y[0])[0][None] + y, own(m, y[0])[1]])


def test_a_network_that_calls_the_function_itself():
    class Pool(nn.Module):
        """As CLIP's attention pooling: separate projections, handed to the function."""

        def __init__(self):
            super().__init__()
            self.q, self.k, self.v, self.c = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

        def forward(self, x):
            bias = torch.cat([self.q.bias, self.k.bias, self.v.bias])
            return F.multi_head_attention_forward(
                query=x[:1],
                key=x,
                value=x,
                embed_dim_to_check=WIDTH,
                num_heads=HEADS,
                q_proj_weight=self.q.weight,
                k_proj_weight=self.k.weight,
                v_proj_weight=self.v.weight,
                in_proj_weight=None,
                in_proj_bias=bias,
                bias_k=None,
                bias_v=None,
                add_zero_attn=False,
                dropout_p=0.0,
                out_proj_weight=self.c.weight,
                out_proj_bias=self.c.bias,
                use_separate_proj_weight=True,
                training=False,
                need_weights=False,
            )[0]

    network = check(Pool(), lambda m, y: [m.inner(y)], batch_first=False)
    assert [layer.name for layer in network.layers][1:5] == ["inner.q", "inner.k", "inner.v", "inner.c"]


def test_what_is_pruned_does_not_depend_on_need_weights():
    plans = []
    for need in (True, False):
        inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        model = awake(Around(inner, lambda m, y, need=need: own(m, y, need_weights=need)[:1]))
        network = Network(model, example=random_images(2))
        plans.append((chosen(plan(model)), [network.kinds[node] for node in network.kinds]))
    assert plans[0] == plans[1]
    assert plans[0][0] == ["inner.in_proj_weight", "inner.out_proj"]


ENCODER = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 12}
LAYERS = [
    {"norm_first": first, "batch_first": batch, "activation": activation}
    for first, batch, activation in itertools.product((True, False), (True, False), ("relu", F.gelu))
]
MASKS = {
    "none": lambda m, y: {},
    "mask": lambda m, y: {"mask": m.mask},
    "float mask": lambda m, y: {"mask": m.mask.to(y.dtype) * -0.5},
}


@pytest.mark.parametrize("options", LAYERS, ids=lambda o: "-".join(str(getattr(v, "__name__", v)) for v in o.values()))
def test_transformer_encoders_and_decoders_equal_the_modules(options):
    batch_first = options["batch_first"]
    for make in MASKS.values():
        layer = nn.TransformerEncoderLayer(**ENCODER, **options)
        encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        network = check(encoder, lambda m, y, make=make: [m.inner(y, **make(m, y))], batch_first)
        assert len(network.layers) == 2 + 2 * 4
        layer = nn.TransformerEncoderLayer(**ENCODER, **options)
        check(layer, lambda m, y, make=make: [m.inner(y, *make(m, y).values())], batch_first)
        decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**ENCODER, **options), 2, norm=nn.LayerNorm(WIDTH))
        network = check(decoder, lambda m, y, make=make: [m.inner(y, y * 2, *make(m, y).values())], batch_first)
        assert len(network.layers) == 2 + 2 * 6


def test_the_whole_transformer_and_one_without_an_example():
    inner = nn.Transformer(WIDTH, HEADS, 1, 1, 12, batch_first=True)
    network = check(inner, lambda m, y: [m.inner(y, y * 2)])
    assert len(network.layers) == 2 + 4 + 6
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=True)
    check(nn.TransformerEncoder(layer, 2), lambda m, y: [m.inner(y)], example=False)
    check(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), SELF["weights"], example=False)


def test_pytorchs_fast_path_misreads_number_masks_and_is_not_what_the_graph_is_compared_with():
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=True)
    model = awake(Around(layer, lambda m, y: [m.inner(y, m.mask.to(y.dtype) * -0.5)]))
    assert chosen(plan(model))


def test_a_vision_transformer_of_pytorchs_encoder_is_planned_as_timms():
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=True, norm_first=True)
    model = awake(Around(nn.TransformerEncoder(layer, 2), lambda m, y: [m.inner(y)]))
    planned = plan(model)
    parts = ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2")
    assert chosen(planned) == [f"inner.layers.{i}.{part}" for i in (0, 1) for part in parts]
    assert reasons(planned) == {"embed": "first layer (reads the image)", "head": "classifier"}


def test_nodes_know_their_modules_also_inside_of_what_was_spelled_out():
    layer = nn.TransformerEncoderLayer(**ENCODER, batch_first=True)
    model = awake(Around(nn.TransformerEncoder(layer, 1), lambda m, y: [m.inner(y)]))
    network = Network(model, example=random_images(2))
    node = next(layer.node for layer in network.layers if layer.name.endswith("in_proj_weight"))
    scopes = [path for path, _ in node.meta["nn_module_stack"].values()]
    assert scopes == ["inner", "inner.layers.0", "inner.layers.0.self_attn"]


def test_a_subclass_with_a_forward_of_its_own_is_followed_through_it():
    class Doubled(nn.MultiheadAttention):
        def forward(self, x):
            out, weights = super().forward(x, x, x)
            return out * 2, weights

    network = check(Doubled(WIDTH, HEADS, batch_first=True), lambda m, y: m.inner(y))
    assert "inner.in_proj_weight" in [layer.name for layer in network.layers]


def test_hooks_of_spelled_out_modules_still_run():
    inner = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    inner.register_forward_hook(lambda module, args, output: (output[0] * 3, output[1]))
    check(inner, SELF["weights"])
