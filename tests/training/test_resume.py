"""What a run can go on from, and what it is refused."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from captioning.captioner import FORMAT, Captioner
from captioning.support.errors import CaptioningError
from captioning.training.resume import check_resumable

WORDS = ["a", "dog", "runs"]


class Stub(Captioner):
    """As much of a captioner as is looked at."""

    encoder: Any = None  # which is a property of captioners

    def __init__(self, words: list[str], encoder: str, size: int, image_size: int) -> None:
        pl.LightningModule.__init__(self)
        self.__dict__["vocabulary"] = SimpleNamespace(to_list=lambda: words, words=words)
        self.__dict__["encoder"] = SimpleNamespace(
            name="vgg16", weights_source="a.pth", fingerprint=encoder
        )
        self.size = size
        self._set_hparams({"encoder": {"image_size": image_size, "weights": "moved.pth"}})

    def state_dict(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"decoder.weight": torch.zeros(self.size, 2)}


def captioner(
    words: Sequence[str] = WORDS, encoder: str = "e1", size: int = 4, image_size: int = 32
) -> Stub:
    return Stub([*words], encoder, size, image_size)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    torch.save(
        {
            "format": FORMAT,
            "hyper_parameters": {
                "vocabulary": WORDS,
                "encoder": {"image_size": 32, "weights": "a.pth"},
            },
            "encoder": {"fingerprint": "e1", "state_dict": {"w": torch.zeros(1)}},
            "state_dict": {"decoder.weight": torch.ones(4, 2)},
        },
        path,
    )
    return path


def test_the_same_run_goes_on(checkpoint: Path) -> None:
    check_resumable(checkpoint, captioner())


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"encoder": "e2"}, ["another encoder than vgg16", "a.pth", "the same encoder"]),
        ({"image_size": 48}, ["another encoder", "encoder.image_size=32 in place of 48"]),
        ({"words": ["a", "cat"]}, ["another vocabulary (3 words)", "(2)", "data.min_count"]),
        ({"size": 5}, ["another model", "decoder.weight", "model.*"]),
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
