"""What Tab offers on the command line; names are written out here, so that a Tab does not wait for PyTorch.

A test holds the lists and the package together.
"""

from __future__ import annotations

from snows_core.settings import ALLOCATIONS, CHOICES, EFFORTS, RECIPES, changeable

EXPERIMENT_NAMES = (
    "digits-resnet20",
    "digits-resnet50",
    "digits-vit-b",
    "digits-vit-l",
    "resnet20",
    "resnet50-cifar100",
    "resnet50",
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "vit_small_patch14_saliency",
    "vit_base_patch16_224",
    "vit_base_patch16_224-in21k",
    "vit_large_patch16_224",
    "vit_b_16",
    "vit_l_16",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "mobilenetv1",
    "mobilenetv2",
)
DATA_NAMES = ("digits", "cifar10", "cifar10-full", "cifar100", "imagenette", "imagenet", "imagenet-samples", "folder:")
PATTERNS = ("2:4", "1:4", "4:8", "1:8", "0.5", "0.8", "0.9", "global:0.8", "global:0.9:0.95", "structured:0.5")
SALIENCY_NAMES = ("magnitude", "curvature", "fisher", "obs", "curvature+fisher", "obs+fisher")
MASK_NAMES = (
    *("magnitude", "alps", "nettrim", "obc", "obs", "sparsegpt", "swaps", "wanda"),
    *("cap", "cbs", "chita", "dimap", "eigendamage", "falcon", "mfac", "obd", "osscar", "upvit", "woodfisher"),
)
UPDATE_NAMES = (
    *("adaprune", "alps", "layerwise", "nettrim", "none", "obc", "obs", "snows", "snows-adam", "snows-fisher"),
    *("snows-gauss-newton", "snows-hessian", "sparsegpt", "cap", "cbs", "chita", "falcon", "mfac", "osscar"),
    *("woodfisher", "own", "own+snows"),
)
DEVICES = ("cpu", "cuda", "cuda:0", "mps")
EXPORTS = ("onnx", "state-dict", "safetensors", "hf-hub-folder")


def _begin(names: tuple[str, ...] | list[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def models(incomplete: str) -> list[str]:
    """Return experiments; and networks of timm or torchvision once the library is named, which loads it."""
    library, slash, _ = incomplete.partition("/")
    if not slash or library not in ("timm", "torchvision"):
        return _begin([*EXPERIMENT_NAMES, "timm/", "torchvision/"], incomplete)
    try:
        from snows_core.zoo.sources import library_names

        names = library_names(library)
    except Exception:  # a Tab never ends in a trace
        return []
    return _begin([f"{library}/{name}" for name in names], incomplete)


def shipped(incomplete: str) -> list[str]:
    """Return the networks that `snows train` knows."""
    return _begin([name for name in EXPERIMENT_NAMES if name.startswith("digits-")], incomplete)


def data(incomplete: str) -> list[str]:
    """Return the data sets."""
    return _begin(DATA_NAMES, incomplete)


def patterns(incomplete: str) -> list[str]:
    """Return some patterns; any other N:M or share is as good."""
    return _begin(PATTERNS, incomplete)


def allocations(incomplete: str) -> list[str]:
    """Return the ways to share out an overall sparsity."""
    return _begin(ALLOCATIONS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Return the recipes."""
    return _begin(list(RECIPES), incomplete)


def saliencies(incomplete: str) -> list[str]:
    """Return the saliencies that have names."""
    return _begin(SALIENCY_NAMES, incomplete)


def _listed(names: tuple[str, ...], incomplete: str) -> list[str]:
    """Return what the last of several names with commas between may be, behind those that are there."""
    before, comma, last = incomplete.rpartition(",")
    typed = before.split(",")
    return [f"{before}{comma}{name}" for name in _begin(names, last) if name not in typed]


def masks(incomplete: str) -> list[str]:
    """Return the methods that choose masks, one behind the other."""
    return _listed(MASK_NAMES, incomplete)


def updates(incomplete: str) -> list[str]:
    """Return the methods that re-fit weights, one behind the other."""
    return _listed(UPDATE_NAMES, incomplete)


def efforts(incomplete: str) -> list[str]:
    """Return the words for how much work a run may be."""
    return _begin(list(EFFORTS), incomplete)


def devices(incomplete: str) -> list[str]:
    """Return usual devices, whether this machine has them or not."""
    return _begin(DEVICES, incomplete)


def settings(incomplete: str) -> list[str]:
    """Return ``name=`` of every option of a recipe, and behind it the values where they can be listed."""
    name, equals, _ = incomplete.partition("=")
    if not equals:
        return _begin([f"{option}=" for option in changeable()], incomplete)
    switches = ("true", "false") if isinstance(changeable().get(name), bool) else ()
    return _begin([f"{name}={value}" for value in CHOICES.get(name, switches)], incomplete)


def export_formats(incomplete: str) -> list[str]:
    """Return what a pruned folder can be exported to."""
    return _begin(EXPORTS, incomplete)
