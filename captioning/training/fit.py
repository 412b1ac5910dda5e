"""The work of ``train.py``: train from a resolved configuration of plain data, then score."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from captioning.captioner import Captioner
from captioning.data.datamodule import CaptionDataModule
from captioning.data.views import ORIGINAL_ALONE, find_views
from captioning.decoding import Decoding
from captioning.evaluation.evaluate import score_split
from captioning.evaluation.extra_metrics import ExtraMetrics
from captioning.evaluation.records import (
    Scored,
    arithmetic_of,
    identify,
    parts_of,
    plain,
    write_record,
)
from captioning.kernels.backend import Backend, check_backend
from captioning.reporting.arithmetic import count_parameters
from captioning.reporting.report import write_report
from captioning.reporting.terminal import show_results
from captioning.support.build import build, only_groups, own, validated
from captioning.support.claims import check_unused
from captioning.support.errors import CaptioningError
from captioning.support.memory import keep_freed_memory
from captioning.support.progress import Clock
from captioning.support.scratch import remove_leftovers
from captioning.support.signals import stopping_later
from captioning.trainer import evaluation_trainer, interruptible, make_trainer, quieten
from captioning.training.callbacks import make_callbacks, scored_checkpoint
from captioning.training.callbacks.stopping import StopAtSignal, ValidateAtLastStep
from captioning.training.initialization import (
    initialize,
    read_initial,
    say_unknown_words,
    with_trained_parts,
)
from captioning.training.limits import check_limits, check_splits, is_misconfiguration
from captioning.training.loggers import (
    closing_wandb,
    log_final_scores,
    log_model,
    log_settings,
    make_loggers,
)
from captioning.training.resume import check_resumable, explaining_restore_errors
from captioning.training.teacher import load_teacher

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


GROUPS = (
    *("data", "encoder", "model", "objective", "optimizer", "scheduler", "callbacks"),
    *("decoding", "validation", "trainer", "logger"),
)
"""The groups of ``conf/train.yaml``."""


@dataclass(frozen=True)
class TrainSettings(ExtraMetrics):
    """The settings of ``conf/train.yaml`` outside of its groups.

    The settings of a group are checked against the class that its ``_target_`` names.
    """

    name: str
    seed: int = 0
    resume: str | None = None
    init_from: str | None = None
    add_words: bool = False
    encoder_lr: float = 1e-5
    backend: Backend = "auto"
    views: tuple[str, ...] = ORIGINAL_ALONE

    def __post_init__(self) -> None:
        super().__post_init__()
        find_views(self.views)
        if self.seed < 0 or self.encoder_lr < 0:
            raise CaptioningError(
                f"seed={self.seed} and encoder_lr={self.encoder_lr} must both be at least 0."
            )
        if self.add_words and not self.init_from:
            raise CaptioningError(
                "add_words=true, also in experiment=finetune, extends the vocabulary of a trained "
                "model: name a checkpoint, or a model that comes with the package, by init_from=."
            )


def train(
    config: Config,
    folder: Path,
    command: str,
    logger: Config | None = None,
    *,
    only_new: bool = False,
) -> dict[str, dict[str, float]]:
    """Train a model, then score the dev and the test split with its best checkpoint.

    Args:
        config: the configuration, composed from ``conf/train.yaml``.
        folder: the folder of the run, for all files that it writes.
        command: the command line, for ``results.json``.
        logger: replaces the configuration's ``logger``, for jobs of a sweep, whose logged runs need
            names of their own.
        only_new: whether a folder that holds an earlier run is refused, unless it is resumed.

    Returns:
        ``{split: {metric: score}}``. If several processes train, only the first one scores, so that
        each image counts once, and the others return an empty dictionary.
    """
    quieten()
    keep_freed_memory()
    loggers = make_loggers(config["logger"] if logger is None else logger, folder, config["resume"])
    with closing_wandb(loggers):
        return _train(config, folder, command, loggers, only_new)


def _train(
    config: Config, folder: Path, command: str, loggers: Sequence[Logger], only_new: bool
) -> dict[str, dict[str, float]]:
    only_groups(config, GROUPS)
    settings = TrainSettings(**validated(TrainSettings, own(config), "", set()))
    initial = read_initial(settings.init_from, settings.resume)
    config = with_trained_parts(config, initial)
    decoding = build(config["decoding"], Decoding, "decoding")
    settings.prepare()
    clock = Clock()
    pl.seed_everything(settings.seed, verbose=False)

    data = build(
        config["data"],
        CaptionDataModule,
        "data",
        seed=settings.seed,
        vocabulary=initial.vocabulary if initial else None,
        add_words=settings.add_words and not settings.resume,
    )
    # A resumed run continues in its old folder of checkpoints, which has the best one so far.
    checkpoints = Path(settings.resume).parent if settings.resume else folder / "checkpoints"
    callbacks = [*make_callbacks(config["callbacks"], checkpoints), ValidateAtLastStep()]
    trainer = make_trainer(config["trainer"], folder, callbacks, loggers)
    check_limits(trainer)
    device, leads = trainer.strategy.root_device, trainer.is_global_zero
    check_backend(settings.backend, device.type)
    if leads:
        if only_new and not settings.resume:
            check_unused(folder)
        for place in (folder, checkpoints):
            remove_leftovers(place)
    else:
        logging.getLogger("captioning").setLevel(logging.WARNING)

    with clock("data"):
        data.prepare_data()
        data.read_text()
    captioner = make_captioner(config, settings, data)
    decoding.check_words(captioner.decoder)
    if settings.resume:
        check_resumable(Path(settings.resume), captioner)
    elif initial:
        say_unknown_words(initial, data, add_words=settings.add_words)
        initialize(captioner, initial)
    initial = None  # its memory is free for training
    load_teacher(captioner)
    captioner.build_optimizer(total_steps=1000)  # refuses wrong settings before minutes of encoding
    with clock("features"):
        data.open_features(captioner.encoder)
        data.open_features(captioner.encoder, ["dev", "test"], settings.views)
        data.load_resident(device)
    if leads:
        data.write_text(folder)
    captioner.set_references(data.references("dev"))

    log_settings(trainer.loggers, config)
    _, trainable = count_parameters(parts_of(captioner))
    log.info(
        "Training %s on %d images of %s: %.1f M parameters, %d words, %s, in %s",
        type(captioner.decoder).__name__,
        *(len(data.images("train")), data.data_name, trainable / 1e6),
        *(len(data.vocabulary), trainer.precision, folder),
    )
    check_splits(trainer, data)
    with clock("training"):
        fit(trainer, captioner, data, settings.resume)
    if not leave_process_group(trainer):
        return {}

    best = scored_checkpoint(trainer)
    if best is not None:
        captioner = Captioner.load_from_checkpoint(best, backend=settings.backend)
    log.info("Scoring %s", best or "the weights at the end of training")
    images = {"train": len(data.images("train"))}
    found: dict[str, Scored] = {}
    for split in ("dev", "test"):
        tester = evaluation_trainer(config["trainer"], folder)
        with clock(f"score {split}"):
            found[split] = score_split(
                tester, captioner, data, split, decoding, folder, settings, settings.views
            )
        images[split] = len(found[split].gallery)
    written = write_record(
        folder,
        config,
        settings.name,
        command,
        captioner,
        identify(data, images, found),
        decoding,
        found,
        clock.seconds,
        arithmetic_of(trainer, settings.backend),
        views=settings.views,
    )
    log_model(trainer.loggers, captioner, written)
    log_final_scores(trainer.loggers, written.scores)
    write_report(folder, "test", found["test"].gallery)  # the last file: a sweep's job is then done
    show_results(written, folder)  # after the files: whoever reads the output may go before its end
    return written.scores


def make_captioner(config: Config, settings: TrainSettings, data: CaptionDataModule) -> Captioner:
    """Build the captioner of a configuration, with the vocabulary of its data."""
    groups = ("encoder", "model", "objective", "optimizer", "scheduler", "validation")
    captioner = Captioner(
        vocabulary=data.vocabulary.to_list(),
        **{group: config[group] for group in groups},
        encoder_lr=settings.encoder_lr,
        backend=settings.backend,
    )
    captioner.decoder.initialize()
    captioner.run = {
        "name": settings.name,
        "seed": settings.seed,
        "config": plain(config),
        "data": data.corpus.fingerprint,
    }
    log.info(
        "Encoder %s: weights from %s", captioner.encoder.name, captioner.encoder.weights_source
    )
    return captioner


def fit(
    trainer: pl.Trainer, captioner: pl.LightningModule, data: Any, resume: str | None = None
) -> None:
    """Train, continuing from a checkpoint if ``resume`` is given.

    A signal of :mod:`captioning.support.signals` ends it after the current batch, so that no
    checkpoint is left half written.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, or a signal came.
        CaptioningError: no step could be made, Lightning refuses a combination of settings, or a
            callback monitors a value that is not logged.
    """
    with stopping_later() as request:
        trainer.callbacks.insert(0, StopAtSignal(request))  # type: ignore[attr-defined]
        try:
            with interruptible(), explaining_restore_errors(trainer, resume):
                trainer.fit(captioner, datamodule=data, ckpt_path=resume)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            request.check()  # the error may come from another process that the signal has ended
            if is_misconfiguration(error):
                reason = " ".join(str(error).split())
                raise CaptioningError(f"Training cannot go on: {reason}") from error
            raise
        request.check()
    if trainer.global_step == 0:
        raise CaptioningError(
            "Nothing was trained: the Trainer ended before its first step; raise "
            "trainer.limit_train_batches or trainer.max_time."
        )


def leave_process_group(trainer: pl.Trainer) -> bool:
    """Leave the group of processes that trained; returns whether this process scores the run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        trainer.strategy.barrier()
        # Within the group, scoring would wait for the other processes, and NCCL gathers tensors on
        # GPUs only.
        torch.distributed.destroy_process_group()
        return trainer.is_global_zero
    return True
