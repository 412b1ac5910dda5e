"""Callbacks in real, tiny runs: what they log, and that they leave the training alone."""

import csv
import json
import logging
import warnings
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
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import captioning.training.callbacks
from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.data.images import load_rgb
from captioning.decoding import Greedy
from captioning.reporting.figures import attention_figure
from captioning.support.errors import CaptioningError
from captioning.training.callbacks import AttentionImages, EpochLog, MovingAverage, Patience

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*in eval mode"),
]

COLOURS = ("red", "green", "blue", "white", "black", "yellow")
DEV = ("01.png", "04.png", "10.png")  # of the 5 dev images, those that three are spread over


@dataclass(frozen=True, kw_only=True)
class Wavering(Greedy):
    """A way of decoding that draws from the global random state, as anybody's own might."""

    def choose(
        self, log_probs: Float[Tensor, "images captions words"], word: int
    ) -> Int[Tensor, "images captions"]:
        return super().choose(log_probs + 0.01 * torch.rand(()), word)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 15 drawn pictures, every third one of them of the dev split."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    entries = []
    for number in range(15):
        colour = COLOURS[number % len(COLOURS)]
        picture = Image.new("RGB", (60, 40), colour)
        picture.paste("grey", (number, number, number + 20, number + 15))
        picture.save(root / "images" / f"{number:02}.png")
        captions = [f"a {colour} picture", f"a grey box on {colour}", f"{colour} and a box"]
        entries.append(
            {
                "filename": f"{number:02}.png",
                "split": "val" if number % 3 == 1 else "train",
                "sentences": [{"raw": caption} for caption in captions],
            }
        )
    entries[0]["split"] = "test"
    content = {"dataset": "flickr8k", "images": entries}
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    return root


@dataclass
class Fitted:
    """A captioner after its training, and what it was trained on."""

    captioner: Captioner
    data: CaptionDataModule
    trainer: pl.Trainer


Fit = Callable[..., Fitted]


