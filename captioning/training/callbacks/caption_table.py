"""A table of dev images and their captions, for loggers that show tables."""

import logging
from pathlib import Path

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn

from captioning.captioner import Captioner
from captioning.data.images import load_rgb
from captioning.support.errors import CaptioningError
from captioning.training.callbacks.dev_images import (
    Images,
    check_names,
    check_settings,
    choose,
    dev_dataset,
)

KEY = "callbacks.caption_table"
TAG = "dev/captions"
PICTURE_SIZE = 224  # pixels, of the longer side

log = logging.getLogger(__name__)


class CaptionTable(pl.Callback):
    """Logs what the model says about a few dev images, to show how captions change in training.

    The captions are those of the validation of the epoch; nothing is decoded again. wandb gets a
    table with the photographs, TensorBoard a text and mlflow a file, in Markdown. Other loggers get
    nothing.

    Args:
        images: the number of images, which are spread evenly over the dev split; or their names.
        every_n_epochs: the number of epochs between two tables, beginning with the first epoch.
    """

    def __init__(self, images: Images = 8, every_n_epochs: int = 1) -> None:
        check_settings(KEY, images, every_n_epochs)
        self.images = images
        self.every_n_epochs = every_n_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a name that no image has before an epoch is spent."""
        check_names(trainer, self.images, KEY)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the table, after the captions of all processes have been scored."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or trainer.current_epoch % self.every_n_epochs:
            return
        loggers = [
            logger
            for logger in trainer.loggers
            if isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger)
        ]
        if not loggers or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Captioner)
        scores = pl_module.caption_scores
        assert scores is not None
        dev = dev_dataset(trainer).images
        shown = [dev[index] for index in choose(dev, self.images, KEY)]
        # With trainer.limit_val_batches, not every image has been captioned.
        rows = [
            (image.id, image.path, scores.captions[image.id], list(scores.references[image.id]))
            for image in shown
            if image.id in scores.captions
        ]
        epoch = trainer.current_epoch + 1
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                _to_wandb(logger, rows, epoch, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(TAG, markdown(rows), trainer.global_step)
            else:
                file = f"{TAG}/epoch_{epoch:03}.md"
                logger.experiment.log_text(logger.run_id, markdown(rows), file)


Row = tuple[str, Path, str, list[str]]
"""Image, file, caption, references."""


def markdown(rows: list[Row]) -> str:
    """The captions and the references of each image as a table in Markdown."""
    lines = ["| image | caption | references |", "| --- | --- | --- |"]
    for image, _, caption, references in rows:
        cells = [each.replace("|", r"\|") for each in (image, caption, " / ".join(references))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _to_wandb(logger: WandbLogger, rows: list[Row], epoch: int, step: int) -> None:
    data = [
        [epoch, image, _picture(image, path), caption, "\n".join(references)]
        for image, path, caption, references in rows
    ]
    columns = ["epoch", "image", "picture", "caption", "references"]
    logger.log_table(TAG, columns=columns, data=data, step=step)


def _picture(image: str, path: Path) -> object:
    """The photograph for wandb; None, with a line in the log, if it cannot be read."""
    import wandb

    try:
        picture = load_rgb(path)
    except CaptioningError as error:
        log.warning("No picture of %s: %s", image, error)
        return None
    picture.thumbnail((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.LANCZOS)
    return wandb.Image(picture)
