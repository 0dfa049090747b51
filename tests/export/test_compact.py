"""compact: units without use go, the outputs stay; constants reach the biases of their readers; the rest is named."""

import subprocess
import sys

import pytest
import timm
import torch
import torchvision
from torch import nn
from toys import awake, random_images, small_resnet, small_vit, torch_attention

import snows_core as snows
from snows_core.errors import SnowsError
from snows_core.network.graph import Network
from snows_core.network.units import unit_groups
from snows_core.zoo.networks import digits_resnet20


def groups_of(model, images):
    return {group.name: group for group in unit_groups(Network(model, example=images), model, images)}


@torch.no_grad()
def emptied(model, images, rows):
    """Set every second unit of every free group to zero in what reads it, or in what computes it; return how many."""
    parameters, count = dict(model.named_parameters()), 0
    for group in groups_of(model, images).values():
        if group.bound:
            continue
        half = torch.arange(group.units) % 2 == 0
        parts = [part for part in group.parts if part.axis == 0 and part.tensor in parameters]
        for part in parts if rows else [reading.part for reading in group.readings]:
            parameters[part.tensor].index_fill_(part.axis, part.places[half].flatten(), 0.0)
        count += int(half.sum())
    return count


def checked(model, images, removed=None):
    with torch.no_grad():
        before = model(images)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        small = snows.compact(model, images)
        after = small.model(images)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items()), "the model is changed"
    assert type(small.model) is type(model)
    assert float(before.abs().max()) > 0
    gap = float((after - before).abs().max() / before.abs().max())
    assert gap < 1e-10  # sums of float64 in another order, over some tens of layers
    if removed is not None:
        assert int(small.table["removed"].sum()) == removed
    return small


NETWORKS = {
    "bottlenecks": lambda: timm.models.resnet.ResNet(
        timm.models.resnet.Bottleneck, (1, 2, 1, 1), num_classes=5, channels=(8, 16, 16, 24)
    ),
    "depthwise": lambda: timm.create_model("mobilenetv2_035", num_classes=5),
    "squeeze-excite": lambda: timm.create_model("mobilenetv3_small_050", num_classes=5),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32)),
    "vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, num_classes=5, depth=2, embed_dim=48, num_heads=4
    ),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=32,
        window_size=4,
        num_classes=5,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
    ),
    "densenet": lambda: timm.models.densenet.DenseNet(8, (2, 2), num_classes=5, bn_size=2),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_the_same_without_what_nothing_reads(name):
    model, images = awake(NETWORKS[name]()), random_images(2, size=32)
    count = emptied(model, images, rows=False)
    small = checked(model, images, count)
    assert small.parameters[1] < small.parameters[0] and not small.table["idle"].any()
    assert not snows.compact(small.model, images).table["removed"].any(), "a second time there is nothing to do"


def test_heads_go_and_the_module_is_its_class_still():
    model, images = awake(NETWORKS["vit"]()), random_images(2, size=32)
    emptied(model, images, rows=False)
    attention = checked(model, images).model.blocks[0].attn
    assert (attention.num_heads, attention.head_dim, attention.scale) == (2, 12, 12**-0.5)
    assert attention.qkv.weight.shape == (72, 48) and attention.proj.in_features == 24
    assert type(attention) is type(model.blocks[0].attn)


def test_a_last_head_is_no_reason_where_none_without_use_stays():
    model, images = small_vit(), random_images(2, size=4)  # two heads of four numbers
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight[:, :4] = 0.0
    table = checked(model, images, 2).table
    assert table["kind"].tolist() == ["heads"] * 2 and table["idle"].sum() == 0
    assert table["reason"].tolist() == ["", ""]


def test_values_of_zero_weights_are_their_bias_and_reach_the_projection():
    model, images = awake(NETWORKS["vit"]()), random_images(2, size=32)
    with torch.no_grad():
        model.blocks[1].attn.qkv.weight[96 + 12 : 96 + 24] = 0.0  # values of the second of four heads; its bias stays
    small = checked(model, images, 1)
    assert small.table["kind"].tolist() == ["heads"]
    assert not torch.equal(small.model.blocks[1].attn.proj.bias, model.blocks[1].attn.proj.bias)


class Between(nn.Module):
    """A convolution whose channels pass a batch norm, an activation and what else there is, before one reads them."""

    def __init__(self, *layers):
        super().__init__()
        self.first, self.rest = nn.Conv2d(3, 6, 3), nn.Sequential(*layers)

    def forward(self, x):
        return self.rest(self.first(x)).flatten(1)


def between(*layers, zero=(1, 4)):
    model = awake(Between(*layers))
    with torch.no_grad():
        model.first.weight[list(zero)] = 0.0
    return model


