"""Run one job of a sweep, resume it, or skip it if it has finished.

In addition to the files of every run, a job's folder holds:

    job.json      the definition of the job: its configuration and the fingerprint of its data
    failed.json   why it ended without results: {"reason": ..., "overrides": [...]}
    output.log    what it printed, if several jobs run at the same time

If the same job is started again in the same folder, it is skipped if it has finished:
``results.json`` exists, and ``report.html``, which is written last. Otherwise it is resumed if
``checkpoints/`` holds a whole ``last.ckpt``. A different job is refused.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from captioning.data.corpus import read_corpus
from captioning.data.locations import cache_folder, ensure_data_folder
from captioning.reporting.results import read_results
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.locks import file_lock
from captioning.support.own_code import own_code
from captioning.support.reading import load_record
from captioning.support.settings import WHERE_DATA_LIES, without
from captioning.support.signals import STOPPING

log = logging.getLogger(__name__)

OPTIMIZED_METRIC = ("dev", "CIDEr")
"""Split and metric of the score by which a sweep compares its jobs and which a search maximises."""

RANK_VARIABLE = "SLURM_PROCID"
"""Environment variable with the rank of a process. Under SLURM every rank calls `run_job`."""

# Settings that cannot change results: paths and loggers. Each value is the set of keys to ignore in
# a group, or ... to ignore all of it. The content of the data is compared by its fingerprint.
_NO_EFFECT = {"resume": ..., "logger": ..., "data": WHERE_DATA_LIES}


@dataclass(frozen=True)
class Job:
    """The definition of a job, as stored in its ``job.json``.

    Attributes:
        overrides: the ``key=value`` overrides that distinguish it from the sweep's other jobs.
        config: the resolved configuration, composed from ``conf/train.yaml``.
        data: the fingerprint of the data set.
        command: the command line that runs this job alone, for ``results.json``.
        logging: the configuration for :func:`logging.config.dictConfig`.
    """

    overrides: list[str]
    config: dict[str, Any]
    data: str
    command: str
    logging: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a job ended without results, as stored in its ``failed.json``.

    Attributes:
        reason: the error, in one line.
        overrides: the overrides of the :class:`Job`.
    """

    reason: str
    overrides: list[str]


def run_job(
    folder: Path,
    config: dict[str, Any],
    *,
    overrides: list[str],
    command: str,
    logging: dict[str, Any],
    cwd: Path,
    output: Path | None,
) -> float | None:
    """Run a job in its own process, unless it has finished before.

    The process and all its children are killed when it ends or when the calling process ends.

    Args:
        folder: the folder of the job.
        config: see :class:`Job`.
        overrides: see :class:`Job`.
        command: see :class:`Job`.
        logging: see :class:`Job`.
        cwd: the working directory of the process, to which paths in the configuration are relative.
        output: a file to which the process's output is appended; None uses the caller's output.

    Returns:
        CIDEr on the dev split, or None if the job failed. The reason is then in ``failed.json``.
    """
    is_rank_zero = os.environ.get(RANK_VARIABLE, "0") == "0"
    with file_lock(folder / ".lock", f"it runs {folder}") if is_rank_zero else nullcontext():
        try:
            job = Job(overrides, config, fingerprint(config["data"]), command, logging)
            check_same_job(folder, job)
            earlier_score = optimized_score(folder) if has_finished(folder) else None
        except (CaptioningError, OSError) as error:
            record_failure(folder, str(error), overrides)
            return None
        atomic_write_json(folder / "job.json", asdict(job))
        if is_rank_zero:
            (folder / "failed.json").unlink(missing_ok=True)
        if earlier_score is not None:
            log.info("Already finished: %s", folder)
            warn_of_edits(folder, config, cwd)
            return earlier_score
        status = _run_process(folder, cwd, output)
    if status == 0:
        return optimized_score(folder) if is_rank_zero else None
    failure = read_failure(folder)
    record_failure(folder, failure.reason if failure else describe_exit(status), overrides)
    return None


def _run_process(folder: Path, cwd: Path, output: Path | None) -> int:
    """Run the process; returns its exit status, which is ``-signal`` if a signal killed it."""
    file = output.open("ab") if output else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "captioning.sweeps.job_process", str(folder)],
            cwd=cwd,
            stdin=subprocess.PIPE,  # closes when this process dies; then the child kills itself
            stdout=file,
            stderr=file,
            # Its own process group, so that its children can be killed with it.
            start_new_session=True,
        )
    finally:
        if file:
            file.close()
    try:
        return process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        log.warning("Stopped; it can be continued after its last complete epoch: %s", folder)
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()


