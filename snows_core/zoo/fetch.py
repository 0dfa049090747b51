"""Where data lives on this machine, and how it gets there: checked downloads that leave nothing half-written."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import shutil
import socket
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path

from snows_core.errors import SnowsError, invalid_argument

MOST_TIMES = 20  # bytes of what an archive unpacks to, for each of its own; pictures are compressed already
SMALL = 1_000_000  # bytes that any archive may unpack to
MOST_MEMBERS = 200_000  # ten times those of Imagenette
MOST_AT_A_TIME = 1 << 20  # bytes that are read of what stands behind the last member
TIMEOUT = 30  # seconds without an answer after which a host counts as unreachable
T = TypeVar("T")


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder under which every data set has a folder of its own.

    Args:
        root: the folder; default the environment variable ``SNOWS_DATA``, else the user's cache folder.

    Raises:
        SnowsError: when a folder was named, by argument or variable, that does not exist.
    """
    named = root if root is not None else os.environ.get("SNOWS_DATA") or None
    if named is None:
        return user_cache_path("snows", appauthor=False)
    try:
        folder = Path(named).expanduser()
        there = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, a home of nobody's, a null character
        there = False
    if not there:
        argument = "root" if root is not None else "SNOWS_DATA"
        raise invalid_argument(
            argument, f"'{named}', which is not a folder", "an existing folder for data sets", "Make it first."
        )
    return folder


@contextlib.contextmanager
def impatient(seconds: float = TIMEOUT) -> Iterator[None]:
    """Give up on hosts that do not answer: the libraries that download set no time limit of their own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def one_line(error: BaseException) -> str:
    """Return an error as one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def reachable(url: str, seconds: float = 5) -> bool:
    """Say at once whether a host answers; clients that retry take most of a minute to find out.

    Args:
        url: address with the host's name.
        seconds: how long to wait for it.

    Returns:
        Whether it answers; True behind a proxy, where the question cannot be asked directly.
    """
    if urllib.request.getproxies():
        return True
    parts = urllib.parse.urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "", parts.port or 443), timeout=seconds).close()
    except OSError:
        return False
    return True


def digest(file: Path, method: str, before: bytes = b"") -> str:
    """Return the hexadecimal checksum of a file.

    Args:
        file: the file.
        method: "md5", "sha1" or "sha256".
        before: what is read before it, as git does with a header.
    """
    found = hashlib.new(method, before, usedforsecurity=False)
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def download_url(url: str, folder: str, filename: str) -> None:
    """Fetch a file into a folder, by torchvision's client: redirections, a progress bar."""
    from torchvision.datasets import utils

    utils.download_url(url, folder, filename)


def from_hub(what: str, call: Callable[[], T], fix: str, failed: str = "could not be downloaded") -> T:
    """Run a call that downloads or reads weights; whatever goes wrong becomes one sentence.

    Args:
        what: the weights, in words.
        call: the download.
        fix: what the user can do instead.
        failed: what happened to the weights where the call fails.

    Returns:
        What the call returns.

    Raises:
        SnowsError: when the call fails.
    """
    try:
        with impatient():
            return call()
    except Exception as error:  # each library has its own errors for no network, and they share no base class
        raise SnowsError(f"weights: {what} {failed} ({one_line(error)}). {fix}") from error


