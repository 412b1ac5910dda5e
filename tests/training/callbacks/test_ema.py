"""The moving average of the weights against one that is made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from captioning.support.errors import CaptioningError
from captioning.training.callbacks.ema import EMA

Fit = Callable[..., Any]
"""The fixture ``fit`` of conftest.py."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]


class Weights(pl.Callback):
    """All weights after each step, before they are averaged."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        self.steps.append([weight.detach().clone() for weight in pl_module.parameters()])


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("every", [1, 2])
def test_what_is_kept_is_the_moving_average_of_the_weights_after_every_step(
    fit: Fit, tmp_path: Path, every: int, accelerator: str
) -> None:
    """Of each step of the optimiser, which may be of several batches."""
    seen = Weights()
    fitted = fit(
        seen,
        EMA(decay=0.7),
        logger=CSVLogger(tmp_path),
        epochs=2,
        accumulate_grad_batches=every,
        accelerator=accelerator,
    )
    epoch = len(seen.steps) // 2  # its last batch is a step in any case
    ends = [n for n in range(2 * epoch) if (n % epoch + 1) % every == 0 or n % epoch + 1 == epoch]
    first, *rest = (seen.steps[number] for number in ends)
    assert fitted.trainer.global_step == len(ends) > 3
    average = first
    for weights in rest:
        average = [0.7 * a + 0.3 * w for a, w in zip(average, weights, strict=True)]
    for ours, theirs in zip(fitted.captioner.parameters(), average, strict=True):
        torch.testing.assert_close(ours, theirs, check_device=False)
    assert (len(fitted.captioner.graphs) > 0) == (accelerator == "gpu")


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_share_that_makes_no_sense_is_refused(decay: float) -> None:
    with pytest.raises(CaptioningError, match=f"callbacks.ema.decay={decay}"):
        EMA(decay)


class Saved(pl.Callback):
    """Saves all there is, and the weights alone, after each validation, as ModelCheckpoint does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / "all.ckpt")
            trainer.save_checkpoint(self.folder / "weights.ckpt", weights_only=True)


def test_a_checkpoint_of_weights_alone_has_the_average(fit: Fit, tmp_path: Path) -> None:
    """Lightning does not ask the callback, and would save the weights of the last step."""
    fit(Saved(tmp_path), EMA(decay=0.7), logger=CSVLogger(tmp_path), epochs=2)
    whole, slim = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("all", "weights")
    )
    assert not {"optimizer_states", "current_model_state", "averaging_state"} & slim.keys()
    assert slim["encoder"]["state_dict"] == whole["encoder"]["state_dict"] == {}
    for name, value in whole["state_dict"].items():
        assert torch.equal(slim["state_dict"][name], value)
    current = whole["current_model_state"]
    assert not all(torch.equal(slim["state_dict"][name], current[name]) for name in current)
