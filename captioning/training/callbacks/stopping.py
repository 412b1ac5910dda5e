"""Ends of training that come within an epoch."""

from typing import Any

import pytorch_lightning as pl

from captioning.support.signals import Request


class StopAtSignal(pl.Callback):
    """Ends training or validation after the current batch if a signal has come."""

    def __init__(self, request: Request) -> None:
        self.request = request

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop here if a signal has come."""
        self.request.check()

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop here if a signal has come."""
        self.request.check()


class ValidateAtLastStep(pl.Callback):
    """Makes Lightning validate after the last of ``trainer.max_steps``, also within an epoch.

    Otherwise the epoch in which training ends has no dev score.
    """

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Ask Lightning to stop, for which it validates first."""
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.fit_loop.min_epochs = 0  # max_steps wins; Lightning would not validate
            trainer.should_stop = True
