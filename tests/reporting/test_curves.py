"""Learning curves as they are read from a run's ``logs/metrics.csv``."""

from pathlib import Path

import pytest

from captioning.reporting.curves import read_curves
from captioning.support.errors import CaptioningError

METRICS = """\
dev/CIDEr,dev/loss,epoch,step,train/loss,train/loss_epoch
,,0,0,3.0,
,,0,25,1.0,
0.2,2.5,0,30,,
,,0,30,,1.75
,,1,50,0.5,
0.3,nan,1,60,,
,,1,60,,1.25
"""


def test_the_loss_is_the_epochs_mean_as_in_the_log(tmp_path: Path) -> None:
    """And not the mean of the few steps at which it was logged, which is 2 in the first epoch."""
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    curves = read_curves(path)
    assert curves["train/loss"] == {1: 1.75, 2: 1.25}
    assert curves["dev/CIDEr"] == {1: 0.2, 2: 0.3}
    assert curves["dev/loss"] == {1: 2.5}
    assert "train/loss_epoch" not in curves


def test_runs_of_before_there_was_such_a_mean_are_read_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step,train/loss\n0,0,3.0\n0,25,1.0\n1,50,0.5\n")
    assert read_curves(path)["train/loss"] == {1: 2.0, 2: 0.5}


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"metrics.csv: cannot be read \(No such file"):
        read_curves(tmp_path / "metrics.csv")
