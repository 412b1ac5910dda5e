"""Where a run is logged: in a CSV file always, and by TensorBoard, wandb or mlflow on demand."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.loggers import WandbLogger as LightningWandbLogger
from pytorch_lightning.utilities import rank_zero_only

from captioning.captioner import Captioner
from captioning.checkpoints import read_checkpoint
from captioning.reporting.results import Results, write_results
from captioning.support.build import build
from captioning.support.extras import missing
from captioning.support.ranks import is_first_process
from captioning.support.scratch import scratch_folder
from captioning.training.metrics_file import MetricsFile, Row, read_rows
from captioning.training.mlflow_logger import MLFlowLogger
from captioning.training.wandb_logger import WandbLogger

COMPARED = (
    *(
        f"{split}/{metric}"
        for split in ("final/test", "final/dev", "dev")
        for metric in ("CIDEr", "BLEU-4")
    ),
    "dev/loss",
)
"""The values that TensorBoard's tab HPARAMS shows beside the settings of a run."""

LIBRARIES = {"WandbLogger": "wandb", "TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}
"""The library that each logger needs."""


def make_loggers(spec: Mapping[str, Any], folder: Path, resume: str | None) -> list[Logger]:
    """The CSV logger, which writes ``logs/metrics.csv``, and the logger of the group ``logger``.

    Args:
        spec: the group ``logger``; it is empty for ``logger=csv``.
        folder: the folder of the run.
        resume: the checkpoint from which the run continues, or None.

    Raises:
        CaptioningError: the group names no logger, or has a wrong argument, or the logger's library
            is not installed.
    """
    loggers: list[Logger] = [make_csv_logger(folder, resume)]
    if not spec:
        return loggers
    name = str(spec.get("_target_", "")).rpartition(".")[2]
    if name == "WandbLogger" and not wandb_account():
        os.environ.setdefault("WANDB_MODE", "offline")
    try:
        loggers.append(build(spec, Logger, "logger", save_dir=str(folder)))
    except ModuleNotFoundError as error:
        if name not in LIBRARIES:
            raise
        raise missing(f"logger={LIBRARIES[name]}", LIBRARIES[name]) from error
    return loggers


def make_csv_logger(folder: Path, resume: str | None) -> CSVLogger:
    """The CSV logger; a resumed run keeps the rows that it logged before.

    Rows of steps after the checkpoint and of the final scores are dropped, because the resumed run
    logs these again.
    The means of the epoch are logged after the checkpoint is saved, so that a kill in between loses
    them; they are then taken from the checkpoint.
    If the run continues in a new folder, the rows of the old one are copied.
    """
    logger = CSVLogger(folder, name="", version="logs")
    if is_first_process():
        logger._experiment = MetricsFile(logger.log_dir, rows_before(resume, folder))
    return logger


def rows_before(resume: str | None, folder: Path) -> list[Row]:
    """The rows that a run logged before its checkpoint; none if it is not resumed."""
    if resume is None:
        return []
    checkpoint = read_checkpoint(resume, "resume")
    steps = checkpoint["global_step"]
    paths = [place / "logs" / "metrics.csv" for place in (folder, run_of(resume))]
    path = next((each for each in paths if each.is_file()), None)
    rows = [
        row
        for row in (read_rows(path) if path else ())
        if int(row["step"]) < steps
        and not any(value for name, value in row.items() if name.startswith("final/"))
    ]
    means = checkpoint.get("epoch_means") or {}
    if not any(row.get(name) for row in rows if int(row["step"]) == steps - 1 for name in means):
        rows += [{"epoch": checkpoint.get("epoch"), "step": steps - 1, **means}] if means else []
    return rows


def run_of(checkpoint: str) -> Path:
    """The folder of the run that wrote a checkpoint, which is in its ``checkpoints/``."""
    return Path(checkpoint).absolute().parent.parent


def wandb_account() -> bool:
    """Whether a wandb account is configured on this machine."""
    try:
        logins = netrc().hosts
    except (OSError, NetrcParseError):
        logins = {}
    return "WANDB_API_KEY" in os.environ or any("wandb" in host for host in logins)


@contextmanager
def closing_wandb(loggers: Sequence[Logger]) -> Iterator[None]:
    """Within the block, an exception marks the wandb run as failed."""
    try:
        yield
    except BaseException:
        if any(isinstance(logger, LightningWandbLogger) for logger in loggers):
            import wandb

            wandb.finish(exit_code=1)
        raise


def log_settings(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Log the configuration, under the keys of the command line, to all loggers except CSV."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(flat(config))
        if isinstance(logger, TensorBoardLogger):
            _log_hparams(logger, flat(config))


@rank_zero_only
def _log_hparams(logger: TensorBoardLogger, settings: Mapping[str, Any]) -> None:
    """Name the settings, and the values to compare, for TensorBoard's tab HPARAMS.

    Lightning would log a first value of each of them, which no run has at its start.
    """
    from torch.utils.tensorboard.summary import hparams

    shown = {
        k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()
    }
    names = dict.fromkeys(COMPARED, 0)  # of which only the keys are written
    writer = logger.experiment._get_file_writer()
    for summary in hparams(shown, names):  # type: ignore[no-untyped-call]
        writer.add_summary(summary)


def log_model(loggers: Sequence[Logger], captioner: Captioner, results: Results) -> None:
    """Give the model of a finished run to the loggers that keep models.

    They get the folder that ``Captioner.from_pretrained`` reads, with ``results.json`` beside it.
    Its weights are not rounded to half precision, so that the scores of its card are theirs.

    Args:
        loggers: the loggers of the run; only wandb and mlflow with ``log_model=true`` take it.
        captioner: the model that was scored.
        results: the record of the run.
    """
    takers = [
        logger
        for logger in loggers
        if isinstance(logger, WandbLogger | MLFlowLogger) and logger.uploads_model
    ]
    if not takers:
        return
    metadata = {"scores": {split: dict(row) for split, row in results.scores.items()}}
    with scratch_folder() as scratch:
        folder = scratch / (re.sub(r"[^\w.-]", "-", results.name)[:128].strip(".") or "model")
        captioner.save_pretrained(folder, half=False, results=results)
        write_results(folder / "results.json", results)
        for logger in takers:
            logger.upload_model(folder, metadata)


def log_final_scores(loggers: Sequence[Logger], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Log the scores of the finished run as ``final/SPLIT/METRIC``, and close the loggers."""
    final = {f"final/{split}/{name}": v for split, s in scores.items() for name, v in s.items()}
    for logger in loggers:
        logger.log_metrics(final)
        logger.finalize("success")
        if isinstance(logger, LightningWandbLogger):
            logger.experiment.finish()


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A configuration with the keys of the command line, such as ``model.dropout``."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
