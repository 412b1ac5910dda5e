"""What ``train.py`` and ``eval.py`` do, from a resolved configuration of plain data."""

import csv
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from rich.console import Console

from captioning.captioner import Captioner, read_checkpoint
from captioning.data.datamodule import CaptionDataModule
from captioning.data.features.extraction import choose_device, choose_precision
from captioning.data.text import UNK
from captioning.decoding import Decoding
from captioning.evaluation.captions_file import EvalSettings
from captioning.evaluation.extra_metrics import ExtraMetrics
from captioning.metrics import METRICS
from captioning.metrics.bootstrap import intervals
from captioning.metrics.grounding import Grounding, ground
from captioning.metrics.language import Language, describe_each, describe_language
from captioning.metrics.tokenizer import TOKENIZATION
from captioning.metrics.torchmetric import CaptionScores
from captioning.models.attention.additive import accelerate
from captioning.reporting import results
from captioning.reporting.gallery import GalleryImage
from captioning.reporting.report import write_report
from captioning.reporting.terminal import show_results
from captioning.support.build import build, own, validated
from captioning.support.errors import CaptioningError
from captioning.support.memory import keep_freed_memory
from captioning.support.progress import Clock
from captioning.training.callbacks import AttentionImages, EpochLog, MovingAverage, Patience

log = logging.getLogger(__name__)

Config = Mapping[str, Any]


@dataclass(frozen=True)
class TrainSettings(ExtraMetrics):
    """The settings of ``conf/train.yaml`` itself; those of its groups are their targets' own."""

    name: str
    seed: int = 0
    resume: str | None = None
    patience: int = 4
    average_decay: float = 0.998
    encoder_lr: float = 1e-5
    compile: Literal["auto"] | bool = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patience < 1 or not 0 <= self.average_decay < 1 or self.seed < 0:
            raise CaptioningError(
                f"patience={self.patience} must be at least 1, average_decay="
                f"{self.average_decay} in [0, 1) and seed={self.seed} at least 0."
            )


