"""Figures of attention maps, for loggers that show images."""

import logging
from io import BytesIO
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng

from captioning.captioner import Captioner
from captioning.data.dataset import CaptionDataset
from captioning.data.images import load_rgb
from captioning.reporting.figures import attention_figure, region_of
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


class AttentionImages(pl.Callback):
    """Logs figures with the attention map of each word, to show how attention changes in training.

    A fixed set of images, spread evenly over the validation split, is decoded as in validation,
    with the weights that validation uses (the averaged ones, if there is an average). The figures
    go to TensorBoard and wandb as ``attention/<image id>``. Without such a logger, or for a model
    without attention, the callback does nothing. It does not affect training: with or without it,
    a run ends with the same weights.

    Args:
        images: the number of images.
        every: the number of epochs between two sets of figures, beginning with the first epoch.
    """

    def __init__(self, images: int = 4, every: int = 2) -> None:
        if images < 1 or every < 1:
            raise CaptioningError(
                f"callbacks.attention_images: images={images} and every={every} must both be at "
                "least 1."
            )
        self.images = images
        self.every = every

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
        if batch_idx or not fitting or trainer.current_epoch % self.every:
            return
        loggers = [logger for logger in trainer.loggers if takes_images(logger)]
        if not loggers or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Captioner)
        dataset = getattr(trainer.val_dataloaders, "dataset", None)
        assert isinstance(dataset, CaptionDataset)
        with isolate_rng(), trainer.precision_plugin.val_step_context():
            drawn = self.draw(pl_module, dataset)
        for image, pixels in drawn.items():
            for logger in loggers:
                log_image(logger, f"attention/{image}", pixels, trainer.global_step)

    def draw(
        self, captioner: Captioner, dataset: CaptionDataset
    ) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
        """The figures by image id; an image file that cannot be read is reported in the log."""
        indices = sorted({i * len(dataset) // self.images for i in range(self.images)})
        batch = dataset.__getitems__(indices)
        encoder, drawn = captioner.encoder, {}
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
    return isinstance(logger, TensorBoardLogger | WandbLogger)


def log_image(
    logger: Logger, tag: str, pixels: UInt8[np.ndarray, "height width 3"], step: int
) -> None:
    """Log an image to a logger that :func:`takes_images`."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [pixels], step)


def rasterise(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """Render a figure as pixels."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))
