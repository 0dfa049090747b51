"""The experiments by name, one row each."""

from __future__ import annotations

from snows_core.errors import closest, invalid_argument
from snows_core.zoo.experiment import Experiment, Record
from snows_core.zoo.sources import in_libraries, preprocessing
from snows_core.zoo.weights import shipped_record

__all__ = ["EXPERIMENTS", "Experiment", "Record", "experiment"]

SHORTCUTS = ("*downsample*",)  # 1 x 1 convolutions beside the residual branch stay dense in the published runs
TIMM_RESULTS = "ImageNet validation, timm results table results-imagenet.csv"
STATED = "ImageNet validation, stated with torchvision's weights"


def _digits(name: str, title: str, k: int, exclude: tuple[str, ...] = ()) -> Experiment:
    record = shipped_record(name)
    records: tuple[Record, ...] = ()
    if record is not None:
        records = (Record("digits", record["test_images"], record["accuracy"], "597 test digits, when trained", 0.5),)
    return Experiment(
        name,
        title,
        f"digits/{name}",
        "digits",
        "default",
        records,
        k=k,
        exclude=exclude,
        note=f"Shipped with the package; retrained by `snows train {name}`.",
    )


def _timm(name: str, weights: str, title: str, accuracy: float, k: int, note: str = "") -> Experiment:
    record = Record("imagenet", 50_000, accuracy, TIMM_RESULTS)
    return Experiment(
        name, title, f"timm/{weights}", "imagenette", "imagenet", (record,), k=k, batch_size=32, note=note
    )


def _torchvision(
    name: str, weights: str, title: str, accuracy: float, k: int, exclude: tuple[str, ...] = ()
) -> Experiment:
    """Make a row; the accuracy is written out, as torchvision states it, so that no row loads torchvision."""
    record = Record("imagenet", 50_000, accuracy, STATED)
    return Experiment(
        name, title, f"torchvision/{weights}", "imagenette", "imagenet", (record,), k=k, exclude=exclude, batch_size=32
    )


def _lite(size: int, accuracy: float) -> Experiment:
    record = Record("imagenet-samples", 500, accuracy, "500 of the 1,000 sample images, measured by this project", 0.5)
    return Experiment(
        f"efficientnet-lite{size}",
        f"EfficientNet-Lite{size} on ImageNet",
        f"package/efficientnet_lite{size}",
        "imagenet-samples",
        "imagenet-samples",
        (record,),
        k=5,
        calibration_images=128,
        batch_size=32,
        note="Weights from a package of the index (the extra imagenet-samples), or timm's from the hub. Depthwise"
        " convolutions are skipped for N:M patterns.",
    )


