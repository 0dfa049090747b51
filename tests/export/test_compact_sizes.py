"""compact: a network that lost half of its units has the parameters that a formula says, and PyTorch alone loads it."""

import subprocess
import sys
import warnings

import pytest
import torch

import snows_core as snows
from snows_core import zoo
from snows_core.zoo.networks import digits_resnet20, digits_vit_b


def resnet20_size(kept, inputs, width=16, classes=10):
    """Count a ResNet-20's parameters where a block's first convolution keeps this share of its output channels.

    A convolution of a inputs and b outputs has 9 a b numbers (a shortcut a b), a batch norm 2 b. The channels that skip
    connections add up (16, 32, 64 of them) all stay, so of a block only the h channels between its two convolutions go:
    9 a h + 2 h and 9 h b + 2 b.
    """
    total, a = 9 * inputs * width + 2 * width, width
    for stage in range(3):
        b = width * 2**stage
        for _ in range(3):
            h = round(kept * b)
            total += 9 * a * h + 2 * h + 9 * h * b + 2 * b
            total += a * b + 2 * b if a != b else 0
            a = b
    return total + a * classes + classes


def vit_size(kept, width=64, blocks=12, heads=4, patch=16, tokens=17, classes=10):
    """Count a ViT's parameters where each block keeps this share of its heads and of its hidden neurons.

    Of a block with d numbers a token, h heads of d / heads numbers each and m neurons: queries, keys and values
    3 (d + 1) h d / heads, projection h d / heads d + d, MLP (d + 1) m + m d + d, two layer norms 4 d, two layer scales
    2 d.
    """
    inside, neurons = round(kept * heads) * width // heads, round(kept * 4 * width)
    attention = 3 * (width + 1) * inside + inside * width + width
    mlp = (width + 1) * neurons + neurons * width + width
    embedding = patch * width + width + (1 + tokens) * width  # patches, class token, positions
    return embedding + blocks * (attention + mlp + 6 * width) + 2 * width + (width + 1) * classes


NETWORKS = {
    "digits ResNet-20": (digits_resnet20, lambda kept: resnet20_size(kept, inputs=1), (1, 16, 16)),
    "CIFAR ResNet-20": (zoo.resnet20, lambda kept: resnet20_size(kept, inputs=3), (3, 32, 32)),
    "ViT-B twin": (digits_vit_b, vit_size, (1, 16, 16)),
}


def thin(name, pattern):
    build, _, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(4, *shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*calibration images.*")
        return snows.prune(model, images, pattern, update="none", effort="quick", progress=False), images


@pytest.mark.parametrize("sparsity", [0.5, 0.25])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_size_is_that_of_the_formula(name, sparsity):
    result, images = thin(name, f"structured:{sparsity}")
    small, size = snows.compact(result, images), NETWORKS[name][1]
    assert small.parameters == (size(1), size(1 - sparsity))
    assert sum(parameter.numel() for parameter in small.model.parameters()) == size(1 - sparsity)
    with torch.no_grad():
        before, after = result.module(images), small.model(images)
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))  # rounding of float32
    assert float(before.abs().max()) > 0


@pytest.mark.parametrize(
    "name", ["digits ResNet-20", *(pytest.param(name, marks=pytest.mark.slow) for name in list(NETWORKS)[1:])]
)
def test_pytorch_alone_loads_it(name, tmp_path):
    result, images = thin(name, "structured:0.5")
    folder = snows.compact(result, images).save(tmp_path / "small")
    more = torch.randn(7, *images.shape[1:])  # another number of images than it was recorded with
    with torch.no_grad():
        torch.save((more, result.module(more)), tmp_path / "answers.pt")
    code = (
        "import sys; sys.modules['snows_core'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
        "import torch\n"
        f"images, wanted = torch.load({str(tmp_path / 'answers.pt')!r})\n"
        f"model = torch.export.load({str(folder / 'model.pt2')!r}).module()\n"
        "assert sum(p.numel() for p in model.parameters()) == " + str(NETWORKS[name][1](0.5)) + "\n"
        "assert torch.allclose(model(images), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
