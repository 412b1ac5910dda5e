"""The line that every epoch has in the log."""

import csv
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from captioning.training.callbacks import epoch_log
from captioning.training.callbacks.epoch_log import EpochLog

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]

LOGGER = "captioning.training.callbacks.epoch_log"


class Scripted(pl.LightningModule):
    """Logs given values at the end of each epoch, and learns nothing."""

    def __init__(self, *epochs: dict[str, float]) -> None:
        super().__init__()
        self.epochs = epochs
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.weight * batch).sum() + batch_idx
        self.log("train/loss", loss)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.epochs[self.current_epoch])

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(torch.ones(4, 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def lines(module: Scripted, folder: Path, caplog: pytest.LogCaptureFixture, **trainer: Any) -> Any:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        pl.Trainer(
            accelerator="cpu", logger=CSVLogger(folder, name="", version="logs"),
            callbacks=[EpochLog()], enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, log_every_n_steps=1, default_root_dir=folder, **trainer,
        ).fit(module)  # fmt: skip
    return [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_the_line_shows_the_epochs_mean_loss_and_the_dev_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the last batch's loss, which is 3 here."""
    first = {
        "train/loss_epoch": 1.5, "dev/loss": 2.25, "dev/perplexity": 9.4877, "dev/BLEU-4": 0.2004,
        "dev/CIDEr": 0.5719,
    }  # fmt: skip
    second = first | {"train/loss_epoch": 1.25}
    one, two = lines(Scripted(first, second), tmp_path, caplog, max_epochs=2)
    assert one.startswith(
        "Epoch 1 of 2: loss 1.500, dev loss 2.250, perplexity 9.49, BLEU-4 20.0, CIDEr 57.2; "
    )
    assert two.startswith("Epoch 2 of 2: loss 1.250, ")
    assert two.endswith("at most 0 min left")


def test_a_long_epoch_says_how_far_it_has_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 40 seconds each: a line is due after every second one, but not after the last."""
    clock = {"now": 0.0}
    monkeypatch.setattr(epoch_log, "monotonic", lambda: clock["now"])

    class Slow(Scripted):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            clock["now"] += 40

    long, whole = lines(Slow({"dev/CIDEr": 0.5}), tmp_path, caplog, max_epochs=1)
    assert long == "Epoch 1: 2 of 4 steps, 0:01:20 left of the epoch"
    assert whole.startswith("Epoch 1 of 1: CIDEr 50.0; ")


def test_a_run_that_is_resumed_within_an_epoch_says_so_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning does not call ``on_train_epoch_start`` for that epoch."""
    clock = {"now": 0.0}
    monkeypatch.setattr(epoch_log, "monotonic", lambda: clock["now"])
    trainer = Mock(spec=pl.Trainer, current_epoch=1, num_training_batches=8, is_last_batch=False)
    callback = EpochLog()
    callback.on_train_start(trainer, Scripted())
    with caplog.at_level(logging.INFO, logger=LOGGER):
        for batch in (4, 5):  # the first four were before the interruption
            clock["now"] += 30
            callback.on_train_batch_end(trainer, Scripted(), None, None, batch)
    assert caplog.messages == ["Epoch 2: 6 of 8 steps, 0:01:00 left of the epoch"]


def test_what_is_not_logged_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (line,) = lines(Scripted({"dev/CIDEr": 0.5}), tmp_path, caplog, max_epochs=1)
    assert line.startswith("Epoch 1 of 1: CIDEr 50.0; ")


def test_the_line_agrees_with_the_table_of_values(
    fit: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        fit(EpochLog(), logger=CSVLogger(tmp_path, name="", version="logs"), epochs=2)
    shown = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    cider = [float(row["dev/CIDEr"]) for row in rows if row["dev/CIDEr"]]
    means = [float(row["train/loss_epoch"]) for row in rows if row["train/loss_epoch"]]
    steps = [
        [float(row["train/loss"]) for row in rows if row["train/loss"] and row["epoch"] == epoch]
        for epoch in ("0", "1")
    ]
    assert len(shown) == len(cider) == len(means) == 2
    for epoch, (line, score, mean) in enumerate(zip(shown, cider, means, strict=True), 1):
        assert line.startswith(f"Epoch {epoch} of 2: loss {mean:.3f}, ")
        assert f"CIDEr {100 * score:.1f};" in line
        losses = steps[epoch - 1]
        assert mean == pytest.approx(sum(losses) / len(losses), rel=1e-5)
