"""Weights: shipped, published, or from a local file; loaded whole or not at all."""

from __future__ import annotations

import re
import urllib.parse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snows_core.errors import SnowsError, cannot_go_on, invalid_argument
from snows_core.files import read_checkpoint
from snows_core.files.bounded import read_json
from snows_core.zoo.fetch import digest, from_hub, made

CHECKPOINTS = Path(__file__).parent / "checkpoints"
RESNET20_SHA256 = "e08b9b71ee33c3abad25588ed63999501673c02f7809364e27d965399e58bf8b"
RESNET20_FILE = f"resnet20_cifar10-{RESNET20_SHA256[:8]}.pth.tar"
RESNET20_URL = (
    "https://raw.githubusercontent.com/mazumder-lab/CHITA/89c606d5d6e861952616254906b8f6885dffb5d7"
    "/checkpoints/resnet20_cifar10.pth.tar"
)
WRAPPERS = ("state_dict", "model", "model_state_dict")  # keys under which checkpoints keep the weights
NAMED_HASH = re.compile(r"-([a-f0-9]{8,64})\.")  # torch.hub's convention: name-<first digits of the SHA-256>.ext


def checked_cache(url: str) -> Path:
    """Return where torch.hub keeps the file of an address; the checksum of a file that is there has been compared.

    torch.hub compares it after a download only, with the first digits of the SHA-256, which stand in the file's name.
    A name without such digits is taken as it is.

    Args:
        url: address of a file of weights.

    Raises:
        SnowsError: when the file is there and its checksum is another one.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urllib.parse.urlsplit(url).path).name
    promised = NAMED_HASH.search(file.name)
    if promised and file.exists():
        _compare(file, promised[1], url)
    return file


def _compare(file: Path, sha256: str, url: str) -> None:
    """Refuse a file whose SHA-256 does not begin with the digits."""
    if not digest(file, "sha256").startswith(sha256):
        raise SnowsError(
            f"weights: {file} has the wrong checksum (expected SHA-256 {sha256[:16]}...), so it is damaged or another"
            f" file. Delete it and run again to download it anew, or place the right file there (from {url})."
        )


def checked_blob(file: Path) -> Path:
    """Return a file of the model hub's cache; its checksum has been compared.

    The cache names each file by the checksum that the hub states for it, and lays a link with the usual name to it: the
    SHA-256 of large files, git's SHA-1 of small ones. Where a file system has no links there are copies under the usual
    name, and nothing to compare with.

    Args:
        file: where the cache says that the file is.

    Raises:
        SnowsError: when the checksum is another one.
    """
    blob = file.resolve()
    if re.fullmatch("[0-9a-f]{64}", blob.name):
        found = digest(blob, "sha256")
    elif re.fullmatch("[0-9a-f]{40}", blob.name):
        found = digest(blob, "sha1", b"blob %d\0" % blob.stat().st_size)
    else:
        return file
    if found != blob.name:
        raise SnowsError(
            f"weights: {blob} has the wrong checksum (expected {blob.name[:16]}..., found {found[:16]}...), so it is"
            " damaged. Delete it and run again to download it anew."
        )
    return file


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a .safetensors file or from one that ``torch.save`` wrote.

    Half-precision numbers come back as float32; a wrapping dictionary and a ``module.`` prefix are removed. Nothing
    but tensors and plain containers is unpickled (``weights_only=True``).

    Args:
        path: the file.

    Returns:
        Tensors by parameter and buffer name.

    Raises:
        SnowsError: when the file is missing, cannot be read, or holds something else than weights of finite numbers.
    """
    content = read_checkpoint(path, "weights", WRAPPERS)
    expected = "a dictionary of tensors by parameter name"
    named = isinstance(content, dict) and all(isinstance(key, str) for key in content)
    if not named or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise cannot_go_on("weights", f"'{path}', which holds no state dict", expected)
    if odd := next((f"'{key}', {why}" for key, value in content.items() if (why := _unusable(value))), None):
        raise cannot_go_on("weights", f"'{path}', which holds {odd}", "plain tensors of finite numbers")
    state = {key.removeprefix("module."): value for key, value in content.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _unusable(value: Tensor) -> str:
    """Say why a tensor cannot be a weight or buffer, or "" where it can."""
    if value.layout is not torch.strided or value.is_quantized or value.is_nested:
        return "a sparse, nested or quantized tensor"
    if value.device.type == "meta":
        return "a tensor without values"
    if value.is_complex():
        return "a tensor of complex numbers"
    if value.is_floating_point() and not torch.isfinite(value.float()).all():
        return "a tensor with NaN or infinite values"
    return ""


def load_state(model: nn.Module, state: dict[str, Tensor], origin: str) -> nn.Module:
    """Load a state dict in place, every name and shape of it, and set eval mode.

    Args:
        model: the network.
        state: tensors by parameter and buffer name.
        origin: where the state came from, for the message.

    Returns:
        The same model.

    Raises:
        SnowsError: when a name is missing or unknown, or a shape or the kind of numbers differs; the model is then
            unchanged.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    odd = [key for key in state if key in own and own[key].shape != state[key].shape]
    for key, value in state.items():
        if key in own and own[key].is_floating_point() != value.is_floating_point():
            got = f"{origin}, whose '{key}' has the numbers {value.dtype}"
            raise cannot_go_on("weights", got, f"{own[key].dtype} or another of its kind")
    if missing or unknown or odd:
        first = odd[0] if odd else (missing or unknown)[0]
        shapes = f" of shape {tuple(state[first].shape)} for {tuple(own[first].shape)}" if odd else ""
        raise invalid_argument(
            "weights",
            f"{origin} with {len(missing)} missing, {len(unknown)} unknown and {len(odd)} wrongly shaped tensors "
            f"('{first}'{shapes})",
            f"the weights of this {type(model).__name__}",
            "Use the file of the same architecture and number of classes.",
        )
    model.load_state_dict(state, strict=False)
    return model.eval()


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a local file of weights into a network of one's own, in place, and set eval mode.

    The file may hold more than the state dict: wrappers such as ``{"state_dict": ...}`` and the prefix "module." of
    ``DataParallel`` are taken off, and numbers in half precision become float32. No code that it brings is run.

    Args:
        model: the network, built as the one that was trained.
        path: a .safetensors file, or one that ``torch.save`` wrote.

    Returns:
        The same model.

    Raises:
        SnowsError: when the file cannot be read, or holds other weights than the network's; the model is
            then unchanged.
    """
    return load_state(model, read_state(path), f"'{path}'")


def shipped_record(name: str) -> dict[str, Any] | None:
    """Return how the shipped weights of a digits network were trained and what they reach; None before they are.

    Args:
        name: of the network.

    Raises:
        SnowsError: when the file is damaged.
    """
    file = CHECKPOINTS / f"{name}.json"
    try:
        return read_json(file) if file.exists() else None
    except (OSError, ValueError) as error:
        raise damaged_installation(file, error) from error


def shipped_state(name: str) -> dict[str, Tensor]:
    """Return the weights of a digits network that the package ships.

    Args:
        name: of the network.

    Raises:
        SnowsError: when the file is damaged or not there.
    """
    file = CHECKPOINTS / f"{name}.safetensors"
    try:
        return read_state(file)
    except SnowsError as error:
        raise damaged_installation(file, error) from error


def damaged_installation(file: Path, error: Exception) -> SnowsError:
    """Build the error for a file of this package that cannot be read.

    Args:
        file: the file.
        error: why not.

    Returns:
        The error, to be raised.
    """
    reason = " ".join(str(error).split())[:200]
    return SnowsError(
        f"{file} is damaged ({reason}); it comes with the package. Install it anew: pip install --force-reinstall"
        " --no-deps snows-core"
    )


def published_resnet20(download: bool = True) -> dict[str, Tensor]:
    """Return the weights of the published ResNet-20 for CIFAR-10.

    From the repository mazumder-lab/CHITA (R. Benbaki et al., "Fast as CHITA", ICML 2023), kept in torch.hub's cache
    (variable ``TORCH_HOME``). The SHA-256 is verified at every load, also of a file already there.

    Args:
        download: whether the network may be used.

    Raises:
        SnowsError: when the file is damaged, or absent and cannot be downloaded.
    """
    file = Path(torch.hub.get_dir()) / "checkpoints" / RESNET20_FILE
    fix = (
        f"Place the file at {file} yourself (from {RESNET20_URL}), set TORCH_HOME to a cache that has it, or pass"
        " weights='<path>' to a copy of it."
    )
    if not file.exists():
        if not download:
            raise SnowsError(f"weights: {file} is not there, and download=False. {fix}")
        from_hub("the published ResNet-20", lambda: _download(RESNET20_URL, file, RESNET20_SHA256), fix)
    _compare(file, RESNET20_SHA256, RESNET20_URL)
    return read_state(file)


def _download(url: str, file: Path, sha256: str) -> None:
    """Fetch a file of weights without reading it; its name appears only when the checksum is right."""
    with made(file.parent):
        torch.hub.download_url_to_file(url, str(file), sha256)
