"""Downloading Flickr8k from a mirror.

The two archives are the original ones. Their MD5 sums are those that two independent public
projects check (torchvision's port to R and a C++ project's CMake file); the SHA-256 sums of the
text files were computed from copies of the archive. MD5 only serves to detect a damaged or wrong
file: that no file of an archive is written outside its folder is checked separately.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import stat
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
    track,
)

from captioning.support.errors import CaptioningError
from captioning.support.files import writing
from captioning.support.locks import file_lock

log = logging.getLogger(__name__)

MIRRORS = (
    "https://github.com/jbrownlee/Datasets/releases/download/Flickr8k",
    "http://nlp.cs.illinois.edu/HockenmaierGroup/Framing_Image_Description",
)
# To connect, and between two chunks. It is short, so that a missing network is noticed soon.
_TIMEOUT_S = 10.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Archive:
    """One zip file of the data set.

    Attributes:
        name: Its file name on each mirror.
        md5: MD5 of the zip file (hex).
        folder: The folder into which its files are unpacked, without folders inside.
        suffix: The suffix of the files that are unpacked.
        sha256: SHA-256 (hex) by name of files that it must contain.
        count: The number of files with the suffix, or None for any number.
    """

    name: str
    md5: str
    folder: str
    suffix: str
    sha256: Mapping[str, str] = field(default_factory=dict)
    count: int | None = None


FLICKR8K = (
    Archive(
        name="Flickr8k_text.zip",
        md5="bf6c1abcb8e4a833b7f922104de18627",
        folder="Flickr8k_text",
        suffix=".txt",
        sha256={
            "Flickr8k.token.txt": (
                "1e1f3a371ba1a1bf742e6930521c037e046b2bf3fcc2390ba8405e0301ed7689"
            ),
            "Flickr_8k.trainImages.txt": (
                "e330ddd5156a4c2d2e2b67bc587e70e588f2d132bd8a10dc54dcb71e58115d8e"
            ),
            "Flickr_8k.devImages.txt": (
                "18ba829f47f6df1cb830bf7f0506e2ddf333818925299babbd1bbcaf50fdc504"
            ),
            "Flickr_8k.testImages.txt": (
                "c0924146c131458ceba45da59670fe9520eadce1e5cafffa16a817672a9b1f17"
            ),
        },
    ),
    Archive(
        name="Flickr8k_Dataset.zip",
        md5="f18a1e2920de5bd84dae7cf08ec78978",
        folder="Flicker8k_Dataset",
        suffix=".jpg",
        count=8091,
    ),
)


def download_flickr8k(
    target: str | Path,
    mirrors: Sequence[str] = MIRRORS,
    archives: Sequence[Archive] = FLICKR8K,
) -> Path:
    """Download Flickr8k into ``target`` in its official layout; folders that exist are kept.

    An interrupted download is resumed. An archive that a user has put into ``target`` is used
    instead of a download. Several processes may call this function at once: one of them downloads,
    the others wait. A folder gets its final name only when it is complete.

    Args:
        target: The folder of the data set; it is made if need be.
        mirrors: URLs of folders that have the archives, tried in turn.
        archives: The archives.

    Returns:
        ``target``.

    Raises:
        CaptioningError: no mirror sends the archive, or an archive in ``target`` is not the
            original one; the message says what to download by hand and where to put it. Or
            ``target`` cannot be written.
    """
    target = Path(target).expanduser()
    lock = file_lock(target / ".download.lock", f"the download of Flickr8k to {target}")
    with writing(target), lock:
        for archive in archives:
            if not (target / archive.folder).is_dir():
                _provide(archive, target, mirrors)
    return target


class _MirrorError(Exception):
    """A mirror did not send the archive; the next one is tried."""


def _provide(archive: Archive, target: Path, mirrors: Sequence[str]) -> None:
    """Unpack an archive, from ``target`` itself or from the first mirror that sends it."""
    given = target / archive.name
    if given.is_file():
        if _md5(given) != archive.md5:
            raise CaptioningError(
                f"{given}: not the original archive, whose MD5 is {archive.md5}; remove it, or "
                f"unpack it into {target / archive.folder} yourself."
            )
        try:
            _unpack(given, archive, target)
        except _MirrorError as error:
            raise CaptioningError(f"{given}: {error}; remove it.") from error
        return

    part = target / f"{archive.name}.part"
    failures = []
    for mirror in mirrors:
        url = f"{mirror}/{archive.name}"
        try:
            _fetch(url, part, archive.md5)
            try:
                _unpack(part, archive, target)
            except _MirrorError:
                part.unlink()
                raise
        except _MirrorError as error:
            log.info("%s: %s", url, error)
            failures.append(f"{url}: {error}")
        else:
            part.unlink()
            return
    raise CaptioningError(
        f"{archive.name} cannot be downloaded ({'; '.join(failures) or 'no mirror is given'}): "
        f"download {' and '.join(archive.name for archive in FLICKR8K)} where there is a network "
        f"and put them, or what is in them, into {target}, or set data.root to a folder that has "
        "Flickr8k."
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, part: Path, md5: str) -> None:
    """Download ``url`` to ``part``, resuming an earlier attempt, and check the result."""
    resumed = part.is_file()
    if resumed and _md5(part) == md5:
        return
    log.info("Downloading %s", url)
    _download(url, part)
    if _md5(part) != md5 and resumed:
        log.info("The earlier part was of another file; downloading %s again", url)
        part.unlink()
        _download(url, part)
    if _md5(part) != md5:
        part.unlink()
        raise _MirrorError(f"what it sends is not the original archive, whose MD5 is {md5}")


def _download(url: str, part: Path) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(PurePosixPath(url).name, total=None)
        while True:
            before = _size(part)
            try:
                return _receive(url, part, progress, task)
            except _MirrorError as error:
                if _size(part) <= before:
                    raise
                log.info("%s: %s; going on", url, error)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(url: str, part: Path, progress: Progress, task: TaskID) -> None:
    """Append the rest of ``url`` to ``part``, or write all of it to a new file."""
    offset = _size(part)
    with _request(url, offset) as response:
        if response.status != 206:
            offset = 0  # the server ignores the requested range and sends the whole file
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length and length.isdigit() else None
        progress.update(task, completed=offset, total=total)
        with part.open("ab" if offset else "wb") as file:
            while chunk := _read(response):
                progress.update(task, advance=file.write(chunk))
    if total is not None and _size(part) != total:
        raise _MirrorError(f"the connection ended at byte {_size(part):,} of {total:,}")


def _request(url: str, offset: int) -> HTTPResponse:
    """Request ``url`` from a byte on; the server may still send the whole file."""
    request = urllib.request.Request(url, headers={"User-Agent": "captioning"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and offset:  # the server's file is not longer than ours
                return _request(url, 0)
            raise _MirrorError(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise _MirrorError(str(getattr(error, "reason", error))) from error
    if response.status == 206:
        start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if not offset or start is None or int(start[1]) != offset:
            response.close()
            raise _MirrorError("it answers with another part of the file than was asked for")
    return response


def _read(response: HTTPResponse) -> bytes:
    try:
        return response.read(_CHUNK_BYTES)
    except (OSError, HTTPException) as error:
        raise _MirrorError(str(error)) from error


def _unpack(path: Path, archive: Archive, target: Path) -> None:
    """Unpack and check the files, and only then give the folder its final name."""
    building = target / f".{archive.folder}.unpacking"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    try:
        with zipfile.ZipFile(path) as zipped:
            for entry in zipped.infolist():
                _refuse_outside(entry)
            wanted = [entry for entry in zipped.infolist() if _is_wanted(entry, archive.suffix)]
            if len({PurePosixPath(entry.filename).name for entry in wanted}) != len(wanted):
                raise _MirrorError("the archive has two files of one name")
            for entry in track(wanted, f"Unpacking {archive.folder}", console=Console(stderr=True)):
                copy_to = building / PurePosixPath(entry.filename).name
                with zipped.open(entry) as source, copy_to.open("xb") as copy:
                    shutil.copyfileobj(source, copy)  # it also checks the CRC of the entry
        _check(building, archive)
        building.rename(target / archive.folder)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _MirrorError(f"the archive is damaged ({error})") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _refuse_outside(entry: zipfile.ZipInfo) -> None:
    name = PurePosixPath(entry.filename)
    outside = name.is_absolute() or ".." in name.parts or "\\" in entry.filename
    if outside or stat.S_ISLNK(entry.external_attr >> 16):
        raise _MirrorError(f"the archive's entry {entry.filename!r} leads outside its folder")


def _is_wanted(entry: zipfile.ZipInfo, suffix: str) -> bool:
    name = PurePosixPath(entry.filename)
    hidden = name.name.startswith(".") or "__MACOSX" in name.parts  # macOS's metadata files
    return not entry.is_dir() and not hidden and name.suffix.lower() == suffix


def _check(folder: Path, archive: Archive) -> None:
    """Raise an error unless the unpacked files are those of the data set."""
    names = {path.name for path in folder.iterdir()}
    if archive.count is not None and len(names) != archive.count:
        raise _MirrorError(f"the archive has {len(names):,} images, not {archive.count:,}")
    for name, digest in archive.sha256.items():
        if name not in names:
            raise _MirrorError(f"the archive has no {name}")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
            raise _MirrorError(f"the archive's {name} is not the original")
