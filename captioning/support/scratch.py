"""Temporary files, also those that a killed process has left."""

import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FILE = re.compile(r"\..+\.(?P<pid>\d+)(\.[0-9a-f]{8})?\.tmp")  # as named in support/files.py


@contextmanager
def scratch_folder(inside: Path | None = None) -> Iterator[Path]:
    """A temporary folder, which is removed after the block.

    Folders of processes that were killed are removed when the next one is created.

    Args:
        inside: the folder that holds it; None stands for the system's, such as ``$TMPDIR``.
    """
    prefix = f"captioning-{platform.node()}-"
    for path in (inside or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not is_running(int(pid)):
            shutil.rmtree(path, ignore_errors=True)  # it may belong to another user
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=inside) as folder:
        yield Path(folder)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files in a folder that killed processes were writing."""
    with suppress(OSError):
        for path in folder.iterdir():
            named = _FILE.fullmatch(path.name)
            if named and not is_running(int(named["pid"])):
                path.unlink()


def is_running(pid: int) -> bool:
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