CONSTANT = {
    "1 x 1": (nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 5, 1, bias=False)),
    "unpadded": (nn.BatchNorm2d(6), nn.GELU(), nn.Conv2d(6, 5, 3)),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 5, 1)),
    "times two": (nn.Conv2d(6, 12, 3, groups=6), nn.SiLU(), nn.Conv2d(12, 5, 1)),
    "flattened": (nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 5)),
    "bias, then another reader": (nn.SiLU(), nn.Conv2d(6, 4, 1, bias=False), nn.Tanh(), nn.Conv2d(4, 3, 1)),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_what_a_row_of_zeros_still_gives_goes_into_the_bias_of_its_reader(name):
    model, images = between(*CONSTANT[name]), random_images(2, size=8)
    small = checked(model, images, 2)
    assert small.model.first.out_channels == 4
    assert small.table.set_index("group").loc["first", "reason"] == ""


def test_a_new_bias_is_as_long_as_its_layer_that_becomes_narrower_too():
    model, images = between(*CONSTANT["bias, then another reader"]), random_images(2, size=8)
    with torch.no_grad():
        model.rest[3].weight[:, 2] = 0.0  # nothing reads the third output of the layer that gets a bias
    small = checked(model, images, 3)
    assert small.model.rest[1].bias.shape == (3,)


def test_before_borders_of_zeros_a_channel_goes_where_it_is_zero_alone():
    layers = (nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1))
    model, images = between(*layers), random_images(2, size=8)
    with torch.no_grad():
        norm = model.rest[0]
        norm.running_mean.copy_(model.first.bias)
        norm.bias[1], norm.bias[4] = -0.5, 0.5  # behind ReLU 0.0 and 0.5
    row = checked(model, images, 1).table.set_index("group").loc["first"]
    assert row["idle"] == 1 and "pads with zeros" in row["reason"]


def test_a_residual_stream_loses_the_channels_that_no_layer_writes():
    model, images = small_resnet(), random_images(2)
    writers = [model.conv1, model.layer1.conv2]
    with torch.no_grad():
        for conv in writers:
            conv.weight[2] = 0.0
        for norm in (model.bn1, model.layer1.bn2):
            norm.running_mean[2], norm.bias[2] = 0.0, 0.0
    small = checked(model, images, 1)
    assert small.model.conv1.out_channels == small.model.layer1.conv2.out_channels == 3
    assert small.model.layer2.downsample[0].in_channels == small.model.layer1.conv1.in_channels == 3
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = 1.0  # one layer writes it again
    assert not checked(model, images).table["removed"].any()


def test_what_a_layer_norm_reads_stays_with_its_reason():
    model, images = small_vit(), random_images(2, size=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "patch_embed.proj.weight")):
                parameter[3] = 0.0
    table = checked(model, images, 0).table
    assert len(table) and (table["reason"] != "").all() and (table["idle"] == 1).all()


def test_heads_of_pytorchs_own_attention_stay():
    model, images = torch_attention(), random_images(2, size=4)
    group = groups_of(model, images)["attn"]
    assert group.kind == "heads" and "fewer heads" in group.bound


