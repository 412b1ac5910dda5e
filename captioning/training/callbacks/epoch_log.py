"""Logs one line for every epoch."""

import logging
import time

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


class EpochLog(pl.Callback):
    """Writes a line for every epoch: losses, dev scores, and the time left.

    The loss is ``train/loss_epoch``, the mean over all steps of the epoch. Values that the module
    does not log are left out. The line is written when the next epoch starts or training ends,
    because the module may log in its ``on_train_epoch_end``, which Lightning calls after the
    callbacks'.
    """

    def __init__(self) -> None:
        self._ended: tuple[int, float] | None = None  # epochs done, mean seconds of an epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start time."""
        self.start, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record which epoch has ended, and the mean time of an epoch."""
        done = trainer.current_epoch + 1
        self._ended = done, (time.monotonic() - self.start) / (done - self.first)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line of the previous epoch."""
        self._write(trainer)

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