@pytest.fixture
def fit(root: Path, tmp_path: Path) -> Fit:
    def fit(
        *callbacks: pl.Callback,
        logger: Logger,
        model: str = "attn_lstm.AttentionLSTM",
        encoder: dict[str, Any] | None = None,
        decoding: str = "captioning.decoding.Greedy",
        epochs: int = 1,
        **trainer: Any,
    ) -> Fitted:
        pl.seed_everything(1, verbose=False)
        data = CaptionDataModule(
            str(root), min_count=1, batch_size=3, eval_batch_size=2, workers=0, cache=str(tmp_path)
        )
        data.read_text()
        captioner = Captioner(
            data.vocabulary.to_list(),
            encoder={
                "_target_": "captioning.models.encoders.vgg16.VGG16",
                "weights": "random",
                "image_size": 32,
                **(encoder or {}),
            },
            model={
                "_target_": f"captioning.models.{model}",
                "hidden_dim": 16,
                "embed_dim": 8,
                "dropout": 0.3,
            },
            optimizer={"_target_": "torch.optim.AdamW", "lr": 0.03},
            validation={"_target_": decoding, "max_length": 6},
        )
        data.open_features(captioner.encoder)
        if trainer.get("accelerator") == "gpu":
            data.load_resident(torch.device("cuda"))
        captioner.expect(data.references("dev"))
        settings = {
            "accelerator": "cpu",
            "max_epochs": epochs,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 2,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        loop = pl.Trainer(
            logger=logger,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            **settings | trainer,
        )
        loop.fit(captioner, datamodule=data)
        return Fitted(captioner.eval(), data, loop)

    return fit


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


def expected(fitted: Fitted, image: str, region: tuple[float, float, float, float]) -> np.ndarray:
    """The figure of a dev image, from its file alone, as a user of the model draws it."""
    captioner = fitted.captioner
    path = next(entry.path for entry in fitted.data.images("dev") if entry.id == image)
    picture = load_rgb(path)
    if fitted.data.store is None:
        inputs = captioner.encoder.preprocessing(picture)
    else:
        inputs = fitted.data.store.gather([image])[0]
    best = captioner(inputs[None])[0][0]
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
    callbacks = [AttentionImages(3, every=1), MovingAverage(decay=0.7)]
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
        MovingAverage(decay=0.7),
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


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_loss_that_is_no_number_stops_the_run_before_it_is_kept(
    fit: Fit, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever step it is, an epoch's last one included: no dev score is given of such weights."""
    plain = Captioner.losses

    def losses(self: Captioner, grid: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        parts = plain(self, grid, tokens)
        wrong = self.global_step == step
        return {name: value * float("nan") if wrong else value for name, value in parts.items()}

    monkeypatch.setattr(Captioner, "losses", losses)
    monkeypatch.setattr(Captioner, "validation_step", lambda *_: pytest.fail("was validated"))
    with pytest.raises(CaptioningError, match=rf"The loss is nan at step {step}: lower"):
        fit(logger=CSVLogger(tmp_path), num_sanity_val_steps=0)


def test_they_are_drawn_at_the_first_epoch_and_then_every_few(
    fit: Fit, tensorboard: TensorBoardLogger
) -> None:
    fitted = fit(AttentionImages(1, every=2), logger=tensorboard, epochs=4)
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
    for name, callbacks in (("without", []), ("with", [AttentionImages(3, every=1)])):
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

    monkeypatch.setattr(Captioner, "forward", no)
    monkeypatch.setattr(captioning.training.callbacks, "attention_figure", no)
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

    monkeypatch.setattr(captioning.training.callbacks, "load_rgb", gone)
    fit(AttentionImages(3), logger=tensorboard)
    assert sorted(images(tensorboard)) == [f"attention/{DEV[0]}", f"attention/{DEV[2]}"]
    own = [
        record.getMessage()
        for record in caplog.records
        if "captioning" in record.name and record.levelno >= logging.WARNING
    ]
    assert [message.split(":")[0] for message in own] == [f"No attention image of {DEV[1]}"]


@pytest.mark.parametrize(("count", "every"), [(0, 1), (1, 0), (-1, 2)])
def test_a_number_that_makes_no_sense_is_refused(count: int, every: int) -> None:
    with pytest.raises(CaptioningError, match=f"images={count} and every={every}"):
        AttentionImages(count, every)


def test_every_epoch_has_a_line_in_the_log(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="captioning.training.callbacks"):
        fit(EpochLog(), logger=CSVLogger(tmp_path, name="", version="logs"), epochs=2)
    lines = [record.getMessage() for record in caplog.records if "Epoch" in record.getMessage()]
    with (tmp_path / "logs" / "metrics.csv").open() as file:
        cider = [float(row["dev/CIDEr"]) for row in csv.DictReader(file) if row["dev/CIDEr"]]
    assert len(lines) == len(cider) == 2
    for epoch, (line, score) in enumerate(zip(lines, cider, strict=True), 1):
        assert line.startswith(f"Epoch {epoch} of 2: loss ")
        assert f"CIDEr {100 * score:.1f};" in line


class Score(pl.LightningModule):
    """Nothing but a dev score that never gets better."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.weight * batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("dev/CIDEr", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_run_stops_where_its_patience_ends(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(torch.ones(2, 1))

    def epochs(patience: int, resume: Path | None) -> int:
        trainer = pl.Trainer(
            max_epochs=9, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
            callbacks=[
                Patience("dev/CIDEr", mode="max", patience=patience),
                ModelCheckpoint(
                    tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False
                ),
            ],
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(Score(), loader, loader, ckpt_path=resume)
        return trainer.current_epoch

    assert epochs(2, None) == 3
    assert epochs(2, tmp_path / "last.ckpt") == 3
    assert epochs(4, tmp_path / "last.ckpt") == 5
