"""Figures of attention maps, for loggers that show images."""

import logging
from contextlib import AbstractContextManager
from io import BytesIO
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng

from captioning.captioner import Captioner
from captioning.data.dataset import CaptionDataset
from captioning.data.images import load_rgb
from captioning.reporting.figures import attention_figure, region_of
from captioning.support.errors import CaptioningError
from captioning.training.callbacks.dev_images import (
    Images,
    check_names,
    check_settings,
    choose,
    dev_dataset,
)

KEY = "callbacks.attention_images"

log = logging.getLogger(__name__)


class AttentionImages(pl.Callback):
    """Logs figures with the attention map of each word, to show how attention changes in training.

    A fixed set of images of the dev split is decoded as in validation, with the weights that
    validation uses (the averaged ones, if there is an average). The figures go to TensorBoard,
    wandb and mlflow as ``attention/<image id>``. Without such a logger, or for a model without
    attention, the callback does nothing. It does not affect training: with or without it, a run
    ends with the same weights.

    Args:
        images: the number of images, which are spread evenly over the dev split; or their names.
        every_n_epochs: the number of epochs between two sets of figures, beginning with the first
            epoch.
    """

    def __init__(self, images: Images = 4, every_n_epochs: int = 2) -> None:
        check_settings(KEY, images, every_n_epochs)
        self.images = images
        self.every_n_epochs = every_n_epochs

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse a name that no image has before an epoch is spent."""
        check_names(trainer, self.images, KEY)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw and log the figures, before the first batch of a validation.

        In the hooks at the start and the end of the validation epoch, it would depend on the order
        of the callbacks whether WeightAveraging has swapped in the averaged weights.
        """
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if batch_idx or not fitting or trainer.current_epoch % self.every_n_epochs:
            return
        loggers = [logger for logger in trainer.loggers if takes_images(logger)]
        if not loggers or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Captioner)
        dataset = dev_dataset(trainer)
        with isolate_rng():
            drawn = self.draw(pl_module, dataset, trainer.precision_plugin.val_step_context())
        for image, pixels in drawn.items():
            for logger in loggers:
                log_image(logger, f"attention/{image}", pixels, trainer.global_step)

    def draw(
        self,
        captioner: Captioner,
        dataset: CaptionDataset,
        precision: AbstractContextManager[None],
    ) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """The figures by image id; an image file that cannot be read is reported in the log.

        Args:
            captioner: the model.
            dataset: the dev images.
            precision: the context in which the captions are decoded. The grids are read outside
                of it, as training reads them: autocast for a CPU takes none in float16.
        """
        indices = choose(dataset.images, self.images, KEY)
        batch = dataset.__getitems__(indices)
        encoder, drawn = captioner.encoder, {}
        with precision:
            found = captioner.generate(
                batch.images.to(captioner.device), captioner.validation, views=batch.views
            )
        for index, (best, *_) in zip(indices, found, strict=True):
            if best.attention is None:
                continue
            image = dataset.images[index]
            words = captioner.vocabulary.decode(best.tokens).split()
            maps = best.attention.float().cpu().numpy().reshape(-1, *encoder.grid_size)
            try:
                picture = load_rgb(image.path)
                region = region_of(encoder.preprocessing.resize, picture.size)
                drawn[image.id] = rasterise(attention_figure(picture, words, maps, region=region))
            except CaptioningError as error:
                log.warning("No attention image of %s: %s", image.id, error)
        return drawn


def takes_images(logger: Logger) -> bool:
    """Whether :func:`log_image` supports a logger."""
    return isinstance(logger, TensorBoardLogger | WandbLogger | MLFlowLogger)


def log_image(
    logger: Logger, tag: str, pixels: UInt8[np.ndarray, "height width 3"], step: int
) -> None:
    """Log an image to a logger that :func:`takes_images`."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [pixels], step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, key=tag, step=step)


def rasterise(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Render a figure as pixels."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))
