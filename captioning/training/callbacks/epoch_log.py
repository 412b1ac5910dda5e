"""A line in the log for every epoch."""

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
"""Logged values, and for each its name in the line, its scale and its decimal places."""


class EpochLog(pl.Callback):
    """Writes a line for every epoch: losses, dev scores, and the time left.

    The loss is ``train/loss_epoch``, the mean over all steps of the epoch. A value that the module
    does not log is left out.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self.start, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the line."""
        done = trainer.current_epoch + 1
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else done
        seconds = (time.monotonic() - self.start) / (done - self.first)
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
