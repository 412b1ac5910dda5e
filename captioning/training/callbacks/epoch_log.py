"""Logs one line for every epoch, and in a long one a line every minute."""

import logging
import math
from datetime import timedelta
from time import monotonic
from typing import Any

import pytorch_lightning as pl

log = logging.getLogger(__name__)

VALUES = (
    ("train/loss_epoch", "loss", 1.0, 3),
    ("dev/loss", "dev loss", 1.0, 3),
    ("dev/perplexity", "perplexity", 1.0, 2),
    ("dev/BLEU-4", "BLEU-4", 100.0, 1),
    ("dev/CIDEr", "CIDEr", 100.0, 1),
)
"""The name of each logged value, its label in the line, its factor and its decimal places."""

STEPS_EVERY = 60.0
"""Seconds after which a line says how far an epoch has come."""


class EpochLog(pl.Callback):
    """Writes a line for every epoch: losses, dev scores, and the time left.

    The loss is ``train/loss_epoch``, the mean over all steps of the epoch. Values that the module
    does not log are left out. The line is written when the next epoch starts or training ends,
    because the module may log in its ``on_train_epoch_end``, which Lightning calls after the
    callbacks'. An epoch that takes longer than a minute also has a line every minute, with the
    steps that are done and the time left of the epoch.
    """

    def __init__(self) -> None:
        self._ended: tuple[int, float] | None = None  # epochs done, mean seconds of an epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start time."""
        self.start, self.first = monotonic(), trainer.current_epoch
        self._begin_epoch()  # Lightning does not say so where a run is resumed within an epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record which epoch has ended, and the mean time of an epoch."""
        done = trainer.current_epoch + 1
        self._ended = done, (monotonic() - self.start) / (done - self.first)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of the previous epoch."""
        self._write(trainer)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_start = self._shown = monotonic()
        self._steps = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a line if there has been none for a minute."""
        self._steps += 1
        now, total = monotonic(), trainer.num_training_batches
        if now - self._shown < STEPS_EVERY or math.isinf(total) or trainer.is_last_batch:
            return
        self._shown = now
        left = (now - self._epoch_start) / self._steps * (total - batch_idx - 1)
        log.info(
            "Epoch %d: %d of %d steps, %s left of the epoch",
            *(trainer.current_epoch + 1, batch_idx + 1, total, timedelta(seconds=round(left))),
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of the last epoch."""
        self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if self._ended is None:
            return
        (done, seconds), self._ended = self._ended, None
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else done
        logged = trainer.callback_metrics
        values = ", ".join(
            f"{label} {scale * float(logged[name]):.{digits}f}"
            for name, label, scale, digits in VALUES
            if name in logged
        )
        log.info(
            "Epoch %d of %d: %s; %.0f s an epoch, at most %.0f min left",
            *(done, last, values or "nothing was logged", seconds, seconds * (last - done) / 60),
        )
