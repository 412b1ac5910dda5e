"""Functions that the launchers share: the outcome of a job that ran in another process."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from captioning.cli.overrides import swept_overrides
from captioning.support.errors import CaptioningError
from captioning.sweeps.jobs import OPTIMIZED_METRIC, optimized_score, read_failure, record_failure

log = logging.getLogger(__name__)


@contextmanager
def require(extra: str) -> Iterator[None]:
    """Exit with one sentence if an import inside the block fails; names the extra to install."""
    try:
        yield
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed: pip install 'captioning[{extra}]'.")


def job_folder(config: DictConfig) -> Path:
    """The folder of a job, from its composed configuration."""
    return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)


def checked_return(config: DictConfig, returned: JobReturn) -> JobReturn:
    """The job's return value for the sweeper; an exception in the job becomes a failure."""
    if returned.status is JobStatus.FAILED:
        error = returned._return_value
        return failed_return(config, f"{type(error).__name__}: {error}")
    return returned


def failed_return(config: DictConfig, reason: str) -> JobReturn:
    """Record a job as failed; returns a ``JobReturn`` without a score in its place."""
    record_failure(job_folder(config), reason.partition("\n")[0], swept_overrides(config.hydra))
    stand_in = JobReturn(overrides=list(config.hydra.overrides.task), status=JobStatus.COMPLETED)
    stand_in.return_value = None
    return stand_in


def log_outcome(config: DictConfig, done: int, jobs: int) -> None:
    """Log how a job ended, because the job itself writes to another log."""
    folder = job_folder(config)
    try:
        failure = read_failure(folder)
        if failure:
            outcome = f"failed: {failure.reason}"
        else:
            outcome = f"{' '.join(OPTIMIZED_METRIC)} {100 * optimized_score(folder):.1f}"
    except CaptioningError as error:  # for example if the machines do not share their files
        failed_return(config, str(error))
        outcome = f"failed: {error}"
    log.info("%d of %d: %s: %s", done, jobs, folder.name, outcome)
