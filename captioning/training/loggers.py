"""Where a run's values are logged: a CSV file always, and TensorBoard or wandb on demand."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from captioning.checkpoints import read_checkpoint
from captioning.support.build import build
from captioning.support.ranks import is_first_process
from captioning.training.metrics_file import MetricsFile, Row, read_rows


def make_loggers(spec: Mapping[str, Any], folder: Path, resume: str | None) -> list[Logger]:
    """The CSV logger, which writes ``logs/metrics.csv``, and the logger of the group ``logger``.

    Args:
        spec: the group ``logger``; it is empty for ``logger=csv``.
        folder: the folder of the run.
        resume: the checkpoint from which the run continues, or None.

    Raises:
        CaptioningError: the group names no logger, or has a wrong argument.
    """
    loggers: list[Logger] = [make_csv_logger(folder, resume)]
    if not spec:
        return loggers
    if "WandbLogger" in spec.get("_target_", "") and not wandb_account():
        os.environ.setdefault("WANDB_MODE", "offline")
    loggers.append(build(spec, Logger, "logger", save_dir=folder))
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
        if any(isinstance(logger, WandbLogger) for logger in loggers):
            import wandb

            wandb.finish(exit_code=1)
        raise


def log_settings(loggers: Sequence[Logger], config: Mapping[str, Any]) -> None:
    """Log the configuration, under the keys of the command line, to all loggers except CSV."""
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            logger.log_hyperparams(flat(config))


def log_final_scores(loggers: Sequence[Logger], scores: Mapping[str, Mapping[str, float]]) -> None:
    """Log the scores of the finished run as ``final/SPLIT/METRIC``, and close the loggers."""
    final = {f"final/{split}/{name}": v for split, s in scores.items() for name, v in s.items()}
    for logger in loggers:
        logger.log_metrics(final)
        logger.finalize("success")
        if isinstance(logger, WandbLogger):
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
