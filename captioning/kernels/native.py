"""What is written in C for a CPU, compiled by the machine's own compiler on first use.

That takes two seconds, once a machine: the library stays in the cache. For a GPU there is the same
for attention and cell in Triton, in :mod:`captioning.kernels.triton_backend.launch`. Without
either,
:mod:`captioning.models.attention.additive`, :mod:`captioning.kernels.cell` and
:mod:`captioning.kernels.words` compute the same with torch alone, and slower.
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
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from captioning.support.errors import CaptioningError
from captioning.support.paths import cache_dir

log = logging.getLogger(__name__)

Tensors = tuple[Tensor, ...]

SOURCES = tuple(
    Path(__file__).parent / "cpu" / name for name in ("attention.c", "cell.c", "grid.c", "words.c")
)
HEADER = Path(__file__).parent / "cpu" / "vectors.h"
MOST_ADDENDS = 3
wanted = True
"""Whether the kernels are to be used."""

SIGNATURES = {
    "attend": (8, 6), "gradients": (11, 6), "sum_of_words": (3, 3),
    "cell": (7, 5), "cell_gradients": (7, 2),
    "log_sum_exp": (2, 2), "highest": (3, 3), "forbid": (2, 3),
    "standardize": (4, 3), "exp_twice": (3, 4),
    "cross_entropy": (5, 2), "cross_entropy_gradients": (6, 2),
}  # fmt: skip
"""How many tensors, and then how many whole numbers, each function takes."""

SLOWER = "Attention and LSTM are not compiled, and so slower:"

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC")


class Kernels(ABC):
    """Attention and the LSTM's cell, each with its gradients; all in one pass over its arguments.

    ``exp_keys`` and ``grid``, and all addends, have one type: single precision or bfloat16. Row r
    is of image ``place[r] // captions``. Subclasses fill in results, which is all that differs;
    the tensors that they are given are contiguous but for addends, whose rows may lie apart.
    """

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
        given = in_one_piece(exp_keys, grid, exp_query, weight, place)
        self.fill_attention(alpha, context, *given, captions=captions)
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
    ) -> tuple[Float32[Tensor, "rows units"], Float32[Tensor, " units"]]:
        """By the query, without the factor 4 v; and the sum of s times what is by the scores.

        What is by the keys, without that factor, is added to ``by_keys``.
        """
        by_query = torch.empty_like(exp_query, memory_format=torch.contiguous_format)
        by_weight = exp_query.new_empty(len(exp_keys), exp_keys.shape[2])
        given = in_one_piece(by_alpha, by_context, alpha, exp_keys, grid, exp_query, place)
        self.fill_gradients(by_keys, by_query, by_weight, *given, captions=captions)
        return by_query, by_weight.sum(0)

    def cell(
        self,
        before: Float32[Tensor, "rows units"],
        *addends: Float[Tensor, "rows gates"],
        for_gradients: bool = True,
    ) -> tuple[
        Float32[Tensor, "rows units"],
        Float32[Tensor, "rows units"],
        Float32[Tensor, "rows gates"] | None,
    ]:
        """Hidden and cell after a step, and for gradients the gates after their functions."""
        before = before.contiguous()
        hidden, cell = torch.empty_like(before), torch.empty_like(before)
        active = before.new_empty(len(before), 4 * before.shape[1]) if for_gradients else None
        # Each row of an addend lies in one piece, as in a slice of a larger product's columns.
        rows = tuple(each if each.stride(1) == 1 else each.contiguous() for each in addends)
        self.fill_cell(hidden, cell, active, before, rows)
        return hidden, cell, active

    def cell_gradients(
        self,
        by_hidden: Float32[Tensor, "rows units"],
        by_cell: Float32[Tensor, "rows units"],
        active: Float32[Tensor, "rows gates"],
        before: Float32[Tensor, "rows units"],
        cell: Float32[Tensor, "rows units"],
        dtype: torch.dtype,
    ) -> tuple[Float[Tensor, "rows gates"], Float32[Tensor, "rows units"]]:
        """By each addend, in its type, and by the cell before."""
        by_gates, by_before = torch.empty_like(active, dtype=dtype), torch.empty_like(cell)
        given = in_one_piece(by_hidden, by_cell, active, before, cell)
        self.fill_cell_gradients(by_gates, by_before, *given)
        return by_gates, by_before

    @abstractmethod
    def fill_attention(self, alpha: Tensor, context: Tensor, *given: Tensor, captions: int) -> None:
        """For :meth:`attend`."""

    @abstractmethod
    def fill_gradients(
        self, by_keys: Tensor, by_query: Tensor, by_weight: Tensor, *given: Tensor, captions: int
    ) -> None:
        """For :meth:`gradients`; ``by_weight`` is of each image."""

    @abstractmethod
    def fill_cell(
        self, hidden: Tensor, cell: Tensor, active: Tensor | None, before: Tensor, addends: Tensors
    ) -> None:
        """For :meth:`cell`."""

    @abstractmethod
    def fill_cell_gradients(self, by_gates: Tensor, by_before: Tensor, *given: Tensor) -> None:
        """For :meth:`cell_gradients`."""


def in_one_piece(*tensors: Tensor) -> Tensors:
    """Contiguous ones with the same numbers."""
    return tuple(tensor.contiguous() for tensor in tensors)


class CKernels(Kernels):
    """The functions of the compiled library, on tensors in the CPU's memory.

    Arguments are described in ``attention.c``, ``cell.c`` and ``words.c``.
    """

    def __init__(self, library: Path) -> None:
        # OpenMP's symbols are not in the library: it finds torch's, and so shares its threads.
        loaded = ctypes.CDLL(str(library))
        self._functions = {
            (name, dtype): getattr(loaded, f"{name}_{suffix}")
            for name in SIGNATURES
            for dtype, suffix in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))
        }  # fmt: skip
        for (name, _), function in self._functions.items():
            tensors, numbers = SIGNATURES[name]
            function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_int64] * numbers]

    def fill_attention(self, alpha: Tensor, context: Tensor, *given: Tensor, captions: int) -> None:
        exp_keys, grid, *_ = given
        self._attention("attend", (alpha, context, *given), captions, exp_keys, grid)

    def fill_gradients(
        self, by_keys: Tensor, by_query: Tensor, by_weight: Tensor, *given: Tensor, captions: int
    ) -> None:
        by_alpha, *others = given
        _, _, exp_keys, grid, *_ = others
        by_scores = by_alpha.clone()
        tensors = by_scores, by_keys, by_query, by_weight, *others
        self._attention("gradients", tensors, captions, exp_keys, grid)

    def _attention(
        self, name: str, tensors: Tensors, captions: int, exp_keys: Tensor, grid: Tensor
    ) -> None:
        rows, images = len(tensors[-1]), len(exp_keys)
        space = torch.empty(images + 1 + rows, dtype=torch.int64)
        sizes = captions, rows, *exp_keys.shape, grid.shape[2]
        self.call(name, grid.dtype, (*tensors, space), *sizes)

    def fill_cell(
        self, hidden: Tensor, cell: Tensor, active: Tensor | None, before: Tensor, addends: Tensors
    ) -> None:
        missing = MOST_ADDENDS - len(addends)
        self._functions["cell", addends[0].dtype](
            *(hidden.data_ptr(), cell.data_ptr(), None if active is None else active.data_ptr()),
            *(tensor.data_ptr() for tensor in (before, *addends)),
            *[None] * missing,
            *(each.stride(0) for each in addends),
            *[0] * missing,
            *before.shape,
        )

    def fill_cell_gradients(self, by_gates: Tensor, by_before: Tensor, *given: Tensor) -> None:
        self.call("cell_gradients", by_gates.dtype, (by_gates, by_before, *given), *by_before.shape)

    def call(self, name: str, dtype: torch.dtype, tensors: Tensors, *numbers: int) -> None:
        """The function of that name and type of element, on contiguous tensors."""
        function = self._functions[name, dtype]
        function(*(tensor.data_ptr() for tensor in tensors), *numbers)


def kernels_for(*tensors: Tensor) -> Kernels | None:
    """The compiled kernels, where they are wanted and can take these tensors, all of one type."""
    first = tensors[0]
    taken = first.dtype in (torch.float32, torch.bfloat16)
    if not wanted or not taken or any(tensor.dtype != first.dtype for tensor in tensors):
        return None
    return kernels(first.device.type)


def c_kernels_for(*tensors: Tensor) -> CKernels | None:
    """Those in C, likewise."""
    found = kernels_for(*tensors)
    return found if isinstance(found, CKernels) else None


@functools.cache
def kernels(device: str) -> Kernels | None:
    """The kernels for a kind of device; None, with a line in the log, where there are none."""
    try:
        if device == "cpu":
            return CKernels(compiled(cache_dir() / "kernels"))
        if device == "cuda":
            return _triton()
    except CaptioningError as error:
        log.info("%s", error)
    return None


def _triton() -> Kernels:
    """The kernels for a GPU, after a first call of one, which compiles it.

    Raises:
        CaptioningError: there is no Triton, or it does not work.
    """
    try:
        from captioning.kernels.triton_backend import launch as gpu

        found = gpu.TritonKernels()
        found.cell(torch.zeros(1, 1, device="cuda"), torch.zeros(1, 4, device="cuda"))
    except Exception as error:  # of many kinds: no compiler for its launcher, another driver, ...
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CaptioningError(f"{SLOWER} Triton failed ({reason}).") from error
    return found


def compiled(folder: Path) -> Path:
    """The library in a folder, which is compiled unless this machine has it there.

    The compiler is ``$CC``, or ``cc``.

    Raises:
        CaptioningError: there is no compiler, or it fails.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    # A cache may be shared by machines of different processors.
    texts = [source.read_text() for source in (HEADER, *SOURCES)]
    made_of = texts, FLAGS, compiler, _processor(), torch.__version__
    library = folder / f"kernels-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if library.is_file():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:
            made = [str(Path(part, f"{source.stem}.o")) for source in SOURCES]
            linked = Path(part) / library.name
            # Linked without -fopenmp, which would bring a second library of threads.
            for arguments in (
                *(
                    [*FLAGS, "-fopenmp", "-c", str(source), "-o", to]
                    for source, to in zip(SOURCES, made, strict=True)
                ),
                ["-shared", *made, "-o", str(linked), "-lm"],
            ):
                subprocess.run([*compiler, *arguments], check=True, capture_output=True, text=True)
            linked.rename(library)
    except OSError as error:
        raise CaptioningError(f"{SLOWER} {error.filename}: {error.strerror}.") from error
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or [f"exit status {error.returncode}"])[-1]
        raise CaptioningError(f"{SLOWER} {compiler[0]} failed ({reason}).") from error
    return library


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    kinds = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(sorted({line for line in lines if line.startswith(kinds)}))
