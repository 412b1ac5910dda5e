"""An exponential moving average of the weights."""

from itertools import chain
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks.weight_averaging import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from captioning.support.errors import CaptioningError


class EMA(WeightAveraging):
    """An exponential moving average of the weights, which is validated, saved and scored.

    After every step of the optimiser, average = decay * average + (1 - decay) * weights. The
    average is initialised with the weights after the first step. Buffers of integers are copied.

    Lightning's own callback keeps the average in the CPU's memory, makes a new tensor for each
    weight at every step, and reads the number of averaged steps from the GPU each time, which waits
    until the GPU has finished all its work.

    Args:
        decay: the weight of the old average in the update, at least 0 and below 1.

    Raises:
        CaptioningError: ``decay`` is not in that range.
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise CaptioningError(
                f"callbacks.ema.decay={decay} must be at least 0 and below 1; "
                "~callbacks.ema trains without an average."
            )
        self.average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(multi_avg_fn=self.average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Put the average on the training device, to which Lightning moves the model only later."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Pair the tensors of the average with those of the model.

        This is done once for all steps, because it takes as long as an update.
        """
        assert self._average_model is not None
        tensors = (
            chain(module.parameters(), module.buffers())
            for module in (self._average_model.module, pl_module)
        )
        pairs = list(zip(*tensors, strict=True))
        weights = [pair for pair in pairs if pair[0].is_floating_point()]
        self.weights = [list(each) for each in zip(*weights, strict=True)]
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Update the average if the optimiser has made a step.

        With gradient accumulation, it does not after every batch.
        """
        if self._latest_update_step == 0:
            super().on_train_batch_end(trainer, pl_module, *args)  # copies the weights
        elif trainer.global_step > self._latest_update_step:
            self.average(*self.weights, 0)
            for average, count in self.counts:
                average.copy_(count)
            self._latest_update_step = trainer.global_step
