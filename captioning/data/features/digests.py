"""What is in an image file, as one number: its SHA-256, remembered between runs."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress

log = logging.getLogger(__name__)

_THREADS = 8  # reading waits for the disk more than it computes
_SETTLED_NS = 2 * 10**9

# From absolute path to size, time of the last change in nanoseconds, and SHA-256.
_Known = dict[str, tuple[int, int, str]]


def image_digests(paths: Sequence[Path], cache_file: Path, *, progress: bool = True) -> list[str]:
    """Return the SHA-256 of each file's content, in hexadecimal.

    A file whose size and time of change are those in ``cache_file`` is not read again.

    Args:
        paths: The files.
        cache_file: A JSON file, made when missing; several processes may share it.
        progress: Whether to show how far it is.

    Raises:
        CaptioningError: a file cannot be read.
    """
    outcomes = try_image_digests(paths, cache_file, progress=progress)
    digests = [outcome for outcome in outcomes if isinstance(outcome, str)]
    for outcome in outcomes:
        if isinstance(outcome, CaptioningError):
            raise outcome
    return digests


def try_image_digests(
    paths: Sequence[Path], cache_file: Path, *, progress: bool = True
) -> list[str | CaptioningError]:
    """Do as :func:`image_digests`, with the error in place of the digest where there is one."""
    known = _read(cache_file)
    outcomes: list[str | CaptioningError | None] = [None] * len(paths)
    stamps: dict[int, tuple[int, int]] = {}  # of the files to read, by position
    for position, path in enumerate(paths):
        try:
            status = path.stat()
        except OSError as error:
            outcomes[position] = _unreadable(path, error)
            continue
        stamp = (status.st_size, status.st_mtime_ns)
        *remembered, digest = known.get(str(path.absolute()), (0, 0, ""))
        if tuple(remembered) == stamp:
            outcomes[position] = digest
        else:
            stamps[position] = stamp

    with (
        track_progress("Reading images", len(stamps), visible=progress) as advance,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        results = pool.map(_digest, [paths[position] for position in stamps])
        for position, result in zip(stamps, results, strict=True):
            outcomes[position] = result
            advance(1)

    # A file changed this moment could change again within the clock's grain: not remembered yet.
    settled = time.time_ns() - _SETTLED_NS
    fresh: _Known = {}
    for position, (size, changed) in stamps.items():
        outcome = outcomes[position]
        if isinstance(outcome, str) and changed < settled:
            fresh[str(paths[position].absolute())] = (size, changed, outcome)
    if fresh:
        _remember(cache_file, fresh)
    return [outcome for outcome in outcomes if outcome is not None]


def _digest(path: Path) -> str | CaptioningError:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> CaptioningError:
    return CaptioningError(f"{path} cannot be read ({error.strerror}).")


def _read(cache_file: Path) -> _Known:
    try:
        known = json.loads(cache_file.read_text(encoding="utf-8"))
        return {path: (size, changed, digest) for path, (size, changed, digest) in known.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        log.warning("%s is damaged: all images are read again", cache_file)
        return {}


def _remember(cache_file: Path, fresh: _Known) -> None:
    try:
        with file_lock(cache_file.with_suffix(".lock"), f"it is updating {cache_file}"):
            atomic_write_text(cache_file, json.dumps({**_read(cache_file), **fresh}))
    except (OSError, CaptioningError) as error:  # a shared folder that we may only read
        log.warning("The images will be read again next time: %s", error)
