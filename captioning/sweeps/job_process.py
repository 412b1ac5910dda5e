"""The process of one job: ``python -m captioning.sweeps.job_process FOLDER``.

It trains what ``FOLDER/job.json`` says, from ``checkpoints/last.ckpt`` on where there is one.
``trainer.devices=N`` starts the same command N - 1 times more.
"""

import logging
import logging.config
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioning.support.errors import CaptioningError
from captioning.sweeps.jobs import RANK, read_job, write_failure

log = logging.getLogger("captioning.sweeps")


def main(folder: Path) -> int:
    """Run the job of a folder; gives the exit status, after writing why where it is not 0."""
    threading.Thread(target=die_with_parent, daemon=True).start()
    job = read_job(folder)
    assert job is not None
    if {os.environ.get("LOCAL_RANK", "0"), os.environ.get(RANK, "0")} == {"0"}:
        logging.config.dictConfig(job.logging)
    last = folder / "checkpoints" / "last.ckpt"
    os.environ.setdefault("WANDB_RUN_GROUP", folder.parent.name)
    try:
        from captioning.training import fit  # only now: torch takes its time

        config = job.config | ({"resume": str(last)} if last.is_file() else {})
        fit.train(config, folder, job.command, told_apart(config["logger"], folder))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not isinstance(error, CaptioningError):
            log.exception("The job failed.")
        if not (folder / "failed.json").exists():  # by another process, which failed first
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            write_failure(folder, reason.removeprefix("CaptioningError: "), job.overrides)
        return 1
    return 0


def told_apart(logger: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """A logger's configuration: to wandb a job has its own name, and is one run if continued."""
    if "WandbLogger" not in logger.get("_target_", ""):
        return logger
    parts = sorted(folder.glob("wandb/*run-*-*"))  # [offline-]run-TIME-ID
    continued = {"id": parts[-1].name.rpartition("-")[2]} if parts else {}
    return {**logger, "name": f"{logger.get('name')} {folder.name}", **continued}


def die_with_parent() -> None:
    """Wait for the end of stdin, a pipe from the process that started this one; then end all.

    The kernel closes that pipe however its other end dies.
    """
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
