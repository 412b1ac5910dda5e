"""Limits of the Trainer that leave nothing to train, to validate or to score."""

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, Timer

from captioning.data.datamodule import CaptionDataModule
from captioning.support.errors import CaptioningError


def check_limits(trainer: pl.Trainer) -> None:
    """Check the limits of a Trainer before any data is read.

    Raises:
        CaptioningError: nothing would be trained or scored, or no epoch would be validated although
            the best one is chosen by its dev score.
    """
    for name in ("limit_train_batches", "max_epochs", "max_steps"):
        if getattr(trainer, name) == 0:
            raise CaptioningError(f"trainer.{name}=0 leaves nothing to train: give more than 0.")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and callback.time_remaining() == 0:
            raise CaptioningError("trainer.max_time leaves no time to train: give more than 0.")
    if trainer.limit_test_batches == 0:
        raise CaptioningError(
            "trainer.limit_test_batches=0 leaves nothing to score: give more than 0."
        )
    monitored = [
        callback.monitor
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint | EarlyStopping) and callback.monitor is not None
    ]
    dev = [name for name in monitored if name.startswith("dev/")]
    if not dev:
        return
    if trainer.limit_val_batches == 0:
        raise CaptioningError(
            f"trainer.limit_val_batches=0 leaves no {dev[0]}, by which the best epoch is chosen: "
            "give more than 0, or add ~callbacks.best_checkpoint ~callbacks.early_stopping."
        )
    every, epochs = trainer.check_val_every_n_epoch, trainer.max_epochs
    if every is not None and epochs is not None and 0 <= epochs < every:
        raise CaptioningError(
            f"trainer.check_val_every_n_epoch={every} leaves no {dev[0]} within "
            f"trainer.max_epochs={epochs}: give at most {epochs}."
        )


def check_splits(trainer: pl.Trainer, data: CaptionDataModule) -> None:
    """Check that a fraction of the batches of each split that is scored is at least one batch.

    Raises:
        CaptioningError: it is less.
    """
    limit = trainer.limit_test_batches
    if not isinstance(limit, float) or limit == 1.0:
        return
    for split in ("dev", "test"):
        batches = len(data.evaluation_dataloader(split))
        if batches * limit < 1:
            raise CaptioningError(
                f"trainer.limit_test_batches={limit:g} of the {batches} batches of {split} is less "
                "than one: give a larger fraction, or a number of batches."
            )


def is_misconfiguration(error: BaseException) -> bool:
    """Whether an error of Lightning says that settings do not fit together or to the data."""
    if isinstance(error, MisconfigurationException):
        return True
    marks = ("`val_check_interval`", "Early stopping conditioned on metric")
    return isinstance(error, ValueError | RuntimeError) and any(m in str(error) for m in marks)
