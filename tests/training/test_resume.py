"""What a run can go on from, and what it is refused."""

import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from captioning.captioner import Captioner
from captioning.checkpoints import FORMAT
from captioning.support.errors import CaptioningError
from captioning.training.resume import check_resumable, checkpoint_to_resume

WORDS = ["a", "dog", "runs"]
CONFIG = {"seed": 0, "optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.001}}


class Stub(Captioner):
    """As much of a captioner as is looked at."""

    encoder: Any = None  # which is a property of captioners

    def __init__(
        self, words: list[str], encoder: str, size: int, data: str, config: dict[str, Any]
    ) -> None:
        pl.LightningModule.__init__(self)
        self.__dict__["vocabulary"] = SimpleNamespace(to_list=lambda: words, words=words)
        self.__dict__["encoder"] = SimpleNamespace(
            name="vgg16", weights_source="a.pth", fingerprint=encoder
        )
        self.run = {"config": config, "data": data}
        self.size = size

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"decoder.weight": torch.zeros(self.size, 2)}


def captioner(
    words: Sequence[str] = WORDS,
    encoder: str = "e1",
    size: int = 4,
    data: str = "d1",
    config: dict[str, Any] = CONFIG,
) -> Stub:
    return Stub([*words], encoder, size, data, config)


def saved(path: Path, *, is_last_batch: bool = True, weights_alone: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = {"is_last_batch": is_last_batch}
    torch.save(
        {
            "format": FORMAT,
            "run": {"config": CONFIG, "data": "d1"},
            "hyper_parameters": {"vocabulary": WORDS},
            "encoder": {"fingerprint": "e1", "state_dict": {}},
            "state_dict": {"decoder.weight": torch.ones(4, 2)},
            "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
            **({} if weights_alone else {"optimizer_states": []}),
        },
        path,
    )
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return saved(tmp_path / "last.ckpt")


def test_the_same_run_goes_on(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    check_resumable(checkpoint, captioner())
    assert not caplog.records


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"encoder": "e2"}, ["another encoder than vgg16", "a.pth", "the same encoder"]),
        ({"words": ["a", "cat"]}, ["another vocabulary (3 words)", "(2)", "data.min_count"]),
        ({"size": 5}, ["another model", "decoder.weight", "model.*"]),
        ({"data": "d2"}, ["other images, captions or splits", "data.root"]),
        ({"config": CONFIG | {"seed": 1}}, ["seed=1 in place of 0", "the same"]),
    ],
)
def test_another_one_is_refused(
    checkpoint: Path, changed: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(CaptioningError) as error:
        check_resumable(checkpoint, captioner(**changed))
    assert all(part in str(error.value) for part in [f"resume={checkpoint}", *parts]), error.value


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CaptioningError, match=r"nothing.ckpt: no such file"):
        check_resumable(tmp_path / "nothing.ckpt", captioner())


def test_a_checkpoint_from_within_an_epoch_is_said_not_to_go_on_exactly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_resumable(saved(tmp_path / "step.ckpt", is_last_batch=False), captioner())
    assert "step.ckpt was saved within an epoch" in caplog.text


def test_weights_alone_are_refused_with_the_two_ways_to_go_on(tmp_path: Path) -> None:
    best = saved(tmp_path / "best.ckpt", weights_alone=True)
    with pytest.raises(CaptioningError) as error:
        check_resumable(best, captioner())
    assert all(part in str(error.value) for part in (str(best), "last.ckpt", "init_from="))


def test_a_job_with_a_damaged_last_checkpoint_says_that_it_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The best one has no state of the optimiser, without which nothing continues exactly."""
    last = saved(tmp_path / "checkpoints" / "last.ckpt")
    saved(tmp_path / "checkpoints" / "best.ckpt", weights_alone=True)
    last.write_bytes(last.read_bytes()[:-100])
    assert checkpoint_to_resume(tmp_path) is None
    assert str(last) in caplog.text
    assert "starts again from its beginning" in caplog.text


def test_a_job_of_an_earlier_version_falls_back_to_its_best_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert checkpoint_to_resume(tmp_path) is None
    last, best = (saved(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    assert checkpoint_to_resume(tmp_path) == last
    assert not caplog.records
    last.write_bytes(last.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        assert checkpoint_to_resume(tmp_path) == best
    assert str(last) in caplog.text
    assert f"continues from {best}" in caplog.text
    best.write_bytes(b"")
    assert checkpoint_to_resume(tmp_path) is None
    assert "starts again" in caplog.text
