"""Callbacks of training: checkpoints, early stopping, weight averaging, logs and images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from captioning.support.build import build, locate
from captioning.support.errors import CaptioningError


def make_callbacks(specs: Mapping[str, Any], checkpoints: Path) -> list[pl.Callback]:
    """Build the callbacks of the group ``callbacks``, in its order.

    Args:
        specs: for each name, the ``_target_`` and arguments of a
            :class:`pytorch_lightning.Callback`; None leaves an entry out.
        checkpoints: the folder of each
            :class:`~pytorch_lightning.callbacks.ModelCheckpoint` without a ``dirpath``.

    Raises:
        CaptioningError: an entry names no callback, or has a wrong argument.
    """
    callbacks = []
    for name, spec in specs.items():
        key = f"callbacks.{name}"
        if spec is None:
            continue
        if not isinstance(spec, Mapping):
            raise CaptioningError(
                f"{key}={spec}: an entry is a _target_ with its arguments, or null to leave it out."
            )
        target = locate(str(spec.get("_target_") or ""), pl.Callback, key)
        if issubclass(target, ModelCheckpoint) and spec.get("dirpath") is None:
            spec = {**spec, "dirpath": str(checkpoints)}
        callbacks.append(build(spec, pl.Callback, key))
    return callbacks


def scored_checkpoint(trainer: pl.Trainer) -> Path | None:
    """The checkpoint that is scored after training.

    It is the best checkpoint of the first callback that keeps checkpoints by a monitored value;
    unless the group was changed, that is ``callbacks.best_checkpoint``. None means that no such
    checkpoint was written; the weights at the end of training are then scored.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            return Path(callback.best_model_path) if callback.best_model_path else None
    return None
