"""Compiles the C sources into a shared library, which is cached for each machine.

A library that is cut short ends the process that loads it with SIGBUS. Its name therefore has the
SHA-256 of its content, and a file is loaded only if it has the content that its name says.
"""

import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch

from captioning.kernels.library import CompilationError
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes, reason_of

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
SOURCES = tuple(
    HERE / name for name in ("attention.c", "cell.c", "grid.c", "product.c", "vocabulary.c")
)
HEADER = HERE / "vectors.h"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC")


def compiled_library(folder: Path) -> Path:
    """The path of the library in a folder, after compiling it if it is not there yet.

    The compiler is ``$CC``, or ``cc``. The name of the file also has a digest of everything on
    which the library depends, since machines with different processors may share a cache. A file
    whose content is not the one in its name is removed, and the library is compiled again.

    Raises:
        CompilationError: there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = _compiler()
    texts = [source.read_text() for source in (HEADER, *SOURCES)]
    depends_on = texts, FLAGS, compiler, _processor(), torch.__version__
    name = f"kernels-{_digest(repr(depends_on).encode())}"
    try:
        for library in sorted(folder.glob(f"{name}-*.so")):
            if library.name == f"{name}-{_digest(library.read_bytes())}.so":
                return library
            log.warning("%s is damaged; it is compiled again", library)
            library.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="captioning-") as temporary:
            content = _compiled(compiler, Path(temporary))
        library = folder / f"{name}-{_digest(content)}.so"
        atomic_write_bytes(library, content)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CompilationError(f"{where}{reason_of(error)}") from error
    except CaptioningError as error:
        raise CompilationError(str(error)) from error
    return library


def _compiler() -> list[str]:
    command = os.environ.get("CC") or "cc"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise CompilationError(f"CC={command} is no command ({error})") from error
    if not words:
        raise CompilationError(f"CC={command!r} is no command")
    return words


def _compiled(compiler: list[str], folder: Path) -> bytes:
    """Compile the library; the files that the compiler writes are in a temporary folder."""
    objects = [str(folder / f"{source.stem}.o") for source in SOURCES]
    linked = folder / "kernels.so"
    compile_commands = [
        [*FLAGS, "-fopenmp", "-c", str(source), "-o", target]
        for source, target in zip(SOURCES, objects, strict=True)
    ]
    # Linked without -fopenmp, which would load a second OpenMP library beside torch's.
    link_command = ["-shared", *objects, "-o", str(linked), "-lm"]
    for arguments in (*compile_commands, link_command):
        command = [*compiler, *arguments]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise CompilationError(f"{compiler[0]} failed ({reason})")
    if not linked.is_file():
        raise CompilationError(f"{compiler[0]} wrote no library")
    return linked.read_bytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    """A description of the processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
