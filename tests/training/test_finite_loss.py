"""A run whose loss is not finite stops before anything is made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import tiny
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.datamodule import Batch
from captioning.support.errors import CaptioningError

Fit = Callable[..., Any]
"""The fixture ``fit`` of conftest.py."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]


@pytest.mark.parametrize(("step", "value"), [(0, "nan"), (1, "inf"), (2, "nan")])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_kept(
    fit: Fit, tmp_path: Path, step: int, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step it is, an epoch's last one included: no dev score is given of such weights."""
    plain = Captioner.losses

    def losses(self: Captioner, batch: Batch) -> dict[str, Tensor]:
        parts = plain(self, batch)
        wrong = self.global_step == step
        return {name: part * float(value) if wrong else part for name, part in parts.items()}

    monkeypatch.setattr(Captioner, "losses", losses)
    monkeypatch.setattr(Captioner, "validation_step", lambda *_: pytest.fail("was validated"))
    with pytest.raises(CaptioningError, match=rf"The loss is {value} at step {step}: lower"):
        fit(logger=CSVLogger(tmp_path), num_sanity_val_steps=0)


def test_a_learning_rate_that_is_too_high_is_named(drawn_pictures: Path, tmp_path: Path) -> None:
    """Nothing is put in here: the first step has made the weights too large."""
    pl.seed_everything(0, verbose=False)
    data = tiny.data(drawn_pictures, tmp_path)
    model = tiny.captioner(data, optimizer={"_target_": "torch.optim.SGD", "lr": 1e30})
    with pytest.raises(CaptioningError, match=r"^The loss is (nan|inf) at step 1: .*optimizer.lr"):
        tiny.trainer(tmp_path).fit(model, datamodule=data)
