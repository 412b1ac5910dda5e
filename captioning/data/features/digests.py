"""SHA-256 digests of image files, remembered between runs."""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import TypeAdapter

from captioning.data.images import open_file
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text
from captioning.support.locks import file_lock
from captioning.support.progress import track_progress
from captioning.support.reading import load_record

log = logging.getLogger(__name__)

_THREADS = 8  # more than there are cores, since reading mostly waits for the disk
_SETTLED_NS = 2 * 10**9

# From the absolute path of a file to its size, its modification time in ns, and its SHA-256.
_Known = dict[str, tuple[int, int, str]]
_FORM = TypeAdapter(_Known)


def image_digests(paths: Sequence[Path], cache_file: Path, *, progress: bool = True) -> list[str]:
    """Return the SHA-256 of each file's content, in hexadecimal.

    A file whose size and modification time are those in ``cache_file`` is not read again.

    Args:
        paths: The files.
        cache_file: A JSON file, made when missing; several processes may share it.
        progress: Whether to show a progress bar.

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
    """Like :func:`image_digests`, but returns the error in place of a file's digest."""
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

    # A file that was just modified could be modified again without a new modification time, as
    # clocks of file systems are coarse. It is not remembered yet.
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
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except CaptioningError as error:
        return error
    except OSError as error:
        return _unreadable(path, error)


def _unreadable(path: Path, error: OSError) -> CaptioningError:
    return CaptioningError(f"{path} cannot be read ({error.strerror}).")


def _read(cache_file: Path) -> _Known:
    if not cache_file.exists():
        return {}
    try:
        return load_record(cache_file, _FORM.validate_json)
    except CaptioningError as error:
        log.warning("All images are read again, since their digests are damaged: %s", error)
        return {}


def _remember(cache_file: Path, fresh: _Known) -> None:
    try:
        with file_lock(cache_file.with_suffix(".lock"), f"it is updating {cache_file}"):
            atomic_write_text(cache_file, json.dumps({**_read(cache_file), **fresh}))
    except CaptioningError as error:  # for instance, a folder that we may only read
        log.warning("The images will be read again next time: %s", error)
