"""A hub folder uploaded to the Hugging Face hub; the token is handed on, and never shown or written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from snows_core.errors import SnowsError, cannot_go_on, invalid_argument, reason_of, require_extra, switch
from snows_core.export.hub.hub_folder import CARD, FILES
from snows_core.export.hub.model_card import folder_name
from snows_core.export.hub.reloading import CONFIG, WEIGHTS, loading_lines, weights_lines
from snows_core.files import as_path, is_file
from snows_core.files.bounded import read_json, read_text

CARD_BYTES = 4_000_000
_NEEDED = (WEIGHTS, CONFIG, CARD)


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder that :func:`.hub_folder` wrote; the card then loads it from the hub.

    Only the files of such a folder are uploaded. A repository that is not there is made; one that is there is updated
    by one commit.

    Args:
        folder: with weights, config.json and README.md.
        repo_id: "user/name".
        private: whether a new repository is visible to its owner alone.
        token: of the user, with the right to write; default: what ``hf auth login`` has stored, or ``HF_TOKEN``.

    Returns:
        Address of the repository.

    Raises:
        SnowsError: on a folder that is none, a name that the hub does not take, no token, or a hub that refuses or
            cannot be reached.
    """
    require_extra("export", "huggingface_hub")
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # it is there, and documented

    private = switch("private", private)
    folder, config, card = _checked(folder)
    expected = "the name of a repository on the hub, as user/name"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise invalid_argument("repo_id", repr(repo_id), expected) from error
    if repo_id.count("/") != 1:
        raise invalid_argument("repo_id", repr(repo_id), expected)
    token = token or huggingface_hub.get_token()
    if not token:
        fix = "Log in by `hf auth login`, or set HF_TOKEN; tokens are made at https://huggingface.co/settings/tokens."
        raise cannot_go_on("token", "none", "a token of the hub that may write", fix)
    card = on_hub(card, config, folder, repo_id)
    try:
        return _uploaded(huggingface_hub.HfApi(token=token), folder, repo_id, private, card)
    except SnowsError:
        raise
    except Exception as error:  # of the hub, of the network below it, or of its libraries
        reason = reason_of(error).replace(token, "***")
        fix = "Check the network, the name, and that the token may write there; nothing of the folder was changed."
        got = f"{repo_id}, to which nothing could be uploaded ({reason})"
        raise cannot_go_on("repo_id", got, "a repository of the hub that can be written", fix) from None


def _checked(folder: str | Path) -> tuple[Path, dict[str, Any], str]:
    """Return a hub folder with its description and card.

    Raises:
        SnowsError: on anything else.
    """
    folder = as_path("folder", folder, "the path of a folder")
    expected, fix = "a hub folder", "`snows export pruned --to hf-hub-folder --out FOLDER` writes one."
    if missing := [name for name in _NEEDED if not is_file(folder / name)]:
        got = f"{folder}, which has no {', no '.join(missing)}" if folder.is_dir() else f"{folder}, which is no folder"
        raise invalid_argument("folder", got, expected, fix)
    try:
        config, card = read_json(folder / CONFIG), read_text(folder / CARD, CARD_BYTES)
        if not isinstance(config, dict) or not {"architecture", "class"} & config.keys():
            raise ValueError(f"{CONFIG} describes no network")
        if not card.startswith("---\n"):
            raise ValueError(f"{CARD} is no model card")
    except (OSError, ValueError) as error:
        raise invalid_argument("folder", f"{folder}, which is none: {error}", expected, fix) from error
    return folder, config, card


def on_hub(card: str, config: dict[str, Any], folder: Path, repo_id: str) -> str:
    """Return a card whose lines load the network from the hub instead of from a folder.

    Args:
        card: as it lies in the folder; lines that its owner has changed stay as they are.
        config: content of config.json.
        folder: the folder, under whose name the card was written.
        repo_id: where it is on the hub.
    """
    place = folder_name(folder)
    pairs = list(zip(loading_lines(config, place), loading_lines(config, repo_id, on_hub=True), strict=True))
    if "architecture" not in config:
        pairs += zip(weights_lines(config, place), weights_lines(config, repo_id, on_hub=True), strict=True)
    for line, other in pairs:
        card = card.replace(f"\n{line}\n", f"\n{other}\n")
    return card.replace(f" `{place}` is the folder of this file.", "")


def _uploaded(api: Any, folder: Path, repo_id: str, private: bool, card: str) -> str:
    """Make the repository where it is missing, upload the files, and return its address."""
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="snows-") as name:
        for file in FILES:
            if is_file(folder / file) and file != CARD:
                _linked(folder / file, Path(name) / file)
        (Path(name) / CARD).write_text(card, encoding="utf-8")
        api.upload_folder(repo_id=repo_id, folder_path=name, commit_message="Add the pruned network")
    return str(url)


def _linked(file: Path, place: Path) -> None:
    """Give a file a second name without copying it where the system can."""
    try:
        os.symlink(file.resolve(), place)
    except OSError:  # Windows asks for a right
        place.write_bytes(file.read_bytes())
