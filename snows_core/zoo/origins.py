"""Where the weights of a network of the zoo are from: their licence, their name on the hub, and how it is made."""

from __future__ import annotations

from typing import Any

from torch import nn

from snows_core.export.hub.model_card import About
from snows_core.zoo import sources
from snows_core.zoo.experiment import Experiment
from snows_core.zoo.heads import outputs_of
from snows_core.zoo.packaged import PACKAGES

_OWN = "mit"  # of this package, which ships the digits networks
_OF_PACKAGES = {"vit_small_patch14_saliency": "mit"}  # weights that no hub has; stated by their package


def origin_of(chosen: Experiment, model: nn.Module, own_weights: bool) -> About:
    """Return where the weights of an experiment are from, for a model card.

    Args:
        chosen: the experiment.
        model: its network, dense or pruned; only its number of outputs counts.
        own_weights: whether a file of the user's stood in for the usual weights: then licence and name are unknown, and
            so may be the number of outputs.
    """
    library, name, _ = sources.split_address(chosen.model)
    expected = sources.preprocessing(chosen.model)
    resizable = own_weights and chosen.model.startswith(sources.RESIZABLE)
    outputs = f", num_classes={outputs_of(model)}" if resizable else ""
    if library == "torchvision":
        build = ("torchvision", f"torchvision.models.get_model({name!r}{outputs})")
    else:
        outputs = f"pretrained=False{outputs}"
        build = ("snows_core.zoo", f"snows_core.zoo.experiment({chosen.name!r}).load_model({outputs})")
    licence, base = (None, None) if own_weights else _stated(library, name)
    return About(licence, base, build, expected.mean, expected.std)


def _stated(library: str, name: str) -> tuple[str | None, str | None]:
    """Return licence and name on the hub, as those say who publish the weights; None where they do not."""
    if library == "digits":
        return _OWN, None
    if library == "hub":
        return None, name
    if library == "package" and not PACKAGES[name].in_hub:
        return _OF_PACKAGES.get(name), None
    if library in ("timm", "package"):
        import timm

        known: Any = timm.get_pretrained_cfg(PACKAGES[name].weights if library == "package" else name)
        return getattr(known, "license", None), getattr(known, "hf_hub_id", None)
    return None, None
