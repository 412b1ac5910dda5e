"""Dropout from one random byte a number."""

import torch
from jaxtyping import Float
from torch import Tensor


def byte_dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Dropout on a CPU whose random numbers are cheap.

    PyTorch draws a random number of 32 bits for each element, one after another, which takes a
    twentieth of a training step. Here the share of elements that stay holds to the nearest 1/256,
    and they are scaled by exactly its inverse, so that the mean is kept.
    """
    kept = round(256 * (1 - p))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64)
    words.random_(-(2**63), None)  # all 64 bits: without bounds, the top bit would always be zero
    stays = words.view(torch.uint8)[: x.numel()].view(x.shape) < kept
    return x * stays.to(x.dtype).mul_(256 / max(kept, 1))
