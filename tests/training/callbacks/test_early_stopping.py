"""Early stopping by a scripted score, in one go and resumed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from captioning.support.build import build
from captioning.support.errors import CaptioningError
from captioning.training.callbacks.early_stopping import ResumableEarlyStopping

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


class Scripted(pl.LightningModule):
    """Logs a given dev score after each epoch; the last one again once they are used up."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__()
        self.scores = scores
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("dev/CIDEr", self.scores[min(self.current_epoch, len(self.scores) - 1)])

    def train_dataloader(self) -> torch.utils.data.DataLoader[Tensor]:
        return torch.utils.data.DataLoader(torch.ones(2, 1))

    val_dataloader = train_dataloader

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def epochs(
    scores: Sequence[float], folder: Path, stopping: pl.Callback, resume: Path | None = None
) -> int:
    """The number of epochs after which training ended."""
    last = ModelCheckpoint(
        folder, "last", save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = pl.Trainer(
        max_epochs=12, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[stopping, last],
    )  # fmt: skip
    trainer.fit(Scripted(scores), ckpt_path=resume)
    return trainer.current_epoch


def test_it_stops_when_the_score_has_not_risen_for_as_long(tmp_path: Path) -> None:
    rising_then_falling = [0.1, 0.2, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert epochs(rising_then_falling, tmp_path, ResumableEarlyStopping(patience=2)) == 5
    assert epochs([0.1 * n for n in range(12)], tmp_path, ResumableEarlyStopping(patience=1)) == 12


def test_the_lower_is_better_where_that_is_asked_for(tmp_path: Path) -> None:
    falling_then_rising = [0.5, 0.4, 0.3, 0.6, 0.7, 0.8]
    stopping = ResumableEarlyStopping(mode="min", patience=2)
    assert epochs(falling_then_rising, tmp_path, stopping) == 5


def test_a_resumed_run_stops_where_its_patience_ends(tmp_path: Path) -> None:
    def run(patience: int, resume: Path | None) -> int:
        return epochs([0.5], tmp_path, ResumableEarlyStopping(patience=patience), resume)

    assert run(2, None) == 3
    assert run(2, tmp_path / "last.ckpt") == 3
    assert run(4, tmp_path / "last.ckpt") == 5


def test_what_it_takes_beside_its_own_arguments_is_lightnings() -> None:
    path = f"{ResumableEarlyStopping.__module__}.ResumableEarlyStopping"
    key = "callbacks.early_stopping"
    built = build({"_target_": path, "min_delta": "0.01"}, pl.Callback, key)
    assert isinstance(built, ResumableEarlyStopping)
    assert built.min_delta == 0.01
    with pytest.raises(CaptioningError, match=r"min_dleta: .*did you mean min_delta"):
        build({"_target_": path, "min_dleta": 0.01}, pl.Callback, key)
    with pytest.raises(CaptioningError, match=r"early_stopping.*patience=0 must be at least 1"):
        build({"_target_": path, "patience": 0}, pl.Callback, key)
