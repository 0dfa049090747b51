"""Profiles: the sizes at which a notebook runs, and what a machine must have for them; one YAML each."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from snows_core.book.page import DEFAULT_PROFILE
from snows_core.book.schemas import read_yaml
from snows_core.devices import total_memory
from snows_core.errors import SnowsError, closest, invalid_argument


class Needs(BaseModel):
    """What a profile asks of the machine.

    Attributes:
        data: data sets by name; a reader of ``snows reproduce`` sees them before anything runs.
        gpu: whether it needs a CUDA device.
        minutes: about how long it takes on the machine it was tried on; None where nobody has timed it.
        gigabytes: memory it needs, of the GPU where ``gpu`` is set.
        disk_gigabytes: what it downloads or writes.
        network: whether the first run downloads anything.
    """

    model_config = ConfigDict(extra="forbid")

    data: list[str] = Field(default_factory=list)
    gpu: bool = False
    minutes: float | None = Field(default=None, gt=0)
    gigabytes: float = Field(default=1.5, gt=0)
    disk_gigabytes: float = Field(default=0.0, ge=0)
    network: bool = False

    def sentence(self) -> str:
        """Return the needs in words."""
        parts = [*self._time(), f"{self.gigabytes:g} GB of {'GPU ' if self.gpu else ''}memory"]
        if self.data:
            parts.insert(0, f"the data {', '.join(self.data)}")
        if self.disk_gigabytes:
            parts.append(f"{self.disk_gigabytes:g} GB of disk")
        return ", ".join(parts) + (", a network the first time" if self.network else "")

    def _time(self) -> list[str]:
        if self.minutes is None:
            return []
        if self.minutes < 1:
            return [f"about {60 * self.minutes:.0f} seconds"]
        return [f"about {self.minutes:g} minute{'' if self.minutes == 1 else 's'}"]


class Profile(BaseModel):
    """One YAML ``notebooks/profiles/<notebook>.<profile>.yaml``.

    Attributes:
        description: one sentence.
        needs: what the machine must have.
        parameters: values for the notebook's parameters; those not named keep the notebook's own.
    """

    model_config = ConfigDict(extra="forbid")

    description: str = "The committed values of the notebook; runs offline."
    needs: Needs = Field(default_factory=Needs)
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


def profiles_of(stem: str, folder: Path) -> list[str]:
    """Return the profiles that a notebook has; the default one always among them.

    Args:
        stem: the notebook's name.
        folder: of the notebooks.

    Returns:
        Names in alphabetical order.
    """
    files = (folder / "profiles").glob(f"{stem}.*.yaml")
    return sorted({DEFAULT_PROFILE, *(path.name[len(stem) + 1 : -len(".yaml")] for path in files)})


def load_profile(stem: str, profile: str, folder: Path) -> Profile:
    """Read a profile; one beside the default has ``profile`` itself among its parameters.

    Args:
        stem: the notebook's name.
        profile: the profile's name; "digits" needs no file, or one that only says what it needs.
        folder: of the notebooks.

    Returns:
        The profile; its parameters are what differs from the notebook's own.

    Raises:
        SnowsError: on an unknown profile, or a file that does not follow the schema.
    """
    known = profiles_of(stem, folder)
    if profile not in known:
        raise invalid_argument(
            "profile", f"'{profile}'", f"one of {', '.join(known)} for {stem}", closest(profile, known)
        )
    path = folder / "profiles" / f"{stem}.{profile}.yaml"
    if not path.is_file():
        return Profile()
    loaded: Profile = read_yaml(path, Profile, "description, needs, parameters as CONTRIBUTING.md shows")
    if loaded.parameters.get("profile", profile) != profile:
        raise invalid_argument(f"{path.name}: parameters.profile", f"'{loaded.parameters['profile']}'", f"'{profile}'")
    if profile != DEFAULT_PROFILE:
        loaded.parameters["profile"] = profile
    elif loaded.parameters:
        name = next(iter(loaded.parameters))
        raise invalid_argument(
            f"{path.name}: parameters",
            f"{name}",
            "none: the default profile is what the notebook itself says",
            "Write the value into the notebook's cell of parameters.",
        )
    return loaded


def check_needs(stem: str, profile: str, needs: Needs, data_root: str | None = None) -> None:
    """Stop before a long run when the machine lacks something that can be told at once.

    Args:
        stem: the notebook's name, for the message.
        profile: the profile's name.
        needs: what it asks for.
        data_root: folder of the data; default the variable ``SNOWS_DATA``.

    Raises:
        SnowsError: names the first thing missing, all needs, and what to do.
    """
    missing = _missing_memory(needs)
    root = data_root or os.environ.get("SNOWS_DATA")
    if not missing and "imagenet" in needs.data:
        missing = _missing_imagenet(root)
    free = shutil.disk_usage(Path.home()).free / 1e9
    if not missing and free < needs.disk_gigabytes:
        missing = f"{needs.disk_gigabytes:g} GB of disk ({free:.1f} are free)"
    if missing:
        raise SnowsError(
            f"profile '{profile}' of {stem} needs {missing}. In all it needs {needs.sentence()}."
            f" Without them run the default profile: snows reproduce {stem.split('_')[0]}"
        )


def _missing_imagenet(root: str | None) -> str:
    """Return what is missing of ImageNet, in words, or ""; the same look at it as when it is loaded."""
    folder = Path(root).expanduser() / "imagenet" if root else None
    if folder is None or not folder.is_dir():
        return "ImageNet, a folder tree imagenet/{train,val}/<wnid>/ in the folder that SNOWS_DATA names"
    from snows_core.zoo.imagenet_tree import check_layout

    try:
        check_layout(folder)
    except SnowsError as error:
        return f"ImageNet in class folders ({error})"
    return ""


def _missing_memory(needs: Needs) -> str:
    """Return what is missing of a GPU or of memory, in words, or ""."""
    if needs.gpu and not torch.cuda.is_available():
        return "a CUDA device, and this machine has none that PyTorch can use"
    have = total_memory(torch.device("cuda:0" if needs.gpu else "cpu")) / 1e9
    if have >= 0.9 * needs.gigabytes:
        return ""
    if needs.gpu:
        return f"{needs.gigabytes:g} GB of GPU memory (this one has {have:.0f})"
    return f"{needs.gigabytes:g} GB of memory (this machine has {have:.1f})"
