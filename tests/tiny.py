"""A captioner that trains in no time, and what its tests need besides."""

import runpy
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from captioning.captioner import Captioner
from captioning.data.batch import Batch
from captioning.data.datamodule import CaptionDataModule
from captioning.models.decoders.attn_lstm import AttentionLSTM
from captioning.models.decoders.base import Decoder
from captioning.models.encoders.torchvision import TorchvisionEncoder
from captioning.objectives import CrossEntropy, Objective
from captioning.support.special_tokens import END, PAD, START

QUIET = (
    "ignore:.*does not have many workers",
    "ignore:.*LeafSpec",
    "ignore:.*in eval mode",
    "ignore:Checkpoint directory",
    "ignore:.*smaller than the logging interval",
    "ignore:.*exists and is not empty",
)
"""Lightning's hints on runs as small as these, as pytest's filters of warnings."""

MODEL = {"hidden_dim": 12, "embed_dim": 8, "attention_dim": 6, "dropout": 0.3}

ODD_FILE_NAMES = (
    "my photo, 1.png", "a=b.png", "a[1].png", "2024_01", "Straße (1) {2}.png", "写真.png",
    "it's \"it\".png", "${odd}.png", "back\\slash\\", "'half.png",
    "a.png", "flickr8k-vgg16-attn", "_a", "True", "False", "NULL", "nan", "Inf", "e5", "nullable",
)  # fmt: skip
"""Names that Hydra's grammar would read as something else, or not at all; and plain ones."""


class Encoder(TorchvisionEncoder):
    """25,632 parameters, and a grid of 7 x 7 locations of 128 channels."""

    short_name = "tiny"

    def __init__(
        self, weights: str = "random", image_size: int = 32, trainable: bool = False
    ) -> None:
        super().__init__(
            "squeezenet1_1", "features.4", weights=weights, image_size=image_size,
            trainable=trainable,
        )  # fmt: skip


ENCODER = {"_target_": f"{__name__}.Encoder"}


class Weighted(Objective):
    """Cross entropy times a learned scale, and a buffer that counts the calls."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.plain = CrossEntropy()
        self.scale = nn.Parameter(torch.ones(()))
        self.mix = nn.Parameter(torch.full((2, 2), 0.5))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def setup(self, data: CaptionDataModule) -> None:
        self.images = len(data.images("train"))
        self.calls.zero_()  # a run begins; one that goes on keeps its number

    def forward(self, decoder: Decoder, batch: Batch) -> dict[str, Tensor]:
        self.calls += 1
        loss = self.plain(decoder, batch)["loss"]
        return {"loss": loss * self.scale * self.mix.sum() + self.scale**2, "plain": loss}


class Record(pl.Callback):
    """The losses of the steps, the images behind them, and the seeds of the noise."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ids: list[tuple[str, ...]] = []
        self.seeds: list[int] = []
        self.training: list[bool] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        *_: Any,
    ) -> None:
        self.losses.append(float(outputs["loss"]))
        self.ids.append(tuple(batch.ids))
        self.seeds.append(torch.initial_seed())
        self.training.append(all(m.training for m in pl_module.decoder.modules()))


def data(root: Path, cache: Path, **settings: Any) -> CaptionDataModule:
    plain: dict[str, Any] = {"min_count": 1, "batch_size": 3, "eval_batch_size": 2, "workers": 0}
    return CaptionDataModule(str(root), cache=str(cache), **plain | settings)


def captioner(data: CaptionDataModule, **settings: Any) -> Captioner:
    return Captioner.for_data(data, **{"encoder": ENCODER} | MODEL | settings)


def trainer(folder: Path, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    """On the CPU, without a word and without files unless ``settings`` ask for them."""
    plain: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": folder,
    }
    return pl.Trainer(callbacks=[*callbacks], **plain | settings)


def decoder(sharpness: float = 1.0) -> AttentionLSTM:
    """A decoder without dropout; a large sharpness makes it draw its most probable word."""
    torch.manual_seed(3)
    made = AttentionLSTM(
        9, 5, hidden_dim=6, embed_dim=6, attention_dim=3, dropout=0.0, recurrent_dropout=0.0
    )
    with torch.no_grad():
        made.embedding.weight.mul_(10)  # what is read makes a difference
        made.output_words.weight.mul_(sharpness)
        made.output_words.bias.mul_(0)
    return made.double()


def batch() -> Batch:
    """Captions of three, two and five words, and one that is missing."""
    grid = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(1)).double()
    captions = [[[4, 5, 6], [7, 8]], [[8, 7, 6, 5, 4], []]]
    tokens = torch.full((2, 2, 7), PAD)
    for image, of_image in enumerate(captions):
        for number, words in enumerate(of_image):
            if words:
                tokens[image, number, : len(words) + 2] = torch.tensor([START, *words, END])
    return Batch(grid, tokens, ["1.jpg", "2.jpg"])


def status_of_script(name: str) -> object:
    """Run a script of the repository in this process, with ``sys.argv``; its exit status."""
    try:
        runpy.run_path(str(Path(__file__).parents[1] / name), run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0