def _verified(file: Path, md5: str) -> None:
    if digest(file, "md5") != md5:
        raise SnowsError(
            f"{file}: the checksum does not match (expected md5 {md5}), so the file is damaged or another one. "
            "Delete it and run again to download it anew, or put the right file there."
        )


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder for the block; where the block fails, folders that were made for it and are empty go again.

    Args:
        folder: new or existing; missing parents are made and removed likewise.
    """
    missing = list(takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()
        raise


def _download(archive: str, urls: Sequence[str], md5: str | None, folder: Path) -> Path:
    """Fetch an archive from the first address that has the right bytes; the name appears only when they are right."""
    tried = []
    with made(folder):
        for url in urls:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
                try:
                    with impatient():
                        download_url(url, temporary, archive)
                except Exception as error:  # no network comes as URLError, timeout, HTTP error, connection error, ...
                    tried.append(f"{url} ({one_line(error)})")
                    continue
                if md5 is not None and digest(Path(temporary) / archive, "md5") != md5:
                    tried.append(f"{url} (checksum mismatch: expected md5 {md5})")
                    continue
                os.replace(Path(temporary) / archive, folder / archive)
                return folder / archive
        raise SnowsError(
            f"{archive} could not be downloaded; tried {'; '.join(tried)}. Check the network, or place the file"
            f"{_promised(md5)} at {folder / archive} yourself."
        )


def _promised(md5: str | None) -> str:
    return "" if md5 is None else f" (md5 {md5})"


def obtain_archive(
    archive: str,
    urls: Sequence[str],
    md5: str | None,
    folder: Path,
    contents: str,
    download: bool = True,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Return the unpacked contents of an archive: already there, from the archive in the folder, or downloaded.

    Args:
        archive: file name of the tar archive.
        urls: addresses, tried in order.
        md5: checksum of the archive, always verified, also of a file that the user placed there; None where the host
            packs it anew for every download, so that only what is inside can be verified.
        folder: where the archive and its contents live.
        contents: folder name that the archive unpacks to.
        download: whether the network may be used.
        check: raises on an unpacked folder that is not the promised one.

    Returns:
        ``folder / contents``; it appears in one step, never half-unpacked.

    Raises:
        SnowsError: when the archive is damaged, cannot be had, or may not be downloaded.
    """
    target, file = folder / contents, folder / archive
    if target.is_dir():
        return target
    if file.exists():
        if md5 is not None:
            _verified(file, md5)
    elif download:
        file = _download(archive, urls, md5, folder)
    else:
        raise SnowsError(
            f"root: neither {target} nor {file} is there, and download=False. Place the archive there (from"
            f" {urls[0]}{'' if md5 is None else f', md5 {md5}'}), or allow the download."
        )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".unpack-") as temporary:
        _unpack(file, temporary)
        if not (Path(temporary) / contents).is_dir():
            raise SnowsError(f"{file}: unpacks to no folder '{contents}'; it is not the expected archive.")
        if check is not None:
            check(Path(temporary) / contents)
        shutil.move(Path(temporary) / contents, target)
    return target


def _unpack(file: Path, folder: str) -> None:
    """Unpack a tar archive by Python's filter "data": no links or paths that leave the folder, no devices.

    An archive of which little becomes much is refused before more than that is written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise SnowsError(
            f"{file}: this Python unpacks archives without looking at links and paths that leave the folder. Update to"
            " its newest bug-fix release (3.10.12, 3.11.4 or newer have the filter), or unpack the archive yourself."
        )
    try:
        with tarfile.open(file) as tar:
            tar.extractall(folder, _bounded(tar, MOST_TIMES * file.stat().st_size + SMALL), filter="data")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; decompressors give no number
            raise
        raise SnowsError(
            f"{file} cannot be unpacked ({one_line(error)}). Delete it and run again, or put the right file there."
        ) from error


def _bounded(tar: tarfile.TarFile, most: int) -> Iterator[tarfile.TarInfo]:
    """Yield the members of an archive as they come; what they promise to fill is added up before each is written."""
    written = 0
    for count, member in enumerate(tar, 1):
        written += member.size
        if written > most or count > MOST_MEMBERS:
            raise tarfile.TarError(f"it unpacks to more than {most:,} bytes or {MOST_MEMBERS:,} files")
        yield member
    assert tar.fileobj is not None  # the archive is open
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # Python takes what it cannot read for the end
        raise tarfile.ReadError("it is damaged, or ends too early")
    while rest := tar.fileobj.read(MOST_AT_A_TIME):  # a compressed file's checksum is compared at its very end
        written += len(rest)
        if written > most:
            raise tarfile.TarError(f"it unpacks to more than {most:,} bytes")
