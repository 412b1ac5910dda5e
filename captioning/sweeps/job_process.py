"""The process of one job: ``python -m captioning.sweeps.job_process FOLDER``.

It trains with the configuration in ``FOLDER/job.json`` and resumes from ``checkpoints/last.ckpt``
if that file exists and is whole. With ``trainer.devices=N``,
Lightning starts this command N - 1 more times.
"""

import logging
import logging.config
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.support.errors import CaptioningError
from captioning.support.files import naming_disk_faults
from captioning.support.output import lasting_output
from captioning.support.ranks import is_first_process
from captioning.support.signals import signal_of, stopping_by_signals
from captioning.sweeps.jobs import read_job, write_failure

log = logging.getLogger("captioning.sweeps")


def main(folder: Path) -> int:
    """Run the job of a folder.

    Returns:
        The exit status. If it is not 0, ``failed.json`` holds the reason, except after Ctrl-C or
        another signal, when it is 128 plus the signal's number.
    """
    threading.Thread(target=die_with_parent, daemon=True).start()
    logging.raiseExceptions = False  # as in :func:`captioning.cli.command.command_line`
    job = read_job(folder)
    assert job is not None
    if is_first_process():
        logging.config.dictConfig(job.logging)
    os.environ.setdefault("WANDB_RUN_GROUP", folder.parent.name)
    try:
        # imported late, because importing torch is slow
        from captioning.training import fit, resume

        earlier = resume.checkpoint_to_resume(folder)
        config = job.config | ({"resume": str(earlier)} if earlier else {})
        with stopping_by_signals(), naming_disk_faults(folder):
            logger = logger_for_job(config["logger"], folder, job.overrides)
            fit.train(config, folder, job.command, logger)
    except KeyboardInterrupt as error:
        return 128 + signal_of(error)
    except Exception as error:
        if not isinstance(error, CaptioningError):
            log.exception("The job failed.")
        if not (folder / "failed.json").exists():  # the first process to fail wins
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            write_failure(folder, reason.removeprefix("CaptioningError: "), job.overrides)
        return 1
    return 0


def logger_for_job(
    logger: Mapping[str, Any], folder: Path, overrides: Sequence[str]
) -> Mapping[str, Any]:
    """The logger's configuration for one job of a sweep.

    The name of the run of wandb or mlflow gets the job folder's name appended, and the run says to
    which sweep it belongs and which of its settings the sweep varies. A job that is continued gets
    the id of its earlier wandb run. Other loggers are returned unchanged.

    Args:
        logger: the configuration of all jobs.
        folder: the folder of the job, in that of the sweep.
        overrides: the settings in which the job differs from others, as ``key=value``.
    """
    target = logger.get("_target_", "").rpartition(".")[2]
    varied = dict(each.split("=", 1) for each in overrides)
    about = {"sweep": folder.parent.name, **{f"sweep.{key}": each for key, each in varied.items()}}
    if target == "MLFlowLogger":
        name = f"{logger.get('run_name')} {folder.name}"
        return {**logger, "run_name": name, "tags": {**(logger.get("tags") or {}), **about}}
    if target != "WandbLogger":
        return logger
    parts = sorted(folder.glob("wandb/*run-*-*"))  # [offline-]run-TIME-ID
    continued = {"id": parts[-1].name.rpartition("-")[2]} if parts else {}
    return {
        **logger,
        "name": f"{logger.get('name')} {folder.name}",
        "job_type": "sweep",
        "config": {**(logger.get("config") or {}), **about},
        **continued,
    }


def die_with_parent() -> None:
    """Kill this process group as soon as the parent process has exited.

    Stdin is a pipe that the parent holds open. The kernel closes it when the parent exits, even if
    the parent was killed, so reading the end of stdin means that the parent is gone.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    with lasting_output():
        status = main(Path(sys.argv[1]))
    sys.exit(status)
