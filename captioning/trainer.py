"""Lightning's Trainer as a configuration describes it."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from rich.console import Console

from captioning.data.features.extraction import choose_device, choose_precision
from captioning.support.build import build
from captioning.support.errors import CaptioningError

ELSEWHERE = {
    "callbacks": "callbacks are entries of their own group, such as "
    "+callbacks.mine._target_=my_package.MyCallback",
    "logger": "loggers are a group of their own, such as logger=tensorboard",
    "default_root_dir": "a run writes into hydra.run.dir=FOLDER",
    "inference_mode": "decoding needs it to be false",
}
"""Arguments of the Trainer that cannot be given in its group, and what to do instead."""


def make_trainer(
    spec: Mapping[str, Any],
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
) -> pl.Trainer:
    """Build the Trainer from the group ``trainer``.

    ``precision: auto`` becomes ``bf16-mixed`` on a device that supports bfloat16 natively, and
    ``32-true`` on any other.

    Args:
        spec: ``_target_`` (:class:`pytorch_lightning.Trainer` or a subclass of it) and arguments.
        folder: the folder of the run.
        callbacks: the callbacks of the group ``callbacks``; without any, no progress is shown.
        loggers: where values are logged.

    Raises:
        CaptioningError: the Trainer has no such argument, it refuses a value, or the argument
            belongs to another setting.
    """
    for name, remedy in ELSEWHERE.items():
        if name in spec:
            raise CaptioningError(f"trainer.{name} cannot be set: {remedy}.")
    settings: dict[str, Any] = {
        "_target_": "pytorch_lightning.Trainer",
        "num_sanity_val_steps": 0,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(each, Checkpoint) for each in callbacks),
        "enable_progress_bar": Console(stderr=True).is_terminal and bool(callbacks),
        **spec,
    }
    settings["precision"] = resolve_precision(
        settings.get("precision"), settings.get("accelerator")
    )
    try:
        return build(
            settings,
            pl.Trainer,
            "trainer",
            callbacks=list(callbacks),
            logger=list(loggers),
            default_root_dir=folder,
            inference_mode=False,  # see captioning.decoding
        )
    except (TypeError, MisconfigurationException) as error:
        raise CaptioningError(f"trainer: {' '.join(str(error).split())}") from error


def resolve_precision(precision: Any, accelerator: Any) -> Any:
    """The precision to give to Lightning; ``auto`` depends on the device of the accelerator."""
    if precision != "auto":
        return precision
    device = choose_device("cpu" if accelerator == "cpu" else "auto")
    return "bf16-mixed" if choose_precision("auto", device) == "bf16" else "32-true"


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Ctrl-C and signals as :class:`KeyboardInterrupt`; Lightning makes them SystemExit."""
    try:
        yield
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise end.__context__ from None
        raise


def evaluation_trainer(spec: Mapping[str, Any], folder: Path) -> pl.Trainer:
    """Build a Trainer that decodes a split on a single device, so that each image counts once.

    Args:
        spec: the group ``trainer`` of a training or an evaluation.
        folder: the folder of the run.
    """
    shared = ("_target_", "accelerator", "precision", "limit_test_batches", "fast_dev_run")
    settings = {name: value for name, value in spec.items() if name in shared}
    # If devices are given by their indices, take the first one.
    devices = spec.get("devices")
    settings["devices"] = devices[:1] if isinstance(devices, list) else 1
    return make_trainer(settings, folder)


def quieten() -> None:
    """Silence Lightning's tips, and warnings about choices that are made on purpose here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec",  # a deprecation in torch, which Lightning triggers
        ".*smaller than the logging interval",  # test runs have only a few batches
        ".*does not have many workers",  # reading a grid is faster than passing it from a worker
        ".*number of workers",
        ".*in eval mode",  # the encoder always is
        "Checkpoint directory .* is not empty",  # a resumed run continues in its own folder
        "Experiment logs directory .* is not empty",  # likewise
        ".*sync_dist=True",  # the scores are computed from the captions of all processes
        "Image size .* could be decompression bomb",  # such images are refused with an error
    ):
        warnings.filterwarnings("ignore", message)
