"""What attention is given of a grid and of a query, made in one pass each where it is compiled."""

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from captioning.kernels import native

MOST_CHANNELS = 4096
"""As in ``grid.c``."""

AT_ONCE = 8
"""Images that are cast to single precision together: what is made of them stays in the cache."""

LIMIT = 22.0
"""Projections are clamped to +-LIMIT before e^{2x}: the product of two, e^88, is still finite.
Since tanh is flat to the last bit of float32 from 9 on, that changes nothing unless key and query
both exceed 13 and nearly cancel, which is far from where training leads."""


def standardize(
    grid: Float[Tensor, "images locations channels"], norm: nn.Module, dtype: torch.dtype
) -> tuple[Float[Tensor, "images locations channels"], Float32[Tensor, "images channels"]]:
    """The normalised grid, and the mean of each image's locations.

    Args:
        grid: in any precision.
        norm: of the channels of a location; a LayerNorm without parameters is what is compiled.
        dtype: of the grid that is returned. The mean is of the more exact one.
    """
    images, locations, channels = grid.shape
    mean = grid.new_empty(images, channels, dtype=torch.float32)
    compiled = None
    if isinstance(norm, nn.LayerNorm) and not grid.requires_grad and channels <= MOST_CHANNELS:
        compiled = native.c_kernels_for(mean)
    if compiled is None or dtype not in (torch.float32, torch.bfloat16):
        grid = norm(grid.float())
        return grid.to(dtype), grid.mean(1)
    assert isinstance(norm, nn.LayerNorm)
    epsilon = torch.tensor([norm.eps])
    out = torch.empty(grid.shape, dtype=dtype)
    for some, of_some, given in zip(
        *(torch.split(tensor, AT_ONCE) for tensor in (out, mean, grid)), strict=True
    ):
        tensors = some, of_some, given.float().contiguous(), epsilon
        compiled.call("standardize", dtype, tensors, len(given), locations, channels)
    return out, mean


@torch.no_grad()
def exp_twice(
    x: Float[Tensor, "*rows size"], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "*rows size"]:
    """e^{2x} of x within +-LIMIT, in a new tensor of that type: single precision, or that of x."""
    rows = x.flatten(0, -2)
    compiled = native.c_kernels_for(x) if dtype in (x.dtype, torch.float32) else None
    if compiled is None or rows.stride(1) != 1:
        return x.to(torch.float32, copy=True).clamp_(-LIMIT, LIMIT).mul_(2).exp_().to(dtype)
    out = x.new_empty(x.shape, dtype=dtype)
    tensors = out, rows, torch.tensor([LIMIT])
    compiled.call("exp_twice", x.dtype, tensors, *rows.shape, rows.stride(0), dtype != x.dtype)
    return out
