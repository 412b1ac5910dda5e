"""Images of the attention: what is drawn, when, and that training is left alone."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import captioning.training.callbacks.attention_images
from captioning.captioner import Captioner
from captioning.data.images import load_rgb
from captioning.decoding import Greedy
from captioning.reporting.figures import attention_figure
from captioning.support.errors import CaptioningError
from captioning.training.callbacks.attention_images import AttentionImages
from captioning.training.callbacks.ema import EMA

Fit = Callable[..., Any]
"""The fixture ``fit`` of conftest.py."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]

DEV = ("01.png", "04.png", "10.png")  # of the 5 dev images, those that three are spread over


@dataclass(frozen=True, kw_only=True)
class Wavering(Greedy):
    """A way of decoding that draws from the global random state, as anybody's own might."""

    def choose(
        self, log_probs: Float[Tensor, "images captions words"], word: int
    ) -> Int[Tensor, "images captions"]:
        return super().choose(log_probs + 0.01 * torch.rand(()), word)


@pytest.fixture
def tensorboard(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path, name="", version="tensorboard")


def images(logger: TensorBoardLogger) -> dict[str, dict[int, np.ndarray]]:
    """The images that TensorBoard would show: pixels by tag and step."""
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0})
    events.Reload()
    return {
        tag: {
            event.step: np.asarray(Image.open(BytesIO(event.encoded_image_string)))
            for event in events.Images(tag)
        }
        for tag in events.Tags()["images"]
    }


def expected(fitted: Any, image: str, region: tuple[float, float, float, float]) -> np.ndarray:
    """The figure of a dev image, from its file alone, as a user of the model draws it."""
    captioner = fitted.captioner
    path = next(entry.path for entry in fitted.data.images("dev") if entry.id == image)
    picture = load_rgb(path)
    if fitted.data.store is None:
        inputs = captioner.encoder.preprocessing(picture)
    else:
        inputs = fitted.data.store.gather([image])[0]
    best = captioner.generate(inputs[None], captioner.validation, attention=True)[0][0]
    assert best.attention is not None
    figure = attention_figure(
        picture,
        captioner.vocabulary.decode(best.tokens).split(),
        best.attention.reshape(-1, 2, 2).numpy(),
        region=region,
    )
    file = BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


@pytest.mark.parametrize(("trainable", "ema_first"), [(False, False), (True, True)])
def test_the_images_are_those_of_the_averaged_weights(
    fit: Fit, tensorboard: TensorBoardLogger, trainable: bool, ema_first: bool
) -> None:
    callbacks = [AttentionImages(3, every_n_epochs=1), EMA(decay=0.7)]
    fitted = fit(
        *(reversed(callbacks) if ema_first else callbacks),
        logger=tensorboard,
        encoder={"resize": "crop", "trainable": trainable},
        epochs=2,
    )
    logged = images(tensorboard)
    assert sorted(logged) == [f"attention/{image}" for image in DEV]
    # Of 60 x 40 pixels, the encoder saw the 35 x 35 in the middle.
    region = (12.5 / 60, 2.5 / 40, 47.5 / 60, 37.5 / 40)
    # When training has ended, the averaged weights of the last validation are the model's own.
    for image in DEV:
        last = logged[f"attention/{image}"][fitted.trainer.global_step]
        wanted = expected(fitted, image, region).astype(int)
        # A batch of three rounds otherwise than one alone, which may tip a pixel.
        assert last.shape == wanted.shape
        assert abs(last - wanted).max() <= 1


def test_they_are_drawn_at_the_first_epoch_and_then_every_few(
    fit: Fit, tensorboard: TensorBoardLogger
) -> None:
    fitted = fit(AttentionImages(1, every_n_epochs=2), logger=tensorboard, epochs=4)
    an_epoch = fitted.trainer.global_step // 4
    (steps,) = images(tensorboard).values()
    assert list(steps) == [an_epoch, 3 * an_epoch]
    first, last = steps.values()
    assert first.shape != last.shape or not np.array_equal(first, last)


def test_no_more_are_drawn_than_there_are(fit: Fit, tensorboard: TensorBoardLogger) -> None:
    fitted = fit(AttentionImages(99), logger=tensorboard)
    dev = {f"attention/{image.id}" for image in fitted.data.images("dev")}
    assert set(images(tensorboard)) == dev
    assert len(dev) == 5


def test_training_is_not_disturbed(fit: Fit, tmp_path: Path) -> None:
    ended = []
    for name, callbacks in (("without", []), ("with", [AttentionImages(3, every_n_epochs=1)])):
        logger = TensorBoardLogger(tmp_path, name="", version=name)
        fitted = fit(
            *callbacks,
            logger=logger,
            decoding=f"{Wavering.__module__}.Wavering",
            epochs=2,
            val_check_interval=0.5,  # dropout is seeded anew at every epoch, but not here
        )
        assert len(images(logger)) == 3 * len(callbacks)
        ended.append(fitted.captioner.state_dict())
    without, with_images = ended
    assert without.keys() == with_images.keys()
    assert all(torch.equal(without[name], with_images[name]) for name in without)


