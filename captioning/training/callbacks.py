"""What a training run tells about itself: a line an epoch, and pictures of where it looks."""

import logging
import time
from io import BytesIO
from itertools import chain
from typing import Any

import numpy as np
import pytorch_lightning as pl
from jaxtyping import UInt8
from matplotlib.figure import Figure
from PIL import Image
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.weight_averaging import WeightAveraging
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.seed import isolate_rng
from torch.optim.swa_utils import get_ema_multi_avg_fn

from captioning.captioner import Captioner
from captioning.data.dataset import CaptionDataset
from captioning.data.images import load_rgb
from captioning.reporting.figures import attention_figure, region_of
from captioning.support.errors import CaptioningError

log = logging.getLogger(__name__)


class Patience(EarlyStopping):
    """Early stopping that a resumed run takes up where it was.

    Lightning's trains an epoch more after it had stopped, and keeps the patience of the checkpoint.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})


class MovingAverage(WeightAveraging):
    """An exponential moving average of the weights: what is validated, kept and scored.

    Lightning's own leaves it in the CPU's memory, makes a new tensor of each weight at every step,
    and asks a GPU each time how many it has averaged, which waits until the GPU has nothing to do.

    Args:
        decay: the share of the average that stays at a step.
    """

    def __init__(self, decay: float) -> None:
        self.average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(multi_avg_fn=self.average)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device  # where the model is not, yet
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert self._average_model is not None
        tensors = (  # once: finding them takes as long as averaging them
            chain(module.parameters(), module.buffers())
            for module in (self._average_model.module, pl_module)
        )
        pairs = list(zip(*tensors, strict=True))
        weights = [pair for pair in pairs if pair[0].is_floating_point()]
        self.weights = [list(each) for each in zip(*weights, strict=True)]
        self.counts = [pair for pair in pairs if not pair[0].is_floating_point()]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if self._latest_update_step == 0:
            super().on_train_batch_end(trainer, pl_module, *args)  # copies
        elif trainer.global_step > self._latest_update_step:
            self.average(*self.weights, 0)
            for average, count in self.counts:
                average.copy_(count)
            self._latest_update_step = trainer.global_step


class EpochLog(pl.Callback):
    """A line for every epoch, for the log file: losses, dev scores, and the time left."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start, self.first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        done = trainer.current_epoch + 1
        took = (time.monotonic() - self.start) / (done - self.first)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        log.info(
            "Epoch %d of %d: loss %.3f, dev BLEU-4 %.1f, CIDEr %.1f; %.0f s an epoch, at most "
            "%.0f min left",
            *(done, trainer.max_epochs or done, values.get("train/loss", float("nan"))),
            *(100 * values.get(f"dev/{name}", float("nan")) for name in ("BLEU-4", "CIDEr")),
            *(took, took * ((trainer.max_epochs or done) - done) / 60),
        )


class AttentionImages(pl.Callback):
    """Logs where the model looks for each word, so that one sees its attention sharpen.

    A few images of the validation split, always the same and spread evenly over it, are decoded
    as in validation, with the weights that validation sees (the averaged ones, where there are).
    Their figures go to TensorBoard and to wandb as ``attention/<image id>``. Without such a logger
    nothing is done, and of a model without attention nothing is drawn. Training is not disturbed:
    with or without this callback it ends with the same weights.

    Args:
        images: how many.
        every: epochs from one drawing to the next; the first epoch is drawn.
    """

    def __init__(self, images: int = 4, every: int = 2) -> None:
        if images < 1 or every < 1:
            raise CaptioningError(
                f"AttentionImages: images={images} and every={every} must both be at least 1."
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
        """Draw, before the first batch.

        At the start and at the end of the validation epoch, it would depend on the order of the
        callbacks whether WeightAveraging has its weights in place.
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
        """The figures, by image id; an image that cannot be drawn is named in the log."""
        indices = sorted({i * len(dataset) // self.images for i in range(self.images)})
        inputs = dataset.__getitems__(indices).images.to(captioner.device)
        encoder, drawn = captioner.encoder, {}
        for index, (best, *_) in zip(indices, captioner(inputs), strict=True):
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
    """Whether :func:`log_image` knows how to give images to a logger."""
    return isinstance(logger, TensorBoardLogger | WandbLogger)


def log_image(
    logger: Logger, tag: str, pixels: UInt8[np.ndarray, "height width 3"], step: int
) -> None:
    """Give an image to a logger that takes images."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(tag, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(tag, [pixels], step)


def rasterise(figure: Figure) -> UInt8[np.ndarray, "height width 3"]:
    """A figure's pixels."""
    file = BytesIO()
    figure.savefig(file, format="png")
    return np.asarray(Image.open(file).convert("RGB"))
