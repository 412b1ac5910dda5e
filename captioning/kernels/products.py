"""Products of few rows with a weight that many words share, in bfloat16, by a C function.

The C function reads the weight in an order of its own, so that the weight is packed once for all
words. On the processors for which it was measured (AVX512-BF16, without the tiles of AMX), oneDNN's
product of 80 rows reaches half of the processor's rate, and this one nine tenths.
"""

import functools

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor

from captioning.kernels.cpu.bindings import CKernels

PANEL = 64
"""The number of columns that are packed together; the same as in ``product.c``."""


@functools.cache
def pays() -> bool:
    """Whether this processor is of the kind for which these products were measured to be faster.

    It has instructions for bfloat16, but not the tiles of AMX, which oneDNN uses and the C function
    does not.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16")) and not capabilities.get("amx_bf16")


class PackedMatrix:
    """A matrix in the order in which :meth:`product` reads it.

    Args:
        kernels: the C functions.
        matrix: depth x columns, any view of contiguous memory; ``depth`` is even.
    """

    def __init__(self, kernels: CKernels, matrix: BFloat16[Tensor, "depth columns"]) -> None:
        self.kernels, self.shape = kernels, matrix.shape
        depth, columns = matrix.shape
        panels = -(-columns // PANEL)
        self.packed = matrix.new_empty(panels * PANEL * depth)
        integers = depth, columns, *matrix.stride()
        kernels.call("pack", torch.bfloat16, (self.packed, matrix), *integers)

    def product(
        self, x: BFloat16[Tensor, "rows depth"], start: BFloat16[Tensor, "_ columns"] | None = None
    ) -> Float32[Tensor, "rows columns"]:
        """The sum of ``start`` and the product of x with the matrix, in single precision.

        Args:
            x: its rows are contiguous each, and may be parts of longer rows.
            start: one row that is added to all, or one for each row of x; contiguous.
        """
        out = x.new_empty(len(x), self.shape[1], dtype=torch.float32)
        start_step = 0 if start is None or len(start) == 1 else start.stride(0)
        integers = len(x), *self.shape, x.stride(0), start_step
        self.kernels.call("product", torch.bfloat16, (out, x, self.packed, start), *integers)
        return out
