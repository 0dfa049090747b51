"""Products in fewer bits: what stays exact, what it costs in accuracy, and that no setting is left behind."""

import pytest
import torch
from toys import loss_of, random_images, relative, small_resnet, small_vit

import snows_core as snows
from snows_core.activations.cache import ActivationCache
from snows_core.errors import SnowsError
from snows_core.loss.precision import tensor_cores
from snows_core.network.graph import Network
from snows_core.settings import get_recipe


def problem(make, size, precision, layer=1, curvature="hessian"):
    torch.manual_seed(0)
    network = Network(make().float())
    stream = ActivationCache(network, [random_images(8, size).float(), random_images(4, size).float()])
    stream.advance(network.index[network.layers[layer].node])
    weight = network.weight(network.layers[layer])
    mask = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    recipe = get_recipe("fast", precision=precision, curvature=curvature)
    segment = network.segment(network.layers[layer], 3)
    return loss_of(network, segment, mask, (stream,), recipe), torch.where(mask, 0.9 * weight, 0.0)


@pytest.mark.parametrize("make, size", [(small_resnet, 8), (small_vit, 4)])
@pytest.mark.parametrize("curvature", ["hessian", "gauss-newton"])
def test_bfloat16_products_are_near_and_loss_and_gradient_exact(make, size, curvature):
    full, weight = problem(make, size, "float32", curvature=curvature)
    short, _ = problem(make, size, "bfloat16", curvature=curvature)
    one, other = full.linearise(weight), short.linearise(weight)
    assert other.loss == pytest.approx(one.loss, rel=1e-6) and relative(other.gradient, one.gradient) < 1e-5
    direction = torch.where(full.mask, torch.randn_like(weight), 0.0)
    gap = relative(other.product(direction), one.product(direction))
    assert 1e-6 < gap < 0.1, "bfloat16 has 8 bits: near, but not the same numbers"


def test_a_run_in_bfloat16_ends_near_the_run_in_single_precision():
    torch.manual_seed(0)
    model, images = small_resnet().float(), random_images(32, 8).float()
    options = {"k": 3, "progress": False}
    full = snows.prune(model, images, "2:4", **options, effort="quick").report
    short = snows.prune(model, images, "2:4", precision="bfloat16", **options, effort="quick").report
    assert short["loss_end"].sum() < 1.1 * full["loss_end"].sum()


def test_tf32_is_switched_on_inside_and_back_after_an_error():
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    with pytest.raises(RuntimeError, match="inside"), tensor_cores():
        assert matmul.allow_tf32 and convolution.allow_tf32
        raise RuntimeError("inside")
    assert (matmul.allow_tf32, convolution.allow_tf32) == before


def test_tf32_changes_nothing_on_the_cpu():
    full, weight = problem(small_resnet, 8, "float32")
    short, _ = problem(small_resnet, 8, "tf32")
    direction = torch.where(full.mask, torch.ones_like(weight), 0.0)
    assert torch.equal(short.linearise(weight).product(direction), full.linearise(weight).product(direction))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_short_products_on_a_gpu_end_near_full_ones(precision):
    torch.manual_seed(0)
    model, images = small_resnet().float(), random_images(32, 8).float()
    options = {"k": 3, "progress": False, "device": "cuda"}
    full = snows.prune(model, images, "2:4", **options, effort="quick").report
    short = snows.prune(model, images, "2:4", precision=precision, **options, effort="quick").report
    assert short["loss_end"].sum() < 1.1 * full["loss_end"].sum()


def test_an_unknown_precision_is_refused():
    with pytest.raises(SnowsError, match=r"^precision: got 'fp8'; expected one of"):
        get_recipe("fast", precision="fp8")