def test_a_model_without_attention_gets_no_images(fit: Fit, tensorboard: TensorBoardLogger) -> None:
    fit(AttentionImages(), logger=tensorboard, model="lstm.LSTM")
    assert images(tensorboard) == {}


def test_without_a_logger_for_images_nothing_is_done(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no(*_: object, **__: object) -> None:
        raise AssertionError("was called")

    monkeypatch.setattr(AttentionImages, "draw", no)
    monkeypatch.setattr(captioning.training.callbacks.attention_images, "attention_figure", no)
    fit(AttentionImages(), logger=CSVLogger(tmp_path, name="", version="logs"))
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["metrics.csv"]


def test_other_processes_than_the_first_draw_nothing(
    fit: Fit, tensorboard: TensorBoardLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit(AttentionImages(), logger=tensorboard)
    assert images(tensorboard) == {}


def test_validating_without_training_draws_nothing(
    fit: Fit, tensorboard: TensorBoardLogger
) -> None:
    callback = AttentionImages(1)
    fitted = fit(callback, logger=tensorboard, epochs=0)
    fitted.trainer.validate(fitted.captioner, fitted.data, verbose=False)
    assert images(tensorboard) == {}


def test_wandb_gets_the_same_images_at_the_same_step(fit: Fit) -> None:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=logged.append, config=SimpleNamespace(update=lambda *_, **__: None))
    logger = WandbLogger(experiment=run)  # type: ignore[arg-type]
    fitted = fit(AttentionImages(3), logger=logger)
    found = {
        tag: (entry["trainer/global_step"], entry[tag])
        for entry in logged
        for tag in entry
        if tag.startswith("attention/")
    }
    assert sorted(found) == [f"attention/{image}" for image in DEV]
    for image in DEV:
        step, (picture,) = found[f"attention/{image}"]
        assert step == fitted.trainer.global_step
        pixels = np.asarray(picture.image.convert("RGB"))
        assert np.array_equal(pixels, expected(fitted, image, (0.0, 0.0, 1.0, 1.0)))


def test_a_photograph_that_is_gone_is_named_and_the_others_are_drawn(
    fit: Fit,
    tensorboard: TensorBoardLogger,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(path: Path) -> Image.Image:
        if path.name == DEV[1]:
            raise CaptioningError(f"{path} cannot be read (gone).")
        return load_rgb(path)

    monkeypatch.setattr(captioning.training.callbacks.attention_images, "load_rgb", gone)
    fit(AttentionImages(3), logger=tensorboard)
    assert sorted(images(tensorboard)) == [f"attention/{DEV[0]}", f"attention/{DEV[2]}"]
    own = [
        record.getMessage()
        for record in caplog.records
        if "captioning" in record.name and record.levelno >= logging.WARNING
    ]
    assert [message.split(":")[0] for message in own] == [f"No attention image of {DEV[1]}"]


def test_chosen_images_are_drawn_every_epoch(fit: Fit, tensorboard: TensorBoardLogger) -> None:
    fitted = fit(AttentionImages(["13.png", "04"], 1), logger=tensorboard, epochs=3)
    logged = images(tensorboard)
    assert set(logged) == {"attention/13.png", "attention/04.png"}
    an_epoch = fitted.trainer.global_step // 3
    assert all(list(each) == [an_epoch, 2 * an_epoch, 3 * an_epoch] for each in logged.values())


def test_grids_of_half_precision_are_drawn_in_mixed_precision(
    fit: Fit, tensorboard: TensorBoardLogger
) -> None:
    fitted = fit(AttentionImages(2), logger=tensorboard, precision="bf16-mixed")
    assert fitted.data.store.gather(["01.png"]).dtype == torch.float16
    assert len(images(tensorboard)) == 2


def test_a_name_that_no_dev_image_has_is_refused_before_training(
    fit: Fit, tensorboard: TensorBoardLogger, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    monkeypatch.setattr(Captioner, "training_step", lambda *_: steps.append(1))
    refusal = r"\.images: the dev split has no image 14\.png; did you mean .*\.png\?$"
    with pytest.raises(CaptioningError, match=refusal):
        fit(AttentionImages(["01.png", "14.png"]), logger=tensorboard)
    assert steps == []


@pytest.mark.parametrize(("count", "every"), [(0, 1), (1, 0), (-1, 2), ([], 1)])
def test_a_number_that_makes_no_sense_is_refused(count: Any, every: int) -> None:
    with pytest.raises(CaptioningError, match=re.escape(f"images={count} must be at least 1")):
        AttentionImages(count, every)
