"""Writing files so that a run killed at any moment leaves the old file or the new one."""

import json
import os
import secrets
from pathlib import Path


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data``; replaces an existing file.

    It goes to a temporary file beside the target, reaches the disk, and is renamed. Missing parent
    folders are made.

    Raises:
        OSError: the folder cannot be made or written; an existing target is then untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not `tempfile`, whose files nobody else may read: this one gets the mode any new file gets.
    temporary = target.with_name(f".{target.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
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
    """Write ``text`` as UTF-8 with its line ends as they are; see :func:`atomic_write_bytes`.

    Raises:
        OSError: the folder cannot be made or written; an existing target is then untouched.
        UnicodeEncodeError: ``text`` holds a lone surrogate; likewise.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as indented JSON, in ASCII so that any string survives.

    Raises:
        TypeError: ``obj`` holds something that JSON has no form for; the target is untouched.
    """
    atomic_write_text(path, json.dumps(obj, indent=2) + "\n")