def test_what_leaves_other_units_without_use_takes_them_along():
    layers = (nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    model = awake(nn.Sequential(*layers))
    with torch.no_grad():
        model[5].weight[:, 1] = 0.0
        model[3].weight[[0, 2, 3, 4], 3] = 0.0  # only the neuron that goes reads the third one before it
    small = checked(model, random_images(7, size=2), 2)
    assert small.model[1].out_features == 5 and small.model[3].weight.shape == (4, 5)


def test_one_unit_stays_of_a_layer_that_does_nothing():
    model = awake(nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[3].weight.zero_()
    small = checked(model, random_images(2, size=2), 5)
    assert small.model[1].out_features == 1


class Fixed(nn.Module):
    """A forward pass in which a number of channels is written down."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Linear(6, 2)
        self.third, self.fourth = nn.Linear(2, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x).mean((2, 3)).view(-1, 6)
        return self.fourth(self.third(self.second(x)).relu())


def test_a_forward_pass_that_expects_a_number_keeps_that_group_and_no_other():
    model, images = awake(Fixed()), random_images(2)
    with torch.no_grad():
        model.second.weight[:, 0] = 0.0
        model.fourth.weight[:, 1] = 0.0
    table = checked(model, images, 1).table.set_index("group")
    assert table.loc["third", "removed"] == 1
    assert table.loc["first", "idle"] == 1 and "expects" in table.loc["first", "reason"]


class Counted(Fixed):
    """A forward pass that divides by a number of channels, whatever it is."""

    def forward(self, x):
        x = self.second(self.first(x).mean((2, 3))) / self.first.out_channels
        return self.fourth(self.third(x).relu())


def test_a_forward_pass_that_counts_its_channels_keeps_them():
    model, images = awake(Counted()), random_images(2)
    with torch.no_grad():
        model.second.weight[:, 0] = 0.0
        model.fourth.weight[:, 1] = 0.0
    table = checked(model, images, 1).table.set_index("group")
    assert table.loc["third", "removed"] == 1
    assert table.loc["first", "idle"] == 1 and "expects" in table.loc["first", "reason"]


class TwoReaders(nn.Module):
    """Neurons that two layers read."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(12, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x):
        x = self.first(x.flatten(1)).relu()
        return self.left(x) + self.right(x)


def test_a_unit_goes_where_none_of_its_readers_needs_it():
    model = awake(TwoReaders())
    with torch.no_grad():
        model.left.weight[:, 1:3] = 0.0
        model.right.weight[:, 2:4] = 0.0
    small = checked(model, random_images(2, size=2), 1)
    assert torch.equal(small.model.first.weight, model.first.weight[[0, 1, 3, 4, 5]])


class Drawing(nn.Module):
    """Dropout that knows of no eval mode."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        return nn.functional.dropout(self.fc(x.flatten(1)))


def test_a_network_that_answers_otherwise_each_time_is_refused():
    with pytest.raises(SnowsError, match=r"model: got outputs that differ by .*is it in eval mode\?"):
        snows.compact(awake(Drawing()), random_images(2, size=2))


def test_groups_of_channels_keep_their_size():
    model = awake(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 3, 1)))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1], model[3].weight[:, 2] = 0.0, 0.0, 0.0
    table = checked(model, random_images(2), 0).table.set_index("group")
    assert "one by one" in table.loc["0", "reason"]


@pytest.mark.usefixtures("few_images_are_fine")
def test_a_result_is_compacted_to_the_size_that_the_formula_says():
    """Two rows of k x k kernels of every second channel: half of each of the 18 inner convolutions of ResNet-20."""
    torch.manual_seed(0)
    model, images = digits_resnet20().eval(), torch.randn(8, 1, 8, 8)
    result = snows.prune(model, images, "structured:0.5", update="none", effort="quick", progress=False)
    small = snows.compact(result, images)
    inner = sum(p.numel() for name, p in model.named_parameters() if name.startswith("layer") and ".conv" in name)
    norms = sum(p.numel() for name, p in model.named_parameters() if ".bn1." in name and name.startswith("layer"))
    assert small.parameters[0] - small.parameters[1] == inner // 2 + norms // 2
    with torch.no_grad():
        assert torch.allclose(small.model(images), result.module(images), rtol=1e-4, atol=1e-5)  # rounding of float32
    assert "removed" in repr(small)


def test_files_load_without_this_package(tmp_path):
    model, images = awake(NETWORKS["vit"]()).float(), random_images(2, size=32).float()
    emptied(model, images, rows=False)
    small = snows.compact(model, images)
    folder = small.save(tmp_path / "small")
    assert {path.name for path in folder.iterdir()} == {"model.pt2", "model.safetensors", "compact.json"}
    more = torch.cat([images, images, images[:1]])
    with torch.no_grad():
        torch.save((more, small.model(more)), tmp_path / "answers.pt")
    code = (
        "import sys; sys.modules['snows_core'] = sys.modules['timm'] = None\n"
        "import torch, json, safetensors.torch as st\n"
        f"images, wanted = torch.load({str(tmp_path / 'answers.pt')!r})\n"
        f"model = torch.export.load({str(folder / 'model.pt2')!r}).module()\n"
        "assert torch.allclose(model(images), wanted, rtol=1e-4, atol=1e-5)\n"
        f"shapes = json.load(open({str(folder / 'compact.json')!r}))['shapes']\n"
        f"state = st.load_file({str(folder / 'model.safetensors')!r})\n"
        "assert {name: list(value.shape) for name, value in state.items()} == shapes\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with pytest.raises(SnowsError, match="overwrite"):
        small.save(folder)
    small.save(folder, overwrite=True)
    (folder / "other.txt").write_text("")
    with pytest.raises(SnowsError, match="other files"):
        small.save(folder, overwrite=True)


def test_what_cannot_be_compacted_is_refused():
    with pytest.raises(SnowsError, match=r"model: got int"):
        snows.compact(3, random_images(2))
    with pytest.raises(SnowsError, match="images"):
        snows.compact(small_resnet(), torch.zeros(1, 7, 4, 4))
