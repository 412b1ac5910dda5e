"""The table of dev images and their captions, as each logger shows it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from captioning.support.errors import CaptioningError
from captioning.training.callbacks.caption_table import CaptionTable, markdown
from captioning.training.callbacks.ema import EMA

Fit = Callable[..., Any]
"""The fixture ``fit`` of conftest.py."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]


def captions_of(fitted: Any) -> dict[str, str]:
    """What the trained model says about the dev images, decoded anew as in validation."""
    fitted.data.setup("validate")
    found = {}
    for batch in fitted.data.val_dataloader():
        hypotheses = fitted.captioner.generate(batch.images, fitted.captioner.validation)
        texts = [fitted.captioner.vocabulary.decode(best.tokens) for best, *_ in hypotheses]
        found |= dict(zip(batch.ids, texts, strict=True))
    return found


def test_wandb_gets_photographs_captions_and_references_after_every_epoch(fit: Fit) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=logged.append, config=SimpleNamespace(update=lambda *_, **__: None))
    logger = WandbLogger(experiment=run)  # type: ignore[arg-type]
    table = CaptionTable(["10.png", "01.png"])
    fitted = fit(table, EMA(decay=0.7), logger=logger, epochs=2)
    tables = [entry for entry in logged if "dev/captions" in entry]
    an_epoch = fitted.trainer.global_step // 2
    assert [entry["trainer/global_step"] for entry in tables] == [an_epoch, 2 * an_epoch]
    last = tables[-1]["dev/captions"]
    assert last.columns == ["epoch", "image", "picture", "caption", "references"]
    assert [row[:2] for row in last.data] == [[2, "10.png"], [2, "01.png"]]
    # When training has ended, the averaged weights of the last validation are the model's own.
    said, references = captions_of(fitted), fitted.data.references("dev")
    for _, image, picture, caption, listed in last.data:
        assert caption == said[image]
        assert listed.splitlines() == references[image]
        path = next(each.path for each in fitted.data.images("dev") if each.id == image)
        shown = np.asarray(picture.image.convert("RGB"))
        assert np.array_equal(shown, np.asarray(Image.open(path)))  # of 60 x 40, not made smaller


def test_tensorboard_gets_a_text(fit: Fit, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    fitted = fit(CaptionTable(2, every_n_epochs=2), logger=logger, epochs=3)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    found = events.Tensors("dev/captions/text_summary")
    assert [event.step for event in found] == [
        epoch * fitted.trainer.global_step // 3 for epoch in (1, 3)
    ]
    (text,) = found[-1].tensor_proto.string_val
    lines = text.decode().splitlines()
    assert lines[:2] == ["| image | caption | references |", "| --- | --- | --- |"]
    said = captions_of(fitted)
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        [f"| {image}", said[image]] for image in ("01.png", "07.png")
    ]


def test_a_bar_does_not_end_a_cell_of_markdown() -> None:
    row = ("a.jpg", Path("a.jpg"), "a|b", ["c", "d|e"])
    assert markdown([row]).splitlines()[-1] == r"| a.jpg | a\|b | c / d\|e |"


def test_a_mistyped_name_is_refused(fit: Fit, tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    with pytest.raises(CaptioningError, match=r"caption_table\.images: .* no image 1\.png"):
        fit(CaptionTable(["1.png"]), logger=logger)
