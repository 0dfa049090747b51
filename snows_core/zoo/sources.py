"""Networks by a short address, each with the preprocessing that its weights expect.

Addresses: ``digits/<name>``, ``published/resnet20``, ``hub/<id>``, ``package/<name>``, ``timm/<name>``,
``torchvision/<name>:<weights>``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from snows_core.errors import SnowsError, closest, invalid_argument
from snows_core.files import safe_unpickling
from snows_core.zoo import cifar, digits
from snows_core.zoo.fetch import from_hub, reachable
from snows_core.zoo.networks import DIGITS_NETWORKS, resnet50_cifar100
from snows_core.zoo.packaged import PACKAGES, trained
from snows_core.zoo.resnet_cifar import resnet20
from snows_core.zoo.weights import (
    checked_blob,
    checked_cache,
    load_state,
    published_resnet20,
    read_state,
    shipped_state,
)

OFFLINE = "Check the network, or pass weights='<path>' to a local .safetensors or .pth file of these weights."
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # names under which timm's hub keeps weights, in order
RESIZABLE = ("timm/", "torchvision/", "package/")  # addresses of networks that can be built for any number of classes
HUB_NETWORKS: dict[str, Callable[[], nn.Module]] = {"edadaltocg/resnet50_cifar100": resnet50_cifar100}


@dataclass(frozen=True)
class Preprocessing:
    """What a network's weights expect of an image.

    Attributes:
        image_shape: (C, H, W).
        mean: one value a channel.
        std: likewise.
        transform: from a PIL image to a normalised tensor, or None for the data set's own.
        accuracy: top-1 on ImageNet-1k in percent that the weights' publisher states with them, or None.
    """

    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: Callable[[Any], Tensor] | None = None
    accuracy: float | None = None


def build(source: str, num_classes: int | None = None) -> nn.Module:
    """Return the untrained network of an address, in eval mode.

    Args:
        source: the address.
        num_classes: number of outputs; default the architecture's own, 1,000 in timm and torchvision.

    Raises:
        SnowsError: on an unknown address (the message has the nearest names), or a network of fixed outputs.
    """
    library, name, _ = split_address(source)
    if num_classes is not None and not source.startswith(RESIZABLE):
        raise invalid_argument("num_classes", num_classes, f"None, as the outputs of {source} are fixed")
    outputs: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if library == "digits":
        model = DIGITS_NETWORKS[name]()
    elif library == "published":
        model = resnet20()
    elif library == "hub":
        model = HUB_NETWORKS[name]()
    elif library == "package":
        model = PACKAGES[name].build(**outputs)
    elif library == "timm":
        import timm

        model = timm.create_model(name, **outputs)
    else:
        from torchvision import models

        model = models.get_model(name, weights=None, **outputs, **_quiet(name))
    return model.eval()


def pretrained(source: str) -> nn.Module:
    """Return the network of an address with its trained weights, in eval mode.

    Raises:
        SnowsError: on an unknown address, weights that do not exist, or a hub that cannot be reached.
    """
    library, name, tag = split_address(source)
    if library == "digits":
        return load_state(build(source), shipped_state(name), f"the shipped {name}")
    if library == "published":
        return load_state(build(source), published_resnet20(), "the published ResNet-20")
    if library == "hub":
        return load_state(build(source), read_state(_hub_file(name)), name)
    if library == "package":
        return trained(PACKAGES[name], _timm_pretrained, lambda: _is_cached(PACKAGES[name].weights)).eval()
    if library == "timm":
        _check_has_weights(name)
        return _timm_pretrained(name).eval()
    return _torchvision_pretrained(name, tag).eval()


def preprocessing(source: str) -> Preprocessing:
    """Return what the weights of an address expect of an image; nothing is downloaded.

    Raises:
        SnowsError: on an unknown address.
    """
    library, name, tag = split_address(source)
    if library == "digits":
        return Preprocessing((1, digits.SIZE, digits.SIZE), digits.MEAN, digits.STD)
    if library == "published":
        return Preprocessing((3, 32, 32), *cifar.SOURCES["cifar10"].moments)
    if library == "hub":
        return Preprocessing((3, 32, 32), *cifar.SOURCES["cifar100"].moments)
    if library in ("timm", "package"):
        import timm
        from timm.data import create_transform, resolve_data_config

        package = PACKAGES[name] if library == "package" else None
        known = timm.get_pretrained_cfg(package.weights if package else name)
        size = {"img_size": package.image_size} if package and package.image_size else {}
        config = resolve_data_config(size, pretrained_cfg=known.to_dict() if known else {})
        transform = create_transform(**config, is_training=False)
        return Preprocessing(tuple(config["input_size"]), tuple(config["mean"]), tuple(config["std"]), transform)
    enum = _torchvision_weights(name, tag)
    preset = enum.transforms()
    accuracy = enum.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
    shape = (3, preset.crop_size[0], preset.crop_size[0])
    return Preprocessing(shape, tuple(preset.mean), tuple(preset.std), preset, accuracy)


def split_address(source: str) -> tuple[str, str, str]:
    """Return library, name and weights tag of an address, checked.

    >>> split_address("torchvision/resnet50:IMAGENET1K_V1")
    ('torchvision', 'resnet50', 'IMAGENET1K_V1')
    """
    library, _, rest = source.partition("/")
    name, _, tag = rest.partition(":")
    known: dict[str, Callable[[], list[str]]] = {
        "digits": lambda: list(DIGITS_NETWORKS),
        "published": lambda: ["resnet20"],
        "hub": lambda: list(HUB_NETWORKS),
        "package": lambda: list(PACKAGES),
        "timm": _timm_names,
        "torchvision": _torchvision_names,
    }
    if library not in known:
        raise invalid_argument(
            "model", f"'{source}'", "an experiment, timm/<name> or torchvision/<name>", closest(library, known)
        )
    bare = name.split(".")[0] if library == "timm" else name
    names = known[library]()
    if bare not in names:
        raise invalid_argument("model", f"'{source}'", f"a network of {library}", closest(bare, names))
    if library == "timm" and name != bare and name not in _timm_tags(name):
        raise invalid_argument(
            "model", f"'{source}', weights that do not exist", f"one of {', '.join(_timm_tags(name))} or {bare}"
        )
    return library, name, tag


def in_libraries(name: str) -> list[str]:
    """Return the addresses under which timm and torchvision know a bare name, such as "resnet18"; none for others.

    Args:
        name: of a network, in timm's case with or without the tag of its weights.
    """
    found = [f"timm/{name}"] if name.split(".")[0] in _timm_names() else []
    return found + ([f"torchvision/{name}"] if name.split(":")[0] in _torchvision_names() else [])


def _hub_file(repository: str) -> Path:
    """Return the weights file of a model hub's repository: the cached one without asking the hub, else downloaded."""
    import huggingface_hub

    cached = _cached(repository)
    if cached is not None:
        return checked_blob(cached)
    if not reachable(huggingface_hub.constants.ENDPOINT):
        raise SnowsError(f"weights: the model hub cannot be reached, and {repository} is not in its cache. {OFFLINE}")

    def download() -> Path:
        there = [file for file in HUB_FILES if huggingface_hub.file_exists(repository, file)]
        return Path(huggingface_hub.hf_hub_download(repository, there[0]))

    return checked_blob(from_hub(repository, download, OFFLINE))