def quieten() -> None:
    """Keep Lightning's tips and hints out of the log; its warnings of substance stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec",  # torch's own, of a name that Lightning still uses
        ".*smaller than the logging interval",  # trials on a few batches
        ".*does not have many workers",  # grids are read faster than a process hands them over
        ".*number of workers",
        ".*in eval mode",  # the encoder's, on purpose
        "Checkpoint directory .* is not empty",  # a resumed run goes on with its own
        "Experiment logs directory .* is not empty",  # likewise
        ".*sync_dist=True",  # the scores are of all processes' captions already
        "Image size .* could be decompression bomb",  # such an image is refused by name
    ):
        warnings.filterwarnings("ignore", message)


def train(
    config: Config, folder: Path, command: str, logger: Config | None = None
) -> dict[str, dict[str, float]]:
    """Train a model, then score the dev and the test split with its best checkpoint.

    Args:
        config: as composed from ``conf/train.yaml``.
        folder: the run's own, where everything is written.
        command: the command line, for ``results.json``.
        logger: in place of the configuration's own, where that does not tell runs apart.

    Returns:
        ``{split: {metric: score}}``; nothing in a process that does not lead, where there are
        several: with all of them trained, the first one scores alone, so that each image counts
        once.
    """
    quieten()
    keep_freed_memory()
    loggers = make_loggers(config if logger is None else {**config, "logger": logger}, folder)
    try:
        return _train(config, folder, command, loggers)
    except BaseException:
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            import wandb

            wandb.finish(exit_code=1)
        raise


def _train(
    config: Config, folder: Path, command: str, loggers: Sequence[Logger]
) -> dict[str, dict[str, float]]:
    settings = TrainSettings(**validated(TrainSettings, own(config), "train.yaml", set()))
    decoding = build(config["decoding"], Decoding, "decoding")
    settings.prepare()
    data = build(config["data"], CaptionDataModule, "data", seed=settings.seed)
    # A resumed run goes on with its own checkpoints, the best so far among them.
    kept = Path(settings.resume).parent if settings.resume else folder / "checkpoints"
    best = ModelCheckpoint(
        kept, "best", monitor="dev/CIDEr", mode="max", enable_version_counter=False
    )
    # Of its own, at the end of every epoch: `save_last` writes only where the best has changed.
    last = ModelCheckpoint(kept, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    callbacks: list[pl.Callback] = [
        best,
        last,
        Patience("dev/CIDEr", mode="max", patience=settings.patience),
        EpochLog(),
        AttentionImages(),
    ]
    if settings.average_decay:
        callbacks.insert(0, MovingAverage(settings.average_decay))
    trainer = make_trainer(config["trainer"], folder, callbacks, loggers)
    device = trainer.strategy.root_device
    leads = trainer.is_global_zero
    if not leads:
        logging.getLogger("captioning").setLevel(logging.WARNING)
    clock = Clock()
    pl.seed_everything(settings.seed, verbose=False)
    accelerate(settings.compile, device.type)

    with clock("data"):
        data.read()
    captioner = Captioner(
        vocabulary=data.vocabulary.to_list(),
        **{part: config[part] for part in ("encoder", "model", "objective", "optimizer")},
        schedule=config["schedule"],
        encoder_lr=settings.encoder_lr,
        validation=config["validation"],
    )
    captioner.run = {"name": settings.name, "seed": settings.seed, "config": plain(config)}
    log.info(
        "Encoder %s: weights from %s", captioner.encoder.name, captioner.encoder.weights_source
    )
    if settings.resume:
        check_resumable(Path(settings.resume), captioner)
    with clock("features"):
        data.open_images(captioner.encoder)
        data.hold_grids(device)
    if leads:
        data.write_text(folder)
    captioner.expect(data.references("dev"))

    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(flat(config))
    log.info(
        "Training %s on %d images of %s: %.1f M parameters, %d words, %s, in %s",
        type(captioner.decoder).__name__,
        *(len(data.images("train")), data.data_name, parameters(captioner) / 1e6),
        *(len(data.vocabulary), trainer.precision, folder),
    )
    with clock("training"):
        try:
            trainer.fit(captioner, datamodule=data, ckpt_path=settings.resume)
        except SystemExit:  # which is what Lightning makes of Ctrl-C
            raise KeyboardInterrupt if trainer.interrupted else SystemExit from None

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        trainer.strategy.barrier()
        # Or scoring would wait for the others, and NCCL, even alone, gathers on GPUs only.
        torch.distributed.destroy_process_group()
        if not leads:
            return {}
    captioner = Captioner.load(best.best_model_path)
    images = {"train": len(data.images("train"))}
    found: dict[str, Scored] = {}
    for split in ("dev", "test"):
        with clock(f"score {split}"):
            found[split] = score(
                captioner, data, split, decoding, config["trainer"], folder, settings
            )
        images[split] = len(found[split].gallery)
    identity = identify(data, images, found)
    written = write(
        folder, config, settings.name, command, captioner, identity, decoding, found, clock.seconds
    )
    write_report(folder, "test", found["test"].gallery)
    show_results(written, folder)
    scores = written.scores
    for logger in trainer.loggers:
        logger.log_metrics(
            {f"final/{split}/{name}": v for split, s in scores.items() for name, v in s.items()}
        )
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
    return scores


def evaluate(config: Config, folder: Path, command: str) -> dict[str, dict[str, float]]:
    """Score a checkpoint on a split.

    Args:
        config: as composed from ``conf/eval.yaml``.
        folder: where ``results.json`` and the captions are written.
        command: the command line, for ``results.json``.

    Returns:
        ``{split: {metric: score}}``.
    """
    quieten()
    keep_freed_memory()
    settings = EvalSettings.of(config)
    decoding = build(config["decoding"], Decoding, "decoding")
    settings.prepare()
    assert settings.ckpt is not None  # else score_file is called
    captioner = Captioner.load(settings.ckpt)
    data = build(config["data"], CaptionDataModule, "data", vocabulary=captioner.vocabulary)
    clock = Clock()
    with clock("data"):
        data.read()
    with clock("features"):
        data.open_images(captioner.encoder, [settings.split])
    with clock(f"score {settings.split}"):
        found = score(
            captioner, data, settings.split, decoding, config["trainer"], folder, settings
        )
    name = settings.name or captioner.run["name"]
    all_found: dict[str, Scored] = {settings.split: found}
    identity = identify(data, {settings.split: len(found.gallery)}, all_found)
    written = write(
        folder,
        config,
        name,
        command,
        captioner,
        identity,
        decoding,
        all_found,
        clock.seconds,
        training=captioner.run.get("config"),
    )
    # RUN/checkpoints/best.ckpt, as `_train` leaves it.
    checkpoints = Path(settings.ckpt).resolve().parent
    training = checkpoints.parent if checkpoints.name == "checkpoints" else None
    write_report(folder, settings.split, found.gallery, training=training)
    show_results(written, folder)
    return written.scores


def check_resumable(path: Path, captioner: Captioner) -> None:
    """Say at the start, and not in the midst of Lightning, why a checkpoint cannot go on here."""
    checkpoint = read_checkpoint(path)
    if checkpoint["hyper_parameters"]["vocabulary"] != captioner.vocabulary.to_list():
        raise CaptioningError(
            f"resume={path}: that run has another vocabulary "
            f"({len(checkpoint['hyper_parameters']['vocabulary'])} words) than this data gives "
            f"({len(captioner.vocabulary.words)}): use the same data and the same data.min_count, "
            "data.max_size and data.cleaner."
        )
    frozen = bool(checkpoint["encoder"]["state_dict"])
    if frozen and checkpoint["encoder"]["fingerprint"] != captioner.encoder.fingerprint:
        raise CaptioningError(
            f"resume={path}: that run has another encoder than {captioner.encoder.name} with "
            f"weights from {captioner.encoder.weights_source}: use the same encoder."
        )
    shapes = {name: tensor.shape for name, tensor in captioner.state_dict().items()}
    saved = {name: tensor.shape for name, tensor in checkpoint["state_dict"].items()}
    if shapes != saved:
        different = sorted(shapes.items() ^ saved.items())
        raise CaptioningError(
            f"resume={path}: that run has another model ({different[0][0]} differs): use the "
            "same model.* settings."
        )


def make_loggers(config: Config, folder: Path) -> list[Logger]:
    """CSV always, in ``logs/metrics.csv``; another one where the configuration has one."""
    loggers: list[Logger] = [make_csv_logger(folder, config["resume"])]
    spec = dict(config["logger"])
    if not spec:
        return loggers
    if "WandbLogger" in spec.get("_target_", "") and not wandb_account():
        os.environ.setdefault("WANDB_MODE", "offline")
    loggers.append(build(spec, Logger, "logger", save_dir=folder))
    return loggers


def make_csv_logger(folder: Path, resume: str | None) -> CSVLogger:
    """The logger; a run that goes on in its own folder keeps what it had logged by then."""
    logger = CSVLogger(folder, name="", version="logs")
    path = folder / "logs" / "metrics.csv"
    if resume and path.is_file() and os.environ.get("LOCAL_RANK", "0") == "0":
        steps = read_checkpoint(resume)["global_step"]
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) < steps]
        logger.experiment.metrics += rows  # its first access deletes the file
        logger.experiment.save()
    return logger


def wandb_account() -> bool:
    """Whether this machine knows an account of wandb's to send runs to."""
    try:
        logins = netrc().hosts
    except (OSError, NetrcParseError):
        logins = {}
    return "WANDB_API_KEY" in os.environ or any("wandb" in host for host in logins)


