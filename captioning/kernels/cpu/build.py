"""Compiles the C sources into a shared library, which is cached for each machine."""

import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch

from captioning.kernels.library import CompilationError

HERE = Path(__file__).parent
SOURCES = tuple(HERE / name for name in ("attention.c", "cell.c", "grid.c", "vocabulary.c"))
HEADER = HERE / "vectors.h"
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC")


def compiled_library(folder: Path) -> Path:
    """The path of the library in a folder, after compiling it if it is not there yet.

    The compiler is ``$CC``, or ``cc``. The name of the file has a digest of everything on which the
    library depends, since machines with different processors may share a cache.

    Raises:
        CompilationError: there is no compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    texts = [source.read_text() for source in (HEADER, *SOURCES)]
    depends_on = texts, FLAGS, compiler, _processor(), torch.__version__
    digest = hashlib.sha256(repr(depends_on).encode()).hexdigest()[:16]
    library = folder / f"kernels-{digest}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            objects = [str(Path(temporary, f"{source.stem}.o")) for source in SOURCES]
            linked = Path(temporary) / library.name
            compile_commands = [
                [*FLAGS, "-fopenmp", "-c", str(source), "-o", target]
                for source, target in zip(SOURCES, objects, strict=True)
            ]
            # Linked without -fopenmp, which would load a second OpenMP library beside torch's.
            link_command = ["-shared", *objects, "-o", str(linked), "-lm"]
            for arguments in (*compile_commands, link_command):
                subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
            linked.rename(library)
    except OSError as error:
        raise CompilationError(f"{error.filename}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise CompilationError(f"{compiler[0]} failed ({reason})") from error
    return library


def _processor() -> str:
    """A description of the processor, on which -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
