"""Monitors the training losses without synchronising with the GPU."""

import math
from collections import deque

import torch
from torch import Tensor

from captioning.support.errors import CaptioningError

LAG = 2
"""Number of steps after which a loss is read.

Reading it at once, by ``loss.item()``, would wait until the GPU has finished all its work, and the
GPU would then be idle until Python has launched the next operations.
"""


class LossMonitor:
    """Computes the mean loss of an epoch, and raises an error if a loss is NaN or infinite."""

    def __init__(self) -> None:
        self._pending: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()
        self._sum = 0.0
        self._count = 0

    def add(self, step: int, loss: Tensor) -> None:
        """Add the loss of a step, and read the loss of :data:`LAG` steps before it."""
        self._pending.append((step, *_copied_to_cpu(loss.detach())))
        self._look_at(all_but=LAG)

    def epoch_mean(self) -> float:
        """The mean loss of all steps since the last call; NaN if there were no steps."""
        self._look_at(all_but=0)
        mean = self._sum / self._count if self._count else float("nan")
        self._sum, self._count = 0.0, 0
        return mean

    def _look_at(self, all_but: int) -> None:
        while len(self._pending) > all_but:
            step, loss, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            value = float(loss)
            if not math.isfinite(value):
                raise CaptioningError(
                    f"The loss is {value} at step {step}: lower optimizer.lr or "
                    "trainer.gradient_clip_val, or use trainer.precision=32-true."
                )
            self._sum += value
            self._count += 1


def _copied_to_cpu(value: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy of the value in the CPU's memory, and the CUDA event after which it is complete.

    The event is None for a value that is in the CPU's memory already.
    """
    if not value.is_cuda:
        return value, None
    copy = value.to("cpu", non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy, event