def make_trainer(
    spec: Config, folder: Path, callbacks: Sequence[pl.Callback], loggers: Sequence[Logger]
) -> pl.Trainer:
    """Lightning's Trainer; ``precision: auto`` is bf16 where the device computes in bf16."""
    settings = {name: value for name, value in spec.items() if name != "_target_"}
    if settings.get("precision") == "auto":
        device = choose_device("cpu" if settings.get("accelerator") == "cpu" else "auto")
        fast = choose_precision("auto", device) == "bf16"
        settings["precision"] = "bf16-mixed" if fast else "32-true"
    try:
        return pl.Trainer(
            **settings,
            callbacks=list(callbacks),
            logger=list(loggers),
            default_root_dir=folder,
            num_sanity_val_steps=0,
            inference_mode=False,  # see captioning.decoding
            enable_model_summary=False,
            enable_progress_bar=Console(stderr=True).is_terminal and bool(callbacks),
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise CaptioningError(f"trainer: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Scored:
    """What was found of one split: see :class:`captioning.reporting.results.Results`."""

    corpus: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    references: str
    language: Language
    objects: Grounding | None
    gallery: list[GalleryImage]


def score(
    captioner: Captioner,
    data: CaptionDataModule,
    split: str,
    decoding: Decoding,
    trainer: Config,
    folder: Path,
    extra: ExtraMetrics,
) -> Scored:
    """Decode a split and score it with all metrics; writes its captions and statistics."""
    references = data.references(split)
    captioner.expect(references, METRICS, decoding)
    shared = ("accelerator", "precision", "limit_test_batches")
    settings = {name: value for name, value in trainer.items() if name in shared}
    # One device, which alone gives each image once; of those that were chosen by number, the first.
    devices = trainer.get("devices")
    settings["devices"] = devices[:1] if isinstance(devices, list) else 1
    tester = make_trainer(settings, folder, [], [])
    tester.test(captioner, data.evaluation_loader(split), verbose=False)
    assert isinstance(captioner.scores, CaptionScores)
    found, captions = captioner.scores.scores(), captioner.scores.captions
    photographs = {image.id: image.path for image in data.images(split)}
    found = extra.add_to(found, captions, references, photographs)
    train = [text for image in data.corpus.split("train") for text in data.descriptions[image.id]]
    each = describe_each(captions, train=train, unknown=UNK)
    results.write_captions(folder / f"captions_{split}.json", captions, found.per_image, each)
    results.write_statistics(folder / f"statistics_{split}.json", found.statistics)
    maps = {
        image: weights.reshape(-1, *captioner.encoder.grid_size).numpy()
        for image, weights in captioner.attention.items()
    }
    gallery = [
        GalleryImage(
            id=image.id,
            path=image.path,
            references=image.captions,
            caption=captions[image.id],
            scores=found.per_image[image.id],
            attention=maps.get(image.id),
        )
        for image in data.images(split)
        if image.id in captions
    ]
    objects = ground(captions, maps, data.boxes)
    language = describe_language(
        list(captions.values()),
        train=train,
        vocabulary_size=len(captioner.vocabulary.words),
        unknown=UNK,
    )
    return Scored(
        corpus=found.corpus,
        intervals=intervals(found.statistics),
        references=found.statistics.references,
        language=language,
        objects=objects,
        gallery=gallery,
    )


def identify(
    data: CaptionDataModule, images: dict[str, int], found: Mapping[str, Scored]
) -> results.Data:
    """What the scores were taken on."""
    return results.Data(
        name=data.data_name,
        fingerprint=data.corpus.fingerprint,
        images=images,
        references={split: scored.references for split, scored in found.items()},
        tokenization=TOKENIZATION,
    )


def parameters(captioner: Captioner) -> int:
    """The number of parameters that learn."""
    return sum(p.numel() for p in captioner.parameters() if p.requires_grad)


def write(
    folder: Path,
    config: Config,
    name: str,
    command: str,
    captioner: Captioner,
    data: results.Data,
    decoding: Decoding,
    found: Mapping[str, Scored],
    seconds: dict[str, float],
    training: dict[str, Any] | None = None,
) -> results.Results:
    """Write ``results.json``."""
    hparams: Any = captioner.hparams
    written = results.Results(
        name=name,
        command=command,
        config={key: plain(value) for key, value in config.items()},
        data=data,
        vocabulary=results.Vocabulary(
            size=len(captioner.vocabulary), fingerprint=captioner.vocabulary.fingerprint
        ),
        encoder=results.Encoder.model_validate(
            {
                "name": captioner.encoder.name,
                "fingerprint": captioner.encoder.fingerprint,
                "weights_source": captioner.encoder.weights_source,
                "resize": captioner.encoder.preprocessing.resize,
            }
        ),
        model=results.Model(
            name=hparams["model"]["_target_"].split(".")[-2],
            parameters=parameters(captioner),
        ),
        versions=results.versions(),
        commit=results.commit(),
        seconds=seconds,
        scores={split: scored.corpus for split, scored in found.items()},
        intervals={split: scored.intervals for split, scored in found.items()},
        language={
            split: results.Language(**asdict(scored.language)) for split, scored in found.items()
        },
        objects={
            split: results.Objects(**asdict(scored.objects))
            for split, scored in found.items()
            if scored.objects
        },
        decoding=results.Decoding.model_validate(
            {"name": type(decoding).__name__.lower()} | asdict(decoding)
        ),
        training=training,
        free_running=True,  # as is `Captioner.test_step`
    )
    results.write_results(folder / "results.json", written)
    return written


def flat(config: Config, prefix: str = "") -> dict[str, Any]:
    """A configuration with the keys of the command line, such as ``model.dropout``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
