"""The inputs of attention, standardised grids and exponentials, by one compiled pass each."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from captioning.kernels.backend import kernels_for
from captioning.kernels.cpu.bindings import CKernels

MAX_CHANNELS = 4096
"""The highest number of channels that the C function supports; the same as in ``grid.c``."""

CHUNK_IMAGES = 8
"""Number of images that are cast to single precision at a time, so that the result fits the
cache."""

LIMIT = 22.0
"""Projections x are clamped to [-LIMIT, LIMIT] before e^{2x}, so that the product of two is finite.

The product is at most e^88. In float32, tanh is constant from 9 on. The clamp therefore changes
results only if key and query both exceed 13 in magnitude and nearly cancel, which is far outside
the range that training reaches.
"""


def standardize(
    grid: Float[Tensor, "images locations channels"],
    eps: float,
    dtype: torch.dtype,
    kernels: CKernels,
) -> tuple[Float[Tensor, "images locations channels"], Float32[Tensor, "images channels"]]:
    """The standardised grid in ``dtype``, and its mean over the locations in single precision."""
    images, locations, channels = grid.shape
    mean = grid.new_empty(images, channels, dtype=torch.float32)
    out = grid.new_empty(grid.shape, dtype=dtype)
    epsilon = mean.new_tensor([eps])
    for chunk, chunk_mean, given in zip(
        *(torch.split(tensor, CHUNK_IMAGES) for tensor in (out, mean, grid)), strict=True
    ):
        tensors = chunk, chunk_mean, given.float().contiguous(), epsilon
        kernels.call("standardize", dtype, tensors, len(given), locations, channels)
    return out, mean


@torch.no_grad()
def exp2x(
    x: Float[Tensor, "*rows size"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*rows size"]:
    """The exponentials e^{2x} of x clamped to +-LIMIT, in single precision or in the type of x."""
    rows = x.flatten(0, -2)
    kernels = kernels_for("standardize", x) if dtype in (x.dtype, torch.float32) else None
    if not isinstance(kernels, CKernels) or rows.stride(1) != 1:
        return x.to(torch.float32, copy=True).clamp_(-LIMIT, LIMIT).mul_(2).exp_().to(dtype)
    out = x.new_empty(x.shape, dtype=dtype)
    tensors = out, rows, x.new_tensor([LIMIT], dtype=torch.float32)
    integers = *rows.shape, rows.stride(0), dtype != x.dtype
    kernels.call("exp2x", x.dtype, tensors, *integers)
    return out
