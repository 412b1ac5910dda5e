"""Real, tiny runs for the tests of callbacks and of training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule


@dataclass
class Fitted:
    """A captioner after its training, and what it was trained on."""

    captioner: Captioner
    data: CaptionDataModule
    trainer: pl.Trainer


Fit = Callable[..., Fitted]


@pytest.fixture(scope="session")
def root(drawn_pictures: Path) -> Path:
    return drawn_pictures


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
                "_target_": f"captioning.models.decoders.{model}",
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
        captioner.set_references(data.references("dev"))
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
