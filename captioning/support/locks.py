"""One process at a time: the others wait, and say for what."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


@contextmanager
def file_lock(path: Path, waiting_for: str) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, which is made with its folder.

    The kernel drops the lock when its holder dies, however it dies, so a lock never goes stale.
    The empty file stays: removing it would let two processes lock two different files.

    Args:
        path: The lock file.
        waiting_for: What another process is doing, for the log line of one that has to wait.

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
