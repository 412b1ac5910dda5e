"""Faults of the file system: full and read-only disks, missing locks and homes, damaged caches.

Commands run in children that are forked from this process, where torch is imported already. A small
disk is mounted where that is allowed. Elsewhere, and for errors that no disk shows on demand,
Python's audit hooks raise the error before a file is opened for writing, made, renamed or locked.
"""

import errno
import fcntl
import json
import logging
import mmap
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from PIL import Image

import captioning.training.fit  # noqa: F401 (imported for the children)
from captioning.apps import prepare  # noqa: F401
from captioning.data.features.building import build_store
from captioning.kernels.cpu import build
from captioning.kernels.cpu.bindings import CKernels
from captioning.kernels.library import CompilationError
from captioning.models.encoders.torchvision import TorchvisionEncoder
from captioning.support.errors import CaptioningError
from faults.attempt import end_as_command, is_sentence
from faults.kills import replace_java
from faults.outcome import Outcome, Try
from faults.signals import EVALUATE, LEADERBOARD, TRAIN, draw_data

DEFAULT_TRIES: Final = 200
LIMIT: Final = 120
"""Seconds after which a command hangs."""

PREPARE: Final = ("-m", "prepare", "--root", "data", "--out", "prepared", "--min-count", "1")
COMMANDS: Final = {
    "training": TRAIN, "evaluation": EVALUATE, "leaderboard": LEADERBOARD, "prepare": PREPARE,
}  # fmt: skip
ERRORS: Final = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EIO, errno.EFBIG)
LOCK_ERRORS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

Fault = Callable[[], None]
"""What a child does before its command."""


class Ended(NamedTuple):
    """How a command ended: its status, or None if it had to be killed, and what it printed."""

    status: int | None
    text: str


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Try each kind in turn."""
    torch.set_num_threads(1)
    replace_java()
    logging.disable(logging.WARNING)
    rng = random.Random(seed)
    template = folder / "template"
    draw_data(template)
    for command in (EVALUATE, TRAIN):  # the training fills the cache, which most tries share
        ended = do(command, template)
        assert ended.status == 0, ended.text
    (template / "ranked").mkdir()
    next((template / "runs" / "eval").iterdir()).rename(template / "ranked" / "one")
    shutil.rmtree(template / "runs")
    store = Store(folder / "store")
    library = Library(folder / "kernels")
    kinds: list[Callable[[random.Random, Path], Try]] = [
        error_at_a_change, small_disk, store.damaged, library.damaged,
        limit_of_file_sizes, no_locks, no_home, store.damaged,
    ]  # fmt: skip
    for number in range(tries):
        place = folder / f"try-{number}"
        shutil.copytree(template, place)
        yield kinds[number % len(kinds)](rng, place)
        shutil.rmtree(place)


def error_at_a_change(rng: random.Random, place: Path) -> Try:
    """From some change of a file on, or at it alone, every change ends in one error."""
    name, command = rng.choice([*COMMANDS.items()])
    code, always = rng.choice(ERRORS), rng.random() < 0.5
    counted = mmap.mmap(-1, 8)  # shared with the child

    def count() -> None:
        before_changes(place, lambda _: add_one(counted))

    whole = place.with_name("counting")
    shutil.copytree(place, whole)
    ended = do(command, whole, count)
    shutil.rmtree(whole)
    assert ended.status == 0, ended.text
    number = rng.randint(1, max(1, int.from_bytes(counted, "little")))
    counted[:] = bytes(8)

    def fault() -> None:
        def raise_error(path: str) -> None:
            current = add_one(counted)
            if current == number or (always and current > number):
                raise OSError(code, os.strerror(code), path)

        before_changes(place, raise_error)

    case = f"{name}, {errno.errorcode[code]} at change {number}{' and after it' if always else ''}"
    return judged("error at a change of a file", case, command, place, fault)


def small_disk(rng: random.Random, place: Path) -> Try:
    """The folder is on a disk that becomes full."""
    name, command = rng.choice([*COMMANDS.items()])
    kilobytes = round(2 ** rng.uniform(2, 12))
    case = f"{name}, {kilobytes} kB free"
    with mounted(place, kilobytes) as is_small:
        if not is_small:
            return limit_of_file_sizes(rng, place)
        return judged("full disk", case, command, place, lambda: None, works_again=False)


def limit_of_file_sizes(rng: random.Random, place: Path) -> Try:
    """No file may be larger than some size."""
    name, command = rng.choice([*COMMANDS.items()])
    size = round(2 ** rng.uniform(0, 21))

    def fault() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return judged("limit of file sizes", f"{name}, {size} bytes", command, place, fault)


def no_locks(rng: random.Random, place: Path) -> Try:
    """The file system has no locks."""
    name, command = rng.choice([*COMMANDS.items()])
    code = rng.choice(LOCK_ERRORS)
    if rng.random() < 0.5:
        shutil.rmtree(place / "cache")  # the store must be built, which needs a lock

    def fault() -> None:
        def flock(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        fcntl.flock = flock

    case = f"{name}, {errno.errorcode[code]}"
    return judged("file system without locks", case, command, place, fault)


def no_home(rng: random.Random, place: Path) -> Try:
    """The home, and with it the cache, cannot be written or does not exist."""
    name, command = rng.choice([*COMMANDS.items()])
    command = tuple(each for each in command if not each.startswith("data.cache="))
    home = rng.choice(["/proc/nonexistent", str(place / "captions.json"), ""])

    def fault() -> None:
        os.environ.pop("CAPTIONING_CACHE", None)
        os.environ["HOME"] = home

    return judged("home that cannot be written", f"{name}, HOME={home}", command, place, fault)


class Store:
    """A feature store of a few images, which is damaged again and again."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        draw = np.random.default_rng(0)
        self.folder = folder
        self.encoder = TorchvisionEncoder(
            "squeezenet1_1", "features.4", weights="random", image_size=32
        )
        self.images = []
        for number in range(6):
            path = folder / f"{number}.png"
            noise = draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            self.images.append((path.name, path))
        self.whole = self.grids()

    def grids(self) -> torch.Tensor:
        """Build or open the store, and read all grids."""
        store = build_store(
            self.folder / "stores", self.encoder, self.images, device="cpu", precision="fp32",
            progress=False,
        )  # fmt: skip
        return store.gather(store.ids)

    def damaged(self, rng: random.Random, place: Path) -> Try:
        """Damage a file of the store, and build it again."""
        (folder,) = (self.folder / "stores").glob("*-*")
        files = {path: path.read_bytes() for path in folder.iterdir()}
        path = rng.choice([folder / name for name in ("grids.bin", "grids.bin", "index.txt")])
        how, content = damage(rng, files[path])
        path.write_bytes(content)
        outcome: Outcome = "right"
        said = ""
        try:
            if not torch.equal(self.grids(), self.whole):
                outcome = "silent"
        except CaptioningError as error:
            said = str(error)
            outcome = "refused" if is_sentence(said) else "traceback"
        except Exception:
            outcome, said = "traceback", traceback.format_exc()
        for path_of, content in files.items():
            path_of.write_bytes(content)
        return Try(f"damaged feature store: {path.name}", how, outcome, said)


