"""A run whose folder was renamed or moved goes on with its best checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import tiny
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.training.callbacks import scored_checkpoint

pytestmark = [
    *(pytest.mark.filterwarnings(each) for each in tiny.QUIET),
    pytest.mark.filterwarnings("error:The dirpath has changed"),
]

SCORES = (0.2, 0.9, 0.4, 0.5)


class Scripted(Captioner):
    """Its dev CIDEr is given."""

    scores: ClassVar = SCORES

    def on_validation_epoch_end(self) -> None:
        self.log("dev/CIDEr", self.scores[self.current_epoch])


def train(data: CaptionDataModule, folder: Path, epochs: int, resume: str = "") -> Path | None:
    """Train as train.py does; returns the checkpoint that would be scored."""
    callbacks = [
        ModelCheckpoint(
            folder, filename="best", monitor="dev/CIDEr", mode="max", enable_version_counter=False
        ),
        ModelCheckpoint(
            folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        ),
    ]
    trainer = tiny.trainer(folder, *callbacks, max_epochs=epochs, enable_checkpointing=True)
    model = Scripted.for_data(data, encoder=tiny.ENCODER, **tiny.MODEL)
    trainer.fit(model, data, ckpt_path=str(folder / resume) if resume else None)
    return scored_checkpoint(trainer)


def epoch(path: Path) -> int:
    return int(torch.load(path, weights_only=True)["epoch"])


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_run_that_was_renamed_keeps_its_best_epoch(
    drawn_pictures: Path,
    tmp_path: Path,
    move: Callable[[Path, Path], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = tiny.data(drawn_pictures, tmp_path)
    old, new = tmp_path / "old", tmp_path / "new"
    train(data, old, 3)
    move(old, new)
    assert train(data, new, 3, "last.ckpt") == new / "best.ckpt"  # it had finished
    assert epoch(new / "best.ckpt") == 1
    assert train(data, new, 4, "last.ckpt") == new / "best.ckpt"
    assert (epoch(new / "best.ckpt"), epoch(new / "last.ckpt")) == (1, 3)
    saved = torch.load(new / "last.ckpt", weights_only=True)["callbacks"]
    (best,) = [state for name, state in saved.items() if "dev/CIDEr" in name]
    assert best["best_model_path"] == str(new / "best.ckpt")
    assert float(best["best_model_score"]) == pytest.approx(0.9)
    assert "whatever its score" not in caplog.text
    if old.exists():
        assert epoch(old / "last.ckpt") == 2


def test_a_best_checkpoint_that_is_gone_is_reported(
    drawn_pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tiny.data(drawn_pictures, tmp_path)
    train(data, tmp_path / "old", 3)
    (tmp_path / "old" / "best.ckpt").unlink()
    assert train(data, tmp_path / "old", 4, "last.ckpt") == tmp_path / "old" / "best.ckpt"
    assert epoch(tmp_path / "old" / "best.ckpt") == 3
    assert "best.ckpt is neither there nor in" in caplog.text
