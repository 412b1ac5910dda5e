"""The attention in C (``attention.c``), compiled by the machine's own compiler on first use.

That takes half a second, once a machine: the library stays in the cache. Without a compiler
:mod:`captioning.models.attention` computes the same with torch alone, and slower.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from captioning.errors import CaptioningError
from captioning.paths import cache_dir

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("attention.c")
wanted = True
"""Whether :mod:`captioning.models.attention` is to use the kernels."""

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC")


class Kernels:
    """The functions of the compiled library, on tensors in the CPU's memory.

    Arguments are named and described in ``attention.c``; ``exp_keys`` and ``grid`` are both in
    single precision or both in bfloat16.
    """

    def __init__(self, library: Path) -> None:
        # OpenMP's symbols are not in the library: it finds torch's, and so shares its threads.
        loaded = ctypes.CDLL(str(library))
        self._attend = {
            torch.float32: loaded.attend_fp32,
            torch.bfloat16: loaded.attend_bf16,
        }
        self._gradients = {
            torch.float32: loaded.gradients_fp32,
            torch.bfloat16: loaded.gradients_bf16,
        }
        for functions, tensors in ((self._attend, 8), (self._gradients, 11)):
            for function in functions.values():
                function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_int64] * 6]

    def attend(
        self,
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        weight: Float32[Tensor, " units"],
        place: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[Float32[Tensor, "rows locations"], Float32[Tensor, "rows channels"]]:
        """The attention of each row over its image's locations, and the mix that it gives."""
        alpha = exp_query.new_empty(len(exp_query), exp_keys.shape[1])
        context = exp_query.new_empty(len(exp_query), grid.shape[2])
        tensors = alpha, context, exp_keys, grid, exp_query, weight, place
        _call(self._attend[grid.dtype], tensors, captions, exp_keys, grid)
        return alpha, context

    def gradients(
        self,
        by_keys: Float32[Tensor, "images locations units"],
        by_alpha: Float32[Tensor, "rows locations"],
        by_context: Float32[Tensor, "rows channels"],
        alpha: Float32[Tensor, "rows locations"],
        exp_keys: Float[Tensor, "images locations units"],
        grid: Float[Tensor, "images locations channels"],
        exp_query: Float32[Tensor, "rows units"],
        place: Int64[Tensor, " rows"],
        captions: int,
    ) -> tuple[
        Float32[Tensor, "rows locations"],
        Float32[Tensor, "rows units"],
        Float32[Tensor, " units"],
    ]:
        """By the scores; by the query, without the factor 4 v; and the sum of by_scores . s.

        What is by the keys, without that factor, is added to ``by_keys``.
        """
        by_scores = by_alpha.clone(memory_format=torch.contiguous_format)
        by_query = torch.empty_like(exp_query)
        by_weight = exp_query.new_empty(len(exp_keys), exp_keys.shape[2])
        results = by_scores, by_keys, by_query, by_weight
        tensors = *results, by_context, alpha, exp_keys, grid, exp_query, place
        _call(self._gradients[grid.dtype], tensors, captions, exp_keys, grid)
        return by_scores, by_query, by_weight.sum(0)


def _call(
    function: "ctypes._NamedFuncPointer",
    tensors: tuple[Tensor, ...],
    captions: int,
    exp_keys: Tensor,
    grid: Tensor,
) -> None:
    rows, images = len(tensors[-1]), len(exp_keys)
    space = torch.empty(images + 1 + rows, dtype=torch.int64)
    tensors = tuple(tensor.contiguous() for tensor in (*tensors, space))
    sizes = captions, rows, *exp_keys.shape, grid.shape[2]
    function(*(tensor.data_ptr() for tensor in tensors), *sizes)


@functools.cache
def kernels() -> Kernels | None:
    """The compiled kernels; None, with a line in the log, where they cannot be compiled."""
    try:
        return Kernels(compiled(cache_dir() / "kernels"))
    except CaptioningError as error:
        log.info("%s", error)
        return None


def compiled(folder: Path) -> Path:
    """The library in a folder, which is compiled unless this machine has it there.

    The compiler is ``$CC``, or ``cc``.

    Raises:
        CaptioningError: there is no compiler, or it fails.
    """
    slower = "The attention is not compiled, and so slower:"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    # A cache may be shared by machines of different processors.
    made_of = SOURCE.read_text(), FLAGS, compiler, _processor(), torch.__version__
    library = folder / f"attention-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            made, linked = Path(part) / "attention.o", Path(part) / library.name
            # Linked without -fopenmp, which would bring a second library of threads.
            for arguments in (
                [*FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(made)],
                ["-shared", str(made), "-o", str(linked), "-lm"],
            ):
                subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
            linked.rename(library)
    except OSError as error:
        raise CaptioningError(f"{slower} {error.filename}: {error.strerror}.") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise CaptioningError(f"{slower} {compiler[0]} failed ({reason}).") from error
    return library


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
