"""File locks between processes."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from captioning.support.errors import CaptioningError
from captioning.support.files import reason_of, writing

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, which is created with its folder.

    A process that has to wait logs what it waits for. The kernel releases the lock when its holder
    exits or is killed, so a lock never becomes stale. The empty file is not removed, because then
    two processes could lock two different files. On a file system without locks, the work is
    refused, because two processes at once could damage each other's files.

    Args:
        path: the lock file.
        waiting_for: what the holder of the lock is doing, for the log line of a waiting process.

    Raises:
        CaptioningError: the file cannot be written, or its file system has no locks.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            _lock(file, waiting_for)
        except OSError as error:  # for example ENOLCK
            raise CaptioningError(
                f"{path} cannot be locked ({reason_of(error)}): choose a folder whose file system "
                "has locks, such as one on a local disk; CAPTIONING_CACHE moves the cache."
            ) from error
        yield


def _lock(file: TextIO, waiting_for: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("Waiting for another process: %s", waiting_for)
        fcntl.flock(file, fcntl.LOCK_EX)
