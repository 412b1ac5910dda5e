"""The functions of the compiled C library, called on tensors in the CPU's memory."""

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from captioning.kernels.cpu.build import compiled_library
from captioning.kernels.library import MAX_ADDENDS, CompilationError, Kernels
from captioning.support.errors import CaptioningError
from captioning.support.paths import cache_dir

SIGNATURES = {
    "attend": (8, 6), "attend_backward": (12, 6),
    "cell": (7, 5), "cell_backward": (7, 2),
    "log_sum_exp": (2, 2), "topk": (3, 3), "mask_tokens": (2, 3),
    "standardize": (4, 3), "exp2x": (3, 4),
    "cross_entropy": (5, 2), "cross_entropy_backward": (6, 2),
    "pack": (2, 4), "product": (4, 5),
}  # fmt: skip
"""The number of tensors, and of the integers that follow them, that each function takes."""

BF16_ONLY = {"pack", "product"}
"""The functions that exist for bfloat16 alone."""


def load_c_kernels() -> "CKernels":
    """Compile the kernels for this machine if necessary, and load them.

    Raises:
        CompilationError: the kernels cannot be compiled or loaded.
    """
    try:
        folder = cache_dir() / "kernels"
    except CaptioningError as error:
        raise CompilationError(str(error)) from error
    library = compiled_library(folder)
    try:
        return CKernels(library)
    except (OSError, AttributeError) as error:  # for instance, a folder mounted noexec
        raise CompilationError(f"{library} cannot be loaded ({error})") from error


class CKernels(Kernels):
    """The compiled library; the C sources document the arguments of each function."""

    language = "c"

    def __init__(self, library: Path) -> None:
        # OpenMP is not linked into the library: it uses torch's, and therefore torch's threads.
        loaded = ctypes.CDLL(str(library))
        self._functions = {
            (name, dtype): getattr(loaded, f"{name}_{suffix}")
            for name in SIGNATURES
            for dtype, suffix in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))
            if suffix == "bf16" or name not in BF16_ONLY
        }
        for (name, _), function in self._functions.items():
            tensors, integers = SIGNATURES[name]
            function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_int64] * integers]

    def fill_attention(
        self, alpha: Tensor, context: Tensor, *inputs: Tensor, captions: int
    ) -> None:
        exp_keys, grid, *_ = inputs
        self._attention("attend", (alpha, context, *inputs), captions, exp_keys, grid)

    def fill_attention_backward(
        self,
        grad_keys: Tensor,
        grad_query: Tensor,
        grad_weight: Tensor,
        *inputs: Tensor,
        captions: int,
    ) -> None:
        grad_alpha, *others = inputs
        _, _, exp_keys, grid, *_ = others
        grad_scores = grad_alpha.clone()  # computed in place
        tensors = grad_scores, grad_keys, grad_query, grad_weight, *others
        self._attention("attend_backward", tensors, captions, exp_keys, grid)

    def _attention(
        self,
        name: str,
        tensors: tuple[Tensor, ...],
        captions: int,
        exp_keys: Tensor,
        grid: Tensor,
    ) -> None:
        rows, images = len(tensors[-1]), len(exp_keys)
        space = torch.empty(images + 1 + rows, dtype=torch.int64, device=grid.device)
        sizes = captions, rows, *exp_keys.shape, grid.shape[2]
        self.call(name, grid.dtype, (*tensors, space), *sizes)

    def fill_cell(
        self,
        hidden: Tensor,
        cell: Tensor,
        active: Tensor | None,
        previous: Tensor,
        addends: tuple[Tensor, ...],
    ) -> None:
        missing = MAX_ADDENDS - len(addends)
        self._functions["cell", addends[0].dtype](
            *(hidden.data_ptr(), cell.data_ptr(), None if active is None else active.data_ptr()),
            *(tensor.data_ptr() for tensor in (previous, *addends)),
            *[None] * missing,
            *(each.stride(0) for each in addends),
            *[0] * missing,
            *previous.shape,
        )

    def fill_cell_backward(
        self, grad_gates: Tensor, grad_previous: Tensor, *inputs: Tensor
    ) -> None:
        tensors = (grad_gates, grad_previous, *inputs)
        self.call("cell_backward", grad_gates.dtype, tensors, *grad_previous.shape)

    def call(
        self, name: str, dtype: torch.dtype, tensors: tuple[Tensor | None, ...], *integers: int
    ) -> None:
        """Call the function ``name`` for the element type ``dtype``, on contiguous tensors."""
        function = self._functions[name, dtype]
        pointers = (None if tensor is None else tensor.data_ptr() for tensor in tensors)
        function(*pointers, *integers)
