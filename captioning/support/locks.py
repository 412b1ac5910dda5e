"""File locks between processes."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, which is created with its folder.

    A process that has to wait logs what it waits for. The kernel releases the lock when its holder
    exits or is killed, so a lock never becomes stale. The empty file is not removed, because then
    two processes could lock two different files.

    Args:
        path: the lock file.
        waiting_for: what the holder of the lock is doing, for the log line of a waiting process.

    Raises:
        CaptioningError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise CaptioningError(f"{path} cannot be written ({error.strerror}).") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("Waiting for another process: %s", waiting_for)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
