"""A run whose loss is not finite stops before anything is made of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_kept(
    fit: Fit, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step it is, an epoch's last one included: no dev score is given of such weights."""
    plain = Captioner.losses

    def losses(self: Captioner, batch: Batch) -> dict[str, Tensor]:
        parts = plain(self, batch)
        wrong = self.global_step == step
        return {name: value * float("nan") if wrong else value for name, value in parts.items()}

    monkeypatch.setattr(Captioner, "losses", losses)
    monkeypatch.setattr(Captioner, "validation_step", lambda *_: pytest.fail("was validated"))
    with pytest.raises(CaptioningError, match=rf"The loss is nan at step {step}: lower"):
        fit(logger=CSVLogger(tmp_path), num_sanity_val_steps=0)
