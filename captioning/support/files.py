"""Writing files: atomically, and with one sentence for every fault of a disk.

A process that is killed at any moment leaves either the old file or the new one.
"""

import errno
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioning.support.errors import CaptioningError
from captioning.support.paths import cache_dir

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FAULTS_OF_A_DISK = {
    *_FULL,
    *(errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG),
    *(errno.EIO, errno.ESTALE, errno.ENOLCK),
}


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to a file, replacing an existing one. Missing parent folders are created.

    The data is written and synced to a temporary file in the same folder, which is then renamed.

    Raises:
        CaptioningError: the file cannot be written. An existing file is then unchanged.
    """
    target = Path(path)
    # `tempfile` would make the file unreadable for others; this file gets the default mode.
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with unchanged line ends; see :func:`atomic_write_bytes`.

    Raises:
        CaptioningError: the file cannot be written. An existing file is then unchanged.
        UnicodeEncodeError: ``text`` holds a lone surrogate. An existing file is then unchanged.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as indented JSON. Output is ASCII, so that lone surrogates are preserved.

    Raises:
        CaptioningError: the file cannot be written. An existing file is then unchanged.
        TypeError: ``obj`` is not serialisable. An existing file is then unchanged.
    """
    atomic_write_text(path, json.dumps(obj, indent=2) + "\n")


@contextmanager
def writing(path: str | os.PathLike[str], key: str = "") -> Iterator[None]:
    """Name the file or folder, the reason and the remedy if the block cannot write it.

    Args:
        path: what the block writes.
        key: the setting that chose it, for the message.

    Raises:
        CaptioningError: in place of any :class:`OSError` of the block.
    """
    try:
        yield
    except OSError as error:
        named = f"{key}={path}" if key else str(path)
        raise CaptioningError(
            f"{named} cannot be written ({reason_of(error)}): {_remedy(path, error)}."
        ) from error


@contextmanager
def naming_disk_faults(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Like :func:`writing`, around code whose files are written by many parts and by libraries.

    Other errors than those of a full, read-only or failing disk are raised as they are.

    Args:
        folder: the folder that is named if the error names no file.

    Raises:
        CaptioningError: in place of an :class:`OSError` that a disk causes.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
            raise CaptioningError(
                f"{reason_of(error)}: make room in one of them, or set TMPDIR to a folder that "
                "can be written."
            ) from error
        if error.errno not in _FAULTS_OF_A_DISK:
            raise
        path = error.filename if isinstance(error.filename, str) else folder
        raise CaptioningError(
            f"{path} cannot be read or written ({reason_of(error)}): {_remedy(path, error)}."
        ) from error


def reason_of(error: OSError) -> str:
    """The reason in words, such as ``No space left on device``."""
    return error.strerror or str(error) or type(error).__name__


def _remedy(path: str | os.PathLike[str], error: OSError) -> str:
    in_cache = Path(path).absolute().is_relative_to(cache_dir().absolute())
    elsewhere = "set CAPTIONING_CACHE to another folder" if in_cache else "choose another folder"
    if error.errno in _FULL:
        return f"make room on its disk, or {elsewhere}"
    if error.errno == errno.EFBIG:
        return f"raise the limit of file sizes (ulimit -f), or {elsewhere}"
    if error.errno == errno.ENAMETOOLONG:
        return "choose a shorter name"
    return f"{elsewhere}, one in which you may write"
