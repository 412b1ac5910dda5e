"""What launchers do with a job on another side: tell how it ended, also where it cannot say."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig

from captioning.cli import varied
from captioning.support.errors import CaptioningError
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


def ended(config: DictConfig, returned: JobReturn) -> JobReturn:
    """The return of a job as sweepers take it: what was raised there counts as a failure."""
    if returned.status is JobStatus.FAILED:
        error = returned._return_value
        return died(config, f"{type(error).__name__}: {error}")
    return returned


def died(config: DictConfig, reason: str) -> JobReturn:
    """What stands for the return of a job that cannot tell of itself, as jobs are told of it."""
    fail(job_folder(config), reason.partition("\n")[0], varied(config.hydra))
    stand_in = JobReturn(overrides=list(config.hydra.overrides.task), status=JobStatus.COMPLETED)
    stand_in.return_value = None
    return stand_in


def tell(config: DictConfig, done: int, jobs: int) -> None:
    """Log how a job ended that logs elsewhere."""
    folder = job_folder(config)
    try:
        failure = read_failure(folder)
        if failure:
            ending = f"failed: {failure.reason}"
        else:
            ending = f"{' '.join(OBJECTIVE)} {100 * objective(folder):.1f}"
    except CaptioningError as error:  # such as on machines that do not share their files
        died(config, str(error))
        ending = f"failed: {error}"
    log.info("%d of %d: %s: %s", done, jobs, folder.name, ending)
