"""Learning rate schedules, stepped at every batch."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from captioning.support.errors import CaptioningError


class WarmupCosine(LambdaLR):
    """Rises linearly, then falls along a cosine.

    Args:
        optimizer: whose learning rates are the top of the schedule.
        total_steps: steps of the whole training.
        warmup: share of the steps in which the learning rate rises; it is at its top at their end.
        final: what it ends at, as a share of the top.

    Raises:
        CaptioningError: a share is not between 0 and 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.04, final: float = 0.01
    ) -> None:
        for name, value in (("warmup", warmup), ("final", final)):
            if not 0 <= value <= 1:
                raise CaptioningError(f"scheduler.{name}={value}: choose a share between 0 and 1.")
        warmup_steps = max(1, round(warmup * total_steps))

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))

        super().__init__(optimizer, factor)
