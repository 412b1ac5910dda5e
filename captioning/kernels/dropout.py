"""Dropout that uses one random byte per element."""

import torch
from jaxtyping import Float
from torch import Tensor


def byte_dropout(x: Float[Tensor, "*shape"], p: float) -> Float[Tensor, "*shape"]:
    """Dropout on a CPU with fast random numbers.

    PyTorch draws a random number of 32 bits for each element, one after another, which takes a
    twentieth of a training step. Here the probability of keeping an element is rounded to a
    multiple of 1/256, and kept elements are scaled by the inverse of the rounded probability, so
    that the expected value is exact.

    Args:
        x: the input.
        p: the probability that an element is set to zero.
    """
    kept = round(256 * (1 - p))
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64, device=x.device)
    words.random_(-(2**63), None)  # without bounds, the top bit would always be zero
    stays = words.view(torch.uint8)[: x.numel()].view(x.shape) < kept
    return x * stays.to(x.dtype).mul_(256 / max(kept, 1))
