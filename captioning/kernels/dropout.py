"""Dropout whose random numbers are cheap on a CPU."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """What :class:`torch.nn.Dropout` does, from one random byte a number on a CPU.

    There, torch draws a random number of 32 bits for each, one after another, which takes a
    twentieth of a training step. ``p`` holds to the nearest 1/256, and what stays is scaled by
    just that, so that the mean is kept.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        kept = round(256 * (1 - self.p))
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64)
        # All 64 bits: without bounds, the top bit would always be zero.
        words.random_(-(2**63), None)
        stays = words.view(torch.uint8)[: x.numel()].view(x.shape) < kept
        return x * stays.to(x.dtype).mul_(256 / max(kept, 1))