_ROWS = (
    _digits("digits-resnet20", "ResNet-20 on digits", k=5, exclude=SHORTCUTS),
    _digits("digits-resnet50", "ResNet-50 made narrow, on digits", k=5, exclude=SHORTCUTS),
    _digits("digits-vit-b", "ViT-B made narrow (12 blocks, 64 wide), on digits", k=3),
    _digits("digits-vit-l", "ViT-L made narrow (24 blocks, 64 wide), on digits", k=3),
    Experiment(
        "resnet20",
        "ResNet-20 on CIFAR-10, the published dense network",
        "published/resnet20",
        "cifar10",
        "cifar",
        (
            Record("cifar10", 1_017, 90.86, "1,017 lossless test images, measured by this project", 0.5),
            Record("cifar10-full", 10_000, 91.96, "best_top1 in the checkpoint"),
            Record("cifar10", 10_000, 91.96, "best_top1 in the checkpoint"),  # from a complete tree, which is not cut
        ),
        k=5,
        exclude=SHORTCUTS,
        note="Inputs normalised by mean 0.5 and std 0.5. Published runs: K about 20, 3,000 images.",
    ),
    Experiment(
        "resnet50-cifar100",
        "ResNet-50 on CIFAR-100",
        "hub/edadaltocg/resnet50_cifar100",
        "cifar100",
        "cifar",
        (Record("cifar100", 10_000, 80.93, "test accuracy on the model card of edadaltocg/resnet50_cifar100"),),
        k=30,
        exclude=SHORTCUTS,
        batch_size=64,
        note="timm's resnet50 with a 3 x 3 stem of stride 1 and no pooling; weights through timm from the hub. The"
        " published SNOWS code takes these weights, but with CIFAR-10's mean and std; ours are those of its training.",
    ),
    _torchvision("resnet50", "resnet50:IMAGENET1K_V1", "ResNet-50 on ImageNet", 76.13, 30, SHORTCUTS),
    _lite(0, 87.2),
    _lite(1, 89.4),
    _lite(2, 90.2),
    Experiment(
        "vit_small_patch14_saliency",
        "ViT-S/14, DINOv2 fine-tuned for saliency",
        "package/vit_small_patch14_saliency",
        "imagenet-samples",
        "imagenet-samples",
        k=3,
        calibration_images=128,
        batch_size=32,
        note="A backbone without classes, from a package of the index (the extra imagenet-samples): judged by its"
        " features.",
    ),
    _timm("vit_base_patch16_224", "vit_base_patch16_224.augreg_in1k", "ViT-B/16 on ImageNet, timm", 79.154, 3),
    _timm(
        "vit_base_patch16_224-in21k",
        "vit_base_patch16_224.augreg_in21k_ft_in1k",
        "ViT-B/16 on ImageNet, timm, pre-trained on ImageNet-21k",
        84.534,
        3,
    ),
    _timm(
        "vit_large_patch16_224", "vit_large_patch16_224.augreg_in21k_ft_in1k", "ViT-L/16 on ImageNet, timm", 85.856, 3
    ),
    _torchvision("vit_b_16", "vit_b_16:IMAGENET1K_V1", "ViT-B/16 on ImageNet, torchvision", 81.072, 3),
    _torchvision("vit_l_16", "vit_l_16:IMAGENET1K_V1", "ViT-L/16 on ImageNet, torchvision", 79.662, 3),
    _timm("deit_small_patch16_224", "deit_small_patch16_224.fb_in1k", "DeiT-S/16 on ImageNet", 79.856, 3),
    _timm("deit_base_patch16_224", "deit_base_patch16_224.fb_in1k", "DeiT-B/16 on ImageNet", 81.980, 3),
    _timm(
        "mobilenetv1",
        "mobilenetv1_100.ra4_e3600_r224_in1k",
        "MobileNetV1 on ImageNet",
        75.388,
        10,
        note="Depthwise convolutions are skipped for N:M patterns. The published runs use other weights.",
    ),
    _torchvision("mobilenetv2", "mobilenet_v2:IMAGENET1K_V1", "MobileNetV2 on ImageNet", 71.878, 10),
)

EXPERIMENTS: dict[str, Experiment] = {row.name: row for row in _ROWS}
"""Name to experiment: a network with its weights, its data and its dense accuracy."""


def experiment(name: str) -> Experiment:
    """Return the experiment of a name, or one made on the spot for ``timm/<name>`` or ``torchvision/<name>``.

    Args:
        name: key in ``EXPERIMENTS``, "timm/resnet50.a1_in1k", "torchvision/vit_b_16:IMAGENET1K_V1", ...

    Raises:
        SnowsError: on an unknown name; the message has the nearest ones and the list.
    """
    if name in EXPERIMENTS:
        return EXPERIMENTS[name]
    if isinstance(name, str) and name.startswith(("timm/", "torchvision/")):
        stated = preprocessing(name).accuracy  # refuses unknown names
        records = () if stated is None else (Record("imagenet", 50_000, stated, STATED),)
        return Experiment(name, name, name, "imagenette", "imagenet", records, batch_size=32)
    of_libraries = in_libraries(str(name))
    raise invalid_argument(
        "experiment",
        f"'{name}'",
        f"one of {', '.join(EXPERIMENTS)}, timm/<name> or torchvision/<name>",
        f"Did you mean {' or '.join(of_libraries)}?" if of_libraries else closest(str(name), EXPERIMENTS),
    )
