"""Learning rates over the steps of a training run."""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from captioning.support.build import build, locate, parameters_of
from captioning.support.errors import CaptioningError


class WarmupCosine(LRScheduler):
    """A linear warm-up followed by a cosine decay to a share of the highest learning rate.

    At step n of N (the first is 0), with W = max(1, round(warmup N)) steps of warm-up, the
    learning rate is the optimiser's own times

        (n + 1) / W                                                     for n < W,
        final + (1 - final) (1 + cos(pi (n - W) / (N - W))) / 2         for W <= n <= N,

    and ``final`` after step N. The factor is a function of n and N alone, so that a resumed run
    with another number of epochs follows the curve of its own N.

    Args:
        optimizer: the optimiser; each of its parameter groups follows the curve of its own
            learning rate.
        total_steps: the number of steps N of the whole run.
        warmup: the share of the steps in which the learning rate rises.
        final: the learning rate at the end, as a share of the highest one.

    Raises:
        CaptioningError: a share is not between 0 and 1.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.04, final: float = 0.01
    ) -> None:
        for name, value in (("warmup", warmup), ("final", final)):
            if not 0 <= value <= 1:
                raise CaptioningError(f"scheduler.{name}={value}: choose a number between 0 and 1.")
        self.total_steps = total_steps
        self.warmup_steps = max(1, round(warmup * total_steps))
        self.final = final
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The factor of all learning rates at a step."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group at the current step."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The current step; a resumed run takes the settings from its own configuration."""
        settings = {"total_steps", "warmup_steps", "final"}
        return {name: value for name, value in super().state_dict().items() if name not in settings}


class Constant(LRScheduler):
    """The optimiser's own learning rate at every step.

    Args:
        optimizer: the optimiser.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)

    def get_lr(self) -> list[float | Tensor]:
        """The learning rate of each parameter group."""
        return [float(base) for base in self.base_lrs]


def build_scheduler(
    spec: Mapping[str, Any] | str, optimizer: Optimizer, total_steps: int
) -> LRScheduler:
    """Build the scheduler of a configuration, which is stepped after every batch.

    Args:
        spec: ``_target_``, the dotted path of a subclass of
            :class:`torch.optim.lr_scheduler.LRScheduler`, and its arguments.
        optimizer: passed to the class as ``optimizer``.
        total_steps: the number of steps of the whole run, passed if the class takes that argument.

    Raises:
        CaptioningError: there is no such class, it cannot be stepped after every batch, or one of
            its arguments is wrong.
    """
    path = spec if isinstance(spec, str) else str(spec.get("_target_") or "")
    target = locate(path, LRScheduler, "scheduler")
    if issubclass(target, ReduceLROnPlateau):
        raise CaptioningError(
            f"scheduler._target_={path}: this scheduler needs a score at each step, but schedulers "
            "are stepped after every batch here: choose another one."
        )
    given: dict[str, Any] = {"optimizer": optimizer}
    if "total_steps" in parameters_of(target)[0]:
        given["total_steps"] = total_steps
    return build(spec, LRScheduler, "scheduler", **given)
