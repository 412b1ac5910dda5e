"""One job of a sweep: finished, to be continued, or to be run; and never more than itself.

A job's folder holds, beside what every run writes:

    job.json      what the job is: its configuration, and the fingerprint of its data
    failed.json   why it ended without results: {"reason": ..., "overrides": [...]}
    output.log    what it printed, where other jobs print at the same time

The same job in the same folder is skipped where there is a ``results.json``, and goes on from
``checkpoints/last.ckpt`` where there is one. Another job is refused.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from captioning.data.corpus import read_corpus
from captioning.data.locations import ensure_data_folder
from captioning.reporting.results import WHERE_DATA_LIES, read_results
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_json
from captioning.support.locks import file_lock

log = logging.getLogger(__name__)

OBJECTIVE = ("dev", "CIDEr")
"""Split and metric of the score that a sweep compares and a search maximises."""

RANK = "SLURM_PROCID"
"""Where SLURM starts all processes of a job, each calls :func:`run_job`, and this numbers them."""

# Where things are and who is told of the run: neither makes it another run. What the data is, its
# fingerprint says.
_INCIDENTAL = {"resume": ..., "logger": ..., "data": WHERE_DATA_LIES}


@dataclass(frozen=True)
class Job:
    """What a job is, as in its ``job.json``.

    Attributes:
        overrides: what distinguishes it in its sweep, ``key=value``.
        config: as composed from ``conf/train.yaml``, resolved.
        data: fingerprint of the data set.
        command: the command line that repeats it alone, for ``results.json``.
        logging: for :func:`logging.config.dictConfig`.
    """

    overrides: list[str]
    config: dict[str, Any]
    data: str
    command: str
    logging: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """Why a job ended without results, as in its ``failed.json``.

    Attributes:
        reason: in one line.
        overrides: as those of :class:`Job`.
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
    """Run a job in a process of its own, unless it has finished before.

    The process, its threads and its children die with it, and with the process that called this.

    Args:
        folder: the job's own.
        config: likewise, and so `overrides`, `command` and `logging`; see :class:`Job`.
        overrides: see there.
        command: see there.
        logging: see there.
        cwd: the folder that relative paths of the configuration start from.
        output: the file that gets what the process prints; None leaves it to the caller's own.

    Returns:
        The dev split's CIDEr; None if the job failed, of which ``failed.json`` then has the reason.
    """
    leads = os.environ.get(RANK, "0") == "0"
    with file_lock(folder / ".lock", f"it runs {folder}") if leads else nullcontext():
        try:
            job = Job(overrides, config, fingerprint(config["data"]), command, logging)
            check_free(folder, job)
            before = objective(folder) if (folder / "results.json").is_file() else None
        except (CaptioningError, OSError) as error:
            fail(folder, str(error), overrides)
            return None
        atomic_write_json(folder / "job.json", asdict(job))
        if leads:
            (folder / "failed.json").unlink(missing_ok=True)
        if before is not None:
            log.info("Finished before: %s", folder)
            return before
        status = _run(folder, cwd, output)
    if status == 0:
        return objective(folder) if leads else None
    failure = read_failure(folder)
    fail(folder, failure.reason if failure else ending(status), overrides)
    return None


def _run(folder: Path, cwd: Path, output: Path | None) -> int:
    """The exit status of the process; negative is the signal that killed it."""
    file = output.open("ab") if output else None
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "captioning.sweeps.job_process", str(folder)],
            cwd=cwd,
            stdin=subprocess.PIPE,  # closes when this process dies, which the child waits for
            stdout=file,
            stderr=file,
            # A group of its own, so that what it has started can be ended with it.
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
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        assert process.stdin is not None
        process.stdin.close()


def ending(status: int) -> str:
    """What an exit status says, in words."""
    if status >= 0:
        return f"The process ended with exit status {status}."
    name = signal.Signals(-status).name
    memory = ", as the kernel does where memory runs out" if status == -signal.SIGKILL else ""
    return f"The process was killed by {name}{memory}."


def read_failure(folder: Path) -> Failure | None:
    """Why a job failed; None where it has not failed."""
    path = folder / "failed.json"
    try:
        return Failure(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CaptioningError(f"{path} tells of no failure ({error}): delete it.") from error


def write_failure(folder: Path, reason: str, overrides: list[str]) -> None:
    """Write ``failed.json``."""
    atomic_write_json(folder / "failed.json", asdict(Failure(reason, overrides)))


def fail(folder: Path, reason: str, overrides: list[str]) -> None:
    """Say that a job failed, in the log and in its folder."""
    log.error("%s: %s", folder, reason)
    write_failure(folder, reason, overrides)


def objective(folder: Path) -> float:
    """The score of a finished job that a sweep compares."""
    split, metric = OBJECTIVE
    return read_results(folder / "results.json").scores[split][metric]


def read_job(folder: Path) -> Job | None:
    """The job that a folder is of; None where there is none yet."""
    path = folder / "job.json"
    try:
        return Job(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise CaptioningError(f"{path} is no job ({error}): delete its folder.") from error


def check_free(folder: Path, job: Job) -> None:
    """Make sure that a folder holds nothing but what the same job has left there.

    Raises:
        CaptioningError: it holds something else.
    """
    earlier = read_job(folder)
    if earlier is None:
        taken = (folder / "results.json").exists() or (folder / "checkpoints").exists()
    else:
        taken = earlier.data != job.data or essence(earlier.config) != essence(job.config)
    if taken:
        raise CaptioningError(
            "The job's folder holds a run with another configuration or other data, which is not "
            "overwritten: delete it, or choose another hydra.sweep.dir."
        )


def essence(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what makes no difference to results."""
    kept = {}
    for key, value in config.items():
        left_out = _INCIDENTAL.get(key, set())
        if isinstance(left_out, set):
            is_group = isinstance(value, Mapping)
            kept[key] = {k: v for k, v in value.items() if k not in left_out} if is_group else value
    read: dict[str, Any] = json.loads(json.dumps(kept))  # as it comes from a file
    return read


def fingerprint(data: Mapping[str, Any]) -> str:
    """The fingerprint of the data set that a configuration names; its captions are read for it."""
    return _fingerprint(*(data[key] for key in ("root", "name", "layout", "skip_bad", "cache")))


@cache
def _fingerprint(root: Any, name: str, layout: Any, skip_bad: bool, cache: Any) -> str:
    folder = ensure_data_folder(root, name, cache)
    return read_corpus(folder, name=name, layout=layout, skip_bad=skip_bad).fingerprint
