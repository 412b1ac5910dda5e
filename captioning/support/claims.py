"""A run's claim on its folder, so that no two runs write into the same one."""

import fcntl
import os
import platform
import shutil
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TextIO

from captioning.support.errors import CaptioningError
from captioning.support.files import writing

_KEY = "hydra.run.dir"
_claimed: list[TextIO] = []  # the locked files, which are open while this process holds its claims
_made: dict[Path, list[Path]] = {}  # claimed folders, and what was made for each, from the inside

# What a run leaves that has not begun to train or to score; also files that end in .log.
_BEFORE_WORK = {
    ".lock", ".hydra", "logs", "vocabulary.json", "descriptions.txt", "multirun.yaml",
}  # fmt: skip


def claim_new(folder: Path) -> Path:
    """Create and claim the folder of a new run.

    Returns:
        ``folder``, or, if it exists, the first of ``folder-2``, ``folder-3``, ... that does not.

    Raises:
        CaptioningError: it cannot be created.
    """
    with writing(folder, _KEY):
        parents = _make(folder.parent)
    for number in count(1):
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        with writing(candidate, _KEY):
            try:
                candidate.mkdir(parents=True)  # only one process can
            except FileExistsError:
                continue
        claim(candidate)
        _made[candidate.absolute()] = [candidate.absolute(), *parents]
        return candidate
    raise AssertionError("unreachable")


def claim(folder: Path) -> None:
    """Claim a folder, which is created if it does not exist, until this process ends.

    The claim is a lock on the file ``.lock``, which the kernel releases even if the process is
    killed. On a file system without locks, only :func:`claim_new` protects a run from others.

    Raises:
        CaptioningError: another process has claimed the folder, or it cannot be written.
    """
    with writing(folder, _KEY):
        if made := _make(folder):
            _made[folder.absolute()] = made
        file = (folder / ".lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise CaptioningError(
            f"{folder} belongs to another run, which has not ended"
            f"{f' ({holder})' if holder else ''}: wait until it ends, or choose another folder by "
            "hydra.run.dir=FOLDER."
        ) from None
    except OSError:  # there are no locks here
        file.close()
        return
    with writing(folder, _KEY):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
    _claimed.append(file)


def _make(folder: Path) -> list[Path]:
    """Make a folder and its parents; returns those that were missing, from the inside."""
    whole = folder.absolute()
    missing = [each for each in (whole, *whole.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def make_for_sweep(folder: Path) -> None:
    """Make the folder of a sweep, which several processes may use; a mistyped command removes it.

    Raises:
        CaptioningError: it cannot be created.
    """
    with writing(folder, "hydra.sweep.dir"):
        if made := _make(folder):
            _made[folder.absolute()] = made


def discard_all() -> None:
    """Remove the folders of this process in which nothing was done; see :func:`discard`."""
    for folder in list(_made):
        discard(folder)


def discard(folder: Path) -> None:
    """Remove a claimed folder in which nothing was done, as after a mistyped command.

    It is removed only if this process has made it, and if it holds no more than the command's own
    configuration and log. Parents that were made for it go with it, unless they hold something.
    """
    made = _made.pop(folder.absolute(), [])
    if not made:
        return
    with suppress(OSError):
        names = {path.name for path in folder.iterdir() if path.suffix != ".log"}
        if names - _BEFORE_WORK or (folder / "logs" / "metrics.csv").exists():
            return
        shutil.rmtree(folder)
        for parent in made[1:]:
            parent.rmdir()


def release_claims() -> None:
    """Give up all claims of this process."""
    while _claimed:
        file = _claimed.pop()
        file.truncate(0)
        file.close()
    _made.clear()


def check_unused(folder: Path) -> None:
    """Check that a folder holds no other run, whose files a new run would replace one by one.

    Raises:
        CaptioningError: it has results, or checkpoints from which that run can go on.
    """
    last = folder / "checkpoints" / "last.ckpt"
    if (folder / "results.json").exists():
        raise CaptioningError(
            f"{folder} holds the results of another run, which are not overwritten: delete it, or "
            "choose another folder by hydra.run.dir=FOLDER."
        )
    if last.exists():
        raise CaptioningError(
            f"{folder} holds a run that was not finished: continue it by resume={last}, delete "
            "it, or choose another folder by hydra.run.dir=FOLDER."
        )
