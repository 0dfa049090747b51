"""A folder of numbered records, each whole or not at all, from which a killed run goes on.

A record holds tensors and what JSON can say. It is one .safetensors file with a digest of all it holds: a file that was
cut off or changed is seen, and what came behind it does not count. Nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from snows_core.errors import SnowsError, invalid_argument
from snows_core.files.bounded import MANIFEST_BYTES, read_json
from snows_core.files.writing import as_path, clean_leftovers, contents, try_to_write, write_text, write_whole

CONFIGURATION, LOCK = "run.json", "lock"
FORMAT = 1
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Record:
    """One step of a run that is finished.

    Attributes:
        kind: what it is, a word.
        values: JSON-ready; infinities and NaN may be among the numbers.
        tensors: name to tensor, dense.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Journal:
    """The records of one run.

    Args:
        folder: new, empty, or of a run with the same configuration, which then goes on.
        configuration: what must be the same for that, JSON-ready, by words that a user knows.
        argument: of the caller, for messages.

    Attributes:
        records: those that are there, in order.

    Raises:
        SnowsError: when the folder cannot be written, holds other things, is in use, or is of another run: the message
            names the first difference.
    """

    def __init__(self, folder: str | Path, configuration: Mapping[str, Any], argument: str = "checkpoint_dir") -> None:
        self.folder, self.argument = Path(folder), argument
        self.records: list[Record] = []
        self._waiting: list[tuple[Path, Record]] = []
        self._warned = False
        check_journal(folder, argument)
        whole = Path(os.path.abspath(folder))
        self._made = [path for path in (whole, *whole.parents) if not path.exists()]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / LOCK)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            fix = "Wait for it to end, or choose another folder."
            raise invalid_argument(argument, f"{folder}, which another run is using", "one run a folder", fix) from None
        try:
            clean_leftovers(self.folder)
            self._open(json.loads(json.dumps(configuration)))
        except BaseException:
            if whole in self._made:
                self.close()
            else:  # it may be another run's, which keeps what is its own
                self._lock.release()
            raise

    def _open(self, configuration: dict[str, Any]) -> None:
        path = self.folder / CONFIGURATION
        text = json.dumps(configuration, sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        if path.is_file():
            there = self._configuration(path)
            if there != configuration:
                raise self._other_run(there, configuration)
        else:
            write_text(path, json.dumps({"format": FORMAT, "configuration": configuration}, indent=1) + "\n")
        files = [name for name in contents(self.folder) if _is_record(name)]
        self._next = 1 + (int(files[-1][:6]) if files else 0)
        for name in files:
            try:
                self.records.append(_read(self.folder / name, self.digest))
            except Exception as error:  # whatever a library makes of a damaged file
                if isinstance(error, MemoryError) or getattr(error, "errno", None) is not None:
                    raise  # the file may be sound: it could not be read now
                reason = " ".join(str(error).split())[:160] or type(error).__name__
                words = f"{self.argument}: {self.folder / name} is damaged ({reason}); what it held is computed anew"
                warnings.warn(words, stacklevel=6)
                for later in files[files.index(name) :]:
                    (self.folder / later).unlink()
                break

    def _configuration(self, path: Path) -> dict[str, Any]:
        expected, fix = "what a run wrote", "Choose another folder, or remove this one."
        try:
            content = read_json(path, MANIFEST_BYTES)
            there, version = content["configuration"], content["format"]
            if not isinstance(there, dict):
                raise ValueError("no configuration in it")
        except (OSError, ValueError, KeyError, TypeError) as error:
            got = f"a damaged file {path} ({' '.join(str(error).split())[:160] or type(error).__name__})"
            raise invalid_argument(self.argument, got, expected, fix) from error
        if version != FORMAT:
            got = f"{self.folder}, written in format {version} by another version of this package"
            raise invalid_argument(self.argument, got, f"format {FORMAT}", fix)
        return there

    def _other_run(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> Exception:
        words = difference(there, here)
        got = f"{self.folder}, which holds a run with {words}"
        fix = "Use the options of that run, choose another folder, or remove this one."
        return invalid_argument(self.argument, got, "a new or empty folder, or one of the same run", fix)

    def add(self, record: Record, replaces: Collection[str] = ()) -> None:
        """Keep a record. Where that fails (a full disk), warn once, go on, and try again with the next one.

        Args:
            record: what is finished.
            replaces: kinds of records, of which those before it may go once it is there.
        """
        self._waiting = [(path, other) for path, other in self._waiting if other.kind not in replaces]
        self._waiting.append((self.folder / f"{self._next:06d}-{record.kind}{_SUFFIX}", record))
        self._next += 1
        try:
            while self._waiting:
                path, next_ = self._waiting[0]
                write_whole(path, partial(_write, next_, self.digest))
                self._waiting.pop(0)
        except Exception as error:  # OSError, and what safetensors makes of one
            if not self._warned:
                reason = getattr(error, "strerror", None) or error
                words = f"{self.argument}: {self.folder} cannot be written ({reason}); the run goes on, and if it is"
                warnings.warn(f"{words} killed now, what follows is lost", stacklevel=2)
            self._warned = True
            return
        self._warned = False
        for name in contents(self.folder):
            if _is_record(name) and name < path.name and Path(name).stem[7:] in replaces:
                (self.folder / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Let other runs use the folder; one without a record goes away, with folders that were made for it."""
        self._lock.release()
        if not any(map(_is_record, contents(self.folder))):
            remove_journal(self.folder)
            with contextlib.suppress(OSError):  # in which something else lies by now
                for path in self._made[not self.folder.exists() :]:
                    path.rmdir()


def is_journal(folder: str | Path) -> bool:
    """Tell whether a folder holds the records of a run."""
    return (Path(folder) / CONFIGURATION).is_file()


def remove_journal(folder: str | Path) -> None:
    """Take a folder away with all that a journal wrote into it: its run has come to its end."""
    folder = Path(folder)
    if not is_journal(folder):
        return
    clean_leftovers(folder)
    for name in contents(folder):
        if name in (CONFIGURATION, LOCK) or _is_record(name):
            (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def check_journal(folder: str | Path, argument: str = "checkpoint_dir") -> None:
    """Refuse a folder that cannot be written or holds other things than records, before any work is done.

    Args:
        folder: where records are to be kept.
        argument: of the caller, for messages.

    Raises:
        SnowsError: with the reason.
    """
    folder = as_path(argument, folder, "the path of a folder")
    try:
        if folder.exists() and not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        held = contents(folder) if folder.is_dir() else []
        others = [name for name in held if name not in (CONFIGURATION, LOCK) and not _is_record(name)]
        if others or (held and CONFIGURATION not in held and held != [LOCK]):
            got = f"{folder}, which holds other files ({(others or held)[0]})"
            raise invalid_argument(argument, got, "a new or empty folder, or one of an interrupted run")
        try_to_write(folder)
    except (OSError, ValueError, TypeError) as error:
        if isinstance(error, SnowsError):
            raise
        reason = getattr(error, "strerror", None) or error
        got = f"{str(folder)[:200]!r}, which cannot be written ({reason})"
        raise invalid_argument(argument, got, "a folder that can be made", "Choose another place.") from error


def difference(there: Mapping[str, Any], here: Mapping[str, Any], before: str = "") -> str:
    """Say the first difference between two configurations in words.

    Args:
        there: of the run that is kept.
        here: of the run that asks.
        before: names of the entries that both stand in, with dots behind them.

    Returns:
        Name, what is there, and what is here.

    >>> difference({"k": 5, "newton": {"steps": 3}}, {"k": 5, "newton": {"steps": 9}})
    'newton.steps 3, not 9'
    """
    for key in (*here, *(key for key in there if key not in here)):
        one, other = there.get(key), here.get(key)
        if one == other and (key in there) == (key in here):
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            return difference(one, other, f"{before}{key}.")
        return f"{before}{key} {_shown(one)}, not {_shown(other)}"
    return "another record"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_record(name: str) -> bool:
    return name.endswith(_SUFFIX) and name[:6].isdigit() and name[6] == "-"


def _write(record: Record, run: str, path: Path) -> None:
    """Write a record into a file; ``run`` is the digest of the configuration that it belongs to."""
    tensors, strides = {}, {}
    for name, value in record.tensors.items():
        host = value.detach().cpu()
        if not host.is_contiguous():  # the order of numbers in memory decides how sums are rounded
            strides[name] = list(host.stride())
        tensors[name] = host.clone(memory_format=torch.contiguous_format)
    text = json.dumps({"kind": record.kind, "values": dict(record.values), "strides": strides, "run": run})
    save_file(tensors, path, {"record": text, "sha256": _digest(text, tensors)})


def _read(path: Path, run: str) -> Record:
    with safe_open(path, framework="pt") as file:
        held = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    text = held["record"]
    if held["sha256"] != _digest(text, tensors):
        raise ValueError("its digest is another one")
    content = json.loads(text)
    if content["run"] != run:
        raise ValueError("it is of another run")
    for name, stride in content["strides"].items():
        tensors[name] = torch.empty_strided(tensors[name].shape, stride, dtype=tensors[name].dtype).copy_(tensors[name])
    # In memory of their own: where a tensor begins decides how sums are rounded, too.
    tensors = {name: value.clone() for name, value in tensors.items()}
    return Record(content["kind"], content["values"], tensors)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
