"""Writing checkpoints so that a kill or a full disk never leaves a broken one."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO

from captioning.checkpoints import read_checkpoint
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_bytes


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, with checks and atomic writes.

    Lightning writes a checkpoint into ``TMPDIR`` and moves it to its place. Between two file
    systems, moving means copying, which a kill or a full disk can cut short after the old
    checkpoint is gone. Here, it is written beside its place and synced, and then renamed.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; those with an address such as ``s3://`` are left to Lightning.

        Raises:
            CaptioningError: it cannot be written. An earlier file of that name is unchanged.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = BytesIO()
        torch.save(checkpoint, buffer)
        try:
            atomic_write_bytes(path, buffer.getbuffer())
        except CaptioningError as error:
            if not Path(path).exists():
                raise
            raise CaptioningError(f"{error} The earlier checkpoint is unchanged.") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint; those with an address such as ``s3://`` are left to Lightning.

        Raises:
            CaptioningError: it is damaged, or not a checkpoint of a Captioner.
        """
        if "://" in str(path):
            found: dict[str, Any] = super().load_checkpoint(path, map_location, weights_only)
            return found
        return read_checkpoint(Path(path), "ckpt_path")


def make_checkpoints_atomic(trainer: pl.Trainer) -> None:
    """Let a Trainer write by :class:`AtomicCheckpointIO`, unless it has a plugin of its own."""
    strategy = trainer.strategy
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
