"""The command, or the call, that makes a pruned network again: read from the record of its run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import PurePath
from typing import Any

from snows_core.settings import RECIPES, PruneSettings, changeable

_SHELL_NAMES = {"max_images": "images"}
_SWITCHES = ("moving_masks", "deterministic")
_OF_THE_MACHINE = ("device", "max_memory", "progress", "labels", "masks", "recipe", "augment")  # or said in another way
_DEFAULTS = {setting.name: setting.default for setting in fields(PruneSettings)}
_ALWAYS = ("pattern", "k", "max_images", "seed")


def made_by(manifest: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return what makes a result again.

    Args:
        manifest: of the result; that of an older one may lack anything.

    Returns:
        A command where the run was one, else a call in Python; and, one sentence each, what it leaves open.
    """
    settings = {**(manifest.get("settings") or {}), **{k: v for k, v in manifest.items() if k in _DEFAULTS}}
    settings = {name: value for name, value in settings.items() if name in _DEFAULTS}
    source = manifest.get("source") or {}
    if source.get("model"):
        return _command(source, settings)
    return _call(settings)


def _command(source: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    words, open_ = ["snows", "prune", "--model", str(source["model"])], list[str]()
    if data := source.get("data"):
        if str(data).startswith("folder:"):
            open_.append("The images are the user's own: their folder stands behind `folder:`.")
            data = "folder:IMAGES"
        words += ["--data", str(data)]
    if weights := source.get("weights"):
        open_.append("The dense weights came from a file of the user's own.")
        words += ["--weights", PurePath(str(weights).replace("\\", "/")).name]
    for name in ("num_classes", "test_images"):
        words += [f"--{name.replace('_', '-')}", str(source[name])] if source.get(name) is not None else []
    for name, value in _said(settings):
        flag = f"--{_SHELL_NAMES.get(name, name).replace('_', '-')}"
        if name in _SWITCHES:
            words += [flag]
        elif name == "permute":
            words += ["--permute" if value else "--no-permute"]
        elif name in ("layers", "exclude", "leaf_modules"):
            words += [word for glob in value for word in (flag, str(glob))]
        elif name == "stages" and isinstance(value, list):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, str(value)]
    words += ["--augment"] if settings.get("augment") else []
    if settings.get("masks"):
        words += ["--masks", "MASKS"]
        open_.append("The masks came from a file of the user's own.")
    words += _recipe_words(settings.get("recipe"))
    return shlex.join([*words, "--out", "pruned"]), open_


def _call(settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    given = [f"{name}={value!r}" for name, value in _said(settings)]
    recipe = settings.get("recipe")
    name = recipe.get("name") if isinstance(recipe, Mapping) else recipe
    if name is not None and name != _DEFAULTS["recipe"]:
        given.append(f"recipe={name!r}")
    given += [f"{name}=..." for name in ("masks", "labels", "augment") if settings.get(name)]
    open_ = ["It ran in Python: `model` is the dense network, `images` are the calibration images."]
    if any(text.endswith("=...") for text in given):
        open_.append("What stands as `...` is not in the record of the run.")
    return f"snows_core.prune(model, images, {', '.join(given)})", open_


def _said(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return the settings that have to be said, in the order of their definition."""
    found = []
    for name, default in _DEFAULTS.items():
        value = settings.get(name)
        empty = value is None or value == [] or name in _OF_THE_MACHINE
        if empty or (name == "pattern" and settings.get("masks")):
            continue
        if name == "stage_k" and settings.get("stages") == 1:  # there is nothing between two stages
            continue
        if value != default or name in _ALWAYS:
            found.append((name, value))
    return found


def _recipe_words(recipe: Any) -> list[str]:
    """Return the options that say a recipe as a manifest holds it, where it is not the default one."""
    if not isinstance(recipe, Mapping) or recipe.get("name") not in RECIPES:
        return []
    name = recipe["name"]
    words = [] if name == _DEFAULTS["recipe"] else ["--recipe", name]
    usual = asdict(RECIPES[name])
    own = {**usual, **usual.pop("newton")}
    there = {**recipe, **(recipe.get("newton") or {})}
    for option in changeable():
        if option in there and there[option] != own.get(option):
            value = there[option]
            text = "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            words += ["--set", f"{option}={text}"]
    return words