def _cached(repository: str) -> Path | None:
    """Return the weights file of a model hub's repository in the cache, or None."""
    import huggingface_hub

    files = (huggingface_hub.try_to_load_from_cache(repository, file) for file in HUB_FILES)
    return next((Path(file) for file in files if isinstance(file, str)), None)


def _is_cached(name: str) -> bool:
    """Tell whether the weights that timm's hub has under a name are on this machine."""
    import timm

    known: Any = timm.get_pretrained_cfg(name)
    return _cached(known.hf_hub_id) is not None


def _timm_pretrained(name: str) -> nn.Module:
    """Return a timm network with trained weights, which timm itself converts where the original names differ."""
    import timm

    known: Any = timm.get_pretrained_cfg(name)  # there is one: _check_has_weights was asked
    file = _hub_file(known.hf_hub_id) if known.hf_hub_id else checked_cache(known.url)
    overlay = {"file": str(file)} if known.hf_hub_id else None
    return _by_library(
        f"timm's {name}", file, lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    )


def _torchvision_pretrained(name: str, tag: str) -> nn.Module:
    from torchvision import models

    enum = _torchvision_weights(name, tag)
    what = f"torchvision's {name} ({enum.name})"
    return _by_library(what, checked_cache(enum.url), lambda: models.get_model(name, weights=enum))


def _by_library(what: str, file: Path, call: Callable[[], nn.Module]) -> nn.Module:
    """Let a library load its weights, from the file if that is there; nothing but tensors is unpickled."""
    failed = f"cannot be read from {file}" if file.exists() else "could not be downloaded"
    fix = f"Delete {file} and run again to download it anew. {OFFLINE}" if file.exists() else OFFLINE
    with safe_unpickling():
        return from_hub(what, call, fix, failed)


def library_names(library: str) -> list[str]:
    """Return the names of the networks that a library knows, "timm" or "torchvision"."""
    return _timm_names() if library == "timm" else _torchvision_names()


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)


def _timm_tags(name: str) -> list[str]:
    import timm

    architecture = name.partition(".")[0]
    return timm.list_models(f"{architecture}.*", pretrained=True)


def _check_has_weights(name: str) -> None:
    if not _timm_tags(name):
        fix = "Pass weights='<path>' to a local .safetensors or .pth file of weights that you have."
        raise invalid_argument("model", f"'timm/{name}', which has no trained weights", "a network with weights", fix)


def _torchvision_weights(name: str, tag: str) -> Any:
    from torchvision import models

    enum = models.get_model_weights(name)
    if tag and tag not in enum.__members__:
        fix = f"Weights stand behind the name, as in torchvision/{name}:{next(iter(enum.__members__))}."
        raise invalid_argument("model", f"weights '{tag}' of {name}", f"one of {', '.join(enum.__members__)}", fix)
    return enum[tag] if tag else enum.DEFAULT


def _quiet(name: str) -> dict[str, Any]:
    """Return arguments that keep torchvision's two oldest designs from warning about their slow initialisation."""
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
