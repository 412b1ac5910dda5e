"""Checkpoints are whole after a kill or a full disk, wherever TMPDIR is."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.support.errors import CaptioningError
from captioning.training.checkpoint_io import AtomicCheckpointIO

pytestmark = [pytest.mark.filterwarnings(each) for each in tiny.QUIET]


@pytest.fixture
def data(drawn_pictures: Path, tmp_path: Path) -> CaptionDataModule:
    return tiny.data(drawn_pictures, tmp_path)


def kept(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, filename="last", enable_version_counter=False)


def test_a_checkpoint_is_written_beside_its_place_and_replaces_the_old_one_whole(
    data: CaptionDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write, the old checkpoint can be read until the new one has all of its bytes."""
    folder, replace = tmp_path / "kept", Path.replace
    seen: list[tuple[Any, Any]] = []

    def replaced(source: Path, target: Path) -> Path:
        if target.suffix == ".ckpt":
            old = torch.load(target, weights_only=True)["epoch"] if target.exists() else None
            seen.append((old, torch.load(source, weights_only=True)["epoch"]))
            assert source.parent == target.parent
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(shutil, "move", lambda *_: pytest.fail("moved between file systems"))
    trainer = tiny.trainer(tmp_path, kept(folder), max_epochs=3, enable_checkpointing=True)
    trainer.fit(tiny.captioner(data), data)
    assert seen == [(None, 0), (0, 1), (1, 2)]
    assert [path.name for path in folder.iterdir()] == ["last.ckpt"]


def test_a_full_disk_leaves_the_old_checkpoint_and_is_told_in_a_sentence(
    data: CaptionDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:

                def fsync(_: int) -> None:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                monkeypatch.setattr(os, "fsync", fsync)

    trainer = tiny.trainer(
        tmp_path, Full(), kept(tmp_path), max_epochs=3, enable_checkpointing=True
    )
    with pytest.raises(CaptioningError, match=r"last.ckpt.*No space left.*unchanged"):
        trainer.fit(tiny.captioner(data), data)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 0
    assert Captioner.load_from_checkpoint(tmp_path / "last.ckpt")
    assert not [*tmp_path.glob(".*.tmp")]


def test_a_plugin_of_the_users_own_is_kept(data: CaptionDataModule, tmp_path: Path) -> None:
    class Mine(TorchCheckpointIO):
        pass

    for plugins, used in (([Mine()], Mine), ([], AtomicCheckpointIO)):
        trainer = tiny.trainer(tmp_path, plugins=plugins, fast_dev_run=True)
        trainer.fit(tiny.captioner(data), data)
        assert type(trainer.strategy.checkpoint_io) is used
