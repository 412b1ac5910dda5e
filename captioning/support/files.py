"""Atomic writes: a process killed at any moment leaves either the old file or the new one."""

import json
import os
import secrets
from pathlib import Path


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Write ``data`` to a file, replacing an existing one. Missing parent folders are created.

    The data is written and synced to a temporary file in the same folder, which is then renamed.

    Raises:
        OSError: the folder cannot be created or written. An existing file is then unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # `tempfile` would make the file unreadable for others; this file gets the default mode.
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
    """Write ``text`` as UTF-8 with unchanged line ends; see :func:`atomic_write_bytes`.

    Raises:
        OSError: the folder cannot be created or written. An existing file is then unchanged.
        UnicodeEncodeError: ``text`` holds a lone surrogate. An existing file is then unchanged.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_json(path: str | os.PathLike[str], obj: object) -> None:
    """Write ``obj`` as indented JSON. Output is ASCII, so that lone surrogates are preserved.

    Raises:
        TypeError: ``obj`` is not serialisable. An existing file is then unchanged.
    """
    atomic_write_text(path, json.dumps(obj, indent=2) + "\n")