class Library:
    """The compiled kernels, which are damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.path = build.compiled_library(folder)
        except CompilationError:  # there is no compiler: what is damaged is then not loaded
            self.content = b"library" * 1000
        else:
            self.content = self.path.read_bytes()
        # Compiling takes seconds. The compiler would give the same again.
        build._compiled = lambda *_: self.content
        self.path = build.compiled_library(folder)

    def damaged(self, rng: random.Random, place: Path) -> Try:
        """Damage the library in the cache, and load it in a process of its own."""
        how, content = damage(rng, self.content)
        self.path.write_bytes(content)
        loads = self.content.startswith(b"\x7fELF")

        def load() -> None:
            found = build.compiled_library(self.folder)
            if loads:
                CKernels(found)
            os._exit(0 if found.read_bytes() == self.content else 3)

        ended = do((), place, load)
        outcomes: dict[int | None, Outcome] = {0: "right", 3: "silent", None: "hang"}
        crash: Outcome = "traceback" if "Traceback" in ended.text else "crash"
        outcome = outcomes.get(ended.status, crash)
        self.path.write_bytes(self.content)
        return Try("damaged library of kernels", how, outcome, ended.text)


def damage(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """A damage, in words and as what becomes of the content."""
    place = rng.randrange(len(content))
    kind = rng.choice(["bit", "cut", "zeros", "more", "other"])
    if kind == "bit":
        bit = 1 << rng.randrange(8)
        changed = bytes([content[place] ^ bit])
        return f"bit flipped in byte {place}", content[:place] + changed + content[place + 1 :]
    if kind == "cut":
        return f"cut at byte {place}", content[:place]
    if kind == "zeros":
        end = min(len(content), place + rng.randint(1, 4096))
        return f"zeros from byte {place} to {end}", (
            content[:place] + bytes(end - place) + content[end:]
        )
    extra = rng.randbytes(rng.randint(1, 100))
    if kind == "more":
        return f"{len(extra)} bytes appended", content + extra
    return f"{len(extra)} other bytes in its place", extra


def judged(
    kind: str,
    case: str,
    command: Sequence[str],
    place: Path,
    fault: Fault,
    *,
    works_again: bool = True,
) -> Try:
    """Run a command with a fault, and look at its end and at all files.

    Args:
        kind: of the fault.
        case: this one.
        command: the command.
        place: where it runs.
        fault: what the child does before it.
        works_again: whether the same command must succeed without the fault.
    """
    before = {path: path.read_bytes() for path in (place / "ranked").rglob("*") if path.is_file()}
    ended = do(command, place, fault)
    if ended.status is None:
        return Try(kind, case, "hang", ended.text[-600:])
    if "Traceback" in ended.text or ended.status not in (0, 1):
        crashed = ended.status < 0
        return Try(kind, case, "crash" if crashed else "traceback", ended.text[-900:])
    if ended.status == 1:
        said = [line for line in ended.text.splitlines() if "cannot be" in line or "TMPDIR" in line]
        if not said or not is_sentence(said[-1]):
            return Try(kind, case, "traceback", f"no sentence: {ended.text[-600:]}")
    for path in place.rglob("*"):
        if problem := damaged_file(path, before.get(path)):
            return Try(kind, case, "lost", f"{problem}; {ended.text[-300:]}")
    if ended.status == 0 and command == TRAIN and not [*place.glob("runs/*/*/report.html")]:
        return Try(kind, case, "silent", f"no report: {ended.text[-300:]}")
    if ended.status == 0:
        return Try(kind, case, "right")
    if works_again and (again := do(command, place)).status != 0:
        return Try(kind, case, "lost", f"not without the fault either: {again.text[-600:]}")
    return Try(kind, case, "refused", ended.text[-300:])


def damaged_file(path: Path, before: bytes | None) -> str | None:
    """What is wrong with a file that the commands write; None if nothing is."""
    try:
        if path.suffix == ".json" and not path.name.startswith("."):
            json.loads(path.read_bytes())
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
    except Exception as error:
        return f"{path} is damaged ({type(error).__name__}: {error})"
    if before is not None and not path.name.startswith("leaderboard."):
        return None if path.read_bytes() == before else f"{path} has changed"
    return None


def do(command: Sequence[str], place: Path, fault: Fault = lambda: None) -> Ended:
    """Run ``python COMMAND`` in a folder, in a forked child, and read what it prints.

    Args:
        command: a script, or ``-m`` and the name of a command of the package; and its arguments.
        place: where it runs.
        fault: what the child does before it.
    """
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:

        def prepare() -> None:
            os.close(reader)
            os.chdir(place)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.environ["CAPTIONING_CACHE"] = str(place / "cache")
            fault()

        end_as_command(command, prepare)
    os.close(writer)
    deadline, text, open_ = time.monotonic() + LIMIT, b"", True
    while open_ and time.monotonic() < deadline:
        if select.select([reader], [], [], 0.1)[0]:
            piece = os.read(reader, 65536)
            text, open_ = text + piece, bool(piece)
    os.close(reader)
    if open_:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return Ended(None if open_ else status, text.decode(errors="replace"))


def before_changes(place: Path, act: Callable[[str], object]) -> None:
    """Call ``act`` in this process, with the path, before each change of a file in a folder."""
    inside = str(place.resolve())

    def check(path: Any) -> None:
        if isinstance(path, str | bytes):
            name = os.path.abspath(os.fsdecode(path))  # noqa: PTH100 (Path has no such function)
            if name.startswith(inside):
                act(name)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            check(arguments[0])
        if event in ("os.mkdir", "os.rename", "os.truncate"):
            check(arguments[0])

    fsync = os.fsync

    def synced(file: Any) -> None:
        act(f"the file {file}")
        fsync(file)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(hook)


def add_one(counter: mmap.mmap) -> int:
    """Count in memory that processes share; returns the new number."""
    number = int.from_bytes(counter, "little") + 1
    counter[:] = number.to_bytes(8, "little")
    return number


@contextmanager
def mounted(place: Path, kilobytes: int) -> Iterator[bool]:
    """Mount a disk with so much free space over a folder, with the folder's content on it.

    Yields:
        Whether this machine allows it.
    """
    content = place.with_name(f"{place.name}-content")
    place.rename(content)
    place.mkdir()
    used = sum(-(-path.stat().st_size // 4096) * 4 + 4 for path in content.rglob("*"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={used + kilobytes}k", "captioning", str(place)]
    try:
        is_small = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:  # there is no such command
        is_small = False
    try:
        shutil.copytree(content, place, dirs_exist_ok=True)
        yield is_small
    finally:
        if is_small:
            subprocess.run(["umount", "-l", str(place)], check=True)
        shutil.rmtree(content)