def describe_exit(status: int) -> str:
    """A sentence that describes the exit status of a process."""
    if status - 128 in STOPPING:
        name = signal.Signals(status - 128).name
        return f"It was stopped by {name}, as before a time limit; the same command continues it."
    if status >= 0:
        return f"The process ended with exit status {status}."
    name = signal.Signals(-status).name
    memory = ", which the kernel sends when memory runs out" if status == -signal.SIGKILL else ""
    return f"The process was killed by {name}{memory}."


def read_failure(folder: Path) -> Failure | None:
    """Read ``failed.json``; None if the job has not failed.

    Raises:
        CaptioningError: the file is damaged.
    """
    return _read_record(folder / "failed.json", TypeAdapter(Failure).validate_json, "delete it")


def write_failure(folder: Path, reason: str, overrides: list[str]) -> None:
    """Write ``failed.json``."""
    atomic_write_json(folder / "failed.json", asdict(Failure(reason, overrides)))


def record_failure(folder: Path, reason: str, overrides: list[str]) -> None:
    """Log that a job failed, and write its ``failed.json``."""
    log.error("%s: %s", folder, reason)
    write_failure(folder, reason, overrides)


def has_finished(folder: Path) -> bool:
    """Whether a job has written all of its files."""
    return all((folder / name).is_file() for name in ("results.json", "report.html"))


def warn_of_edits(folder: Path, config: Mapping[str, Any], cwd: Path) -> None:
    """Log which of the user's own classes were edited after a job had finished with them."""
    then, now = read_results(folder / "results.json").own_code or {}, own_code(config, start=cwd)
    edited = [path for path, digest in now.items() if then.get(path, digest) != digest]
    if edited:
        log.warning(
            "%s was edited after %s had finished: delete that folder to run the job again.",
            *(" and ".join(edited), folder),
        )


def optimized_score(folder: Path) -> float:
    """The score of a finished job by which a sweep compares its jobs."""
    split, metric = OPTIMIZED_METRIC
    return read_results(folder / "results.json").scores[split][metric]


def read_job(folder: Path) -> Job | None:
    """Read ``job.json``; None if the folder has none yet.

    Raises:
        CaptioningError: the file is damaged.
    """
    return _read_record(folder / "job.json", TypeAdapter(Job).validate_json, "delete its folder")


Record = TypeVar("Record", Job, Failure)


def _read_record(path: Path, validate: Callable[[str], Record], remedy: str) -> Record | None:
    """Read a record of a job; None if there is no such file.

    Raises:
        CaptioningError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        return load_record(path, validate)
    except CaptioningError as error:
        raise CaptioningError(f"{error} It is damaged: {remedy}.") from None


def check_same_job(folder: Path, job: Job) -> None:
    """Check that a folder is empty or belongs to the same job.

    Raises:
        CaptioningError: the folder holds a run with other settings or other data.
    """
    earlier = read_job(folder)
    if earlier is None:
        is_other = (folder / "results.json").exists() or (folder / "checkpoints").exists()
    else:
        settings = relevant_settings(job.config)
        is_other = earlier.data != job.data or relevant_settings(earlier.config) != settings
    if is_other:
        raise CaptioningError(
            "The job's folder holds a run with another configuration or other data, which is not "
            "overwritten: delete it, or choose another hydra.sweep.dir."
        )


def relevant_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the settings that cannot change results."""
    kept = without(config, _NO_EFFECT)
    read: dict[str, Any] = json.loads(json.dumps(kept))  # comparable to a configuration from a file
    return read


def fingerprint(data: Mapping[str, Any]) -> str:
    """The fingerprint of the data set of a ``data`` group; reads the captions, but no image."""
    keys = ("root", "name", "layout", "skip_bad", "split_seed", "cache")
    return _fingerprint(*(data[key] for key in keys))


@cache
def _fingerprint(
    root: Any, name: str, layout: Any, skip_bad: bool, split_seed: int, cache: Any
) -> str:
    return read_corpus(
        ensure_data_folder(root, name, cache),
        name=name,
        layout=layout,
        skip_bad=skip_bad,
        split_seed=split_seed,
        cache=cache_folder(cache),
    ).fingerprint
