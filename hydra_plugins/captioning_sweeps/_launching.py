"""What launchers do with a job on another side: tell how it ended, also where it cannot say."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from captioning.sweeps.jobs import OBJECTIVE, fail, objective, read_failure

log = logging.getLogger(__name__)


@contextmanager
def require(extra: str) -> Iterator[None]:
    """End the program where one of the imports of an optional dependency is not installed."""
    try:
        yield
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed: pip install 'captioning[{extra}]'.")


def job_folder(config: DictConfig) -> Path:
    """The folder of the job of a composed configuration."""
    return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir)


def died(config: DictConfig, reason: str) -> JobReturn:
    """What stands for the return of a job whose caller has died, as jobs are told of it."""
    hidden = config.hydra.job.config.override_dirname.exclude_keys
    varied = [each for each in config.hydra.overrides.task if each.partition("=")[0] not in hidden]
    first_line = reason.partition("\n")[0]
    fail(job_folder(config), first_line, varied)
    ended = JobReturn(overrides=list(config.hydra.overrides.task), status=JobStatus.COMPLETED)
    ended.return_value = None
    return ended


def tell(config: DictConfig, done: int, jobs: int) -> None:
    """Log how a job ended that logs elsewhere."""
    folder = job_folder(config)
    reason = read_failure(folder)
    if reason:
        ending = f"failed: {reason}"
    else:
        ending = f"{' '.join(OBJECTIVE)} {100 * objective(folder):.1f}"
    log.info("%d of %d: %s: %s", done, jobs, folder.name, ending)
