"""logs/metrics.csv after kills, full disks and junk."""

import csv
import errno
import os
from pathlib import Path

import pytest
import torch

from captioning.checkpoints import FORMAT
from captioning.support.errors import CaptioningError
from captioning.training.loggers import make_csv_logger
from captioning.training.metrics_file import MetricsFile, read_rows


def checkpoint(folder: Path, **content: object) -> str:
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    model: dict[str, object] = {"hyper_parameters": {"vocabulary": ["dog"]}, "state_dict": {}}
    encoder = {"state_dict": {}}
    saved = {"format": FORMAT, **model, "encoder": encoder, "global_step": 3, "epoch": 0}
    torch.save(saved | content, path)
    return str(path)


def logged(folder: Path, steps: int = 4) -> Path:
    logger = make_csv_logger(folder, None)
    for step in range(steps):
        logger.log_metrics({"train/loss": step / 4}, step)
    logger.save()
    return folder / "logs" / "metrics.csv"


def losses(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["step"], row["train/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_while_a_run_is_resumed_loses_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whatever the moment, the file holds the rows of before."""
    path, replace = logged(tmp_path), Path.replace

    class Killed(BaseException):
        pass

    def killed(source: Path, target: Path) -> Path:
        if when == "after":
            replace(source, target)
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda self, **_: None if self != path else 1 / 0)
    with pytest.raises(Killed):
        make_csv_logger(tmp_path, checkpoint(tmp_path))
    assert losses(path)[:3] == [("0", "0.0"), ("1", "0.25"), ("2", "0.5")]


@pytest.mark.parametrize("keep", range(1, 8))
def test_a_cut_last_row_is_left_out(tmp_path: Path, keep: int) -> None:
    path = logged(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:-keep])
    again = make_csv_logger(tmp_path, checkpoint(tmp_path))
    again.log_metrics({"train/loss": 9.0}, 3)
    again.save()
    assert losses(path) == [("0", "0.0"), ("1", "0.25"), ("3", "9.0")]


@pytest.mark.parametrize(
    "junk", [b"", b"\0\xff\xfe" * 99, b'"', b"step\r\nx\r\n-1\r\n" + b"9" * 9999]
)
def test_junk_does_not_keep_a_run_from_going_on(tmp_path: Path, junk: bytes) -> None:
    path = logged(tmp_path, 3)
    path.write_bytes(junk)
    again = make_csv_logger(tmp_path, checkpoint(tmp_path))
    again.log_metrics({"train/loss": 9.0}, 3)
    again.save()
    assert losses(path) == [("3", "9.0")]


def test_rows_with_junk_between_them_are_kept(tmp_path: Path) -> None:
    path = logged(tmp_path, 3)
    first, *rest = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + rest[0] + b"a\0b\n,,,,\n" + rest[1] + rest[2])
    assert [row["step"] for row in read_rows(path)] == ["0", "1", "2"]


def test_means_of_an_epoch_that_a_kill_kept_from_the_file_come_from_the_checkpoint(
    tmp_path: Path,
) -> None:
    path = logged(tmp_path, 3)
    last = checkpoint(tmp_path, epoch_means={"train/loss_epoch": 0.375})
    for _ in range(2):  # they are added once
        make_csv_logger(tmp_path, last)
        rows = [row for row in read_rows(path) if row["train/loss_epoch"]]
        assert [(row["step"], row["epoch"], row["train/loss_epoch"]) for row in rows] == [
            ("2", "0", "0.375")
        ]


def test_a_run_that_goes_on_in_a_new_folder_has_all_rows_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    logged(old)
    make_csv_logger(new, checkpoint(old))
    assert len(losses(new / "logs" / "metrics.csv")) == 3
    assert len(losses(old / "logs" / "metrics.csv")) == 4


def test_a_new_value_does_not_rewrite_the_file_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = logged(tmp_path, 2)
    file = MetricsFile(tmp_path / "logs", read_rows(path))
    file.log_metrics({"dev/CIDEr": 1.0}, 2)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CaptioningError, match=r"metrics.csv cannot be written .No space left"):
            file.save()
    assert losses(path) == [("0", "0.0"), ("1", "0.25")]
