"""Runs a task with the configuration that Hydra composed: once, or as a job of a multirun."""

import logging
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Literal

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from captioning.cli.overrides import swept_overrides
from captioning.support.claims import check_unused, discard
from captioning.support.errors import CaptioningError
from captioning.support.files import naming_disk_faults
from captioning.support.imports import importing
from captioning.support.signals import ended_by, signal_of

Task = Literal["train", "evaluate", "caption"]


def run_job(task: Task, config: DictConfig) -> dict[str, dict[str, float]]:
    """Run a task with its configuration.

    Training and evaluation write into the output folder that Hydra made for them.

    A :class:`CaptioningError` ends a single run with one sentence and status 1. In a multirun, it
    ends an evaluation with a ``failed.json``. With HYDRA_FULL_ERROR=1 it is raised. Ctrl-C and the
    signals of :mod:`captioning.support.signals` end it with one line that says how to go on, and
    with status 128 plus the signal's number.

    Returns:
        The scores as ``{split: {metric: score}}``; empty for captioning.
    """
    hydra = HydraConfig.get()
    # On a new machine, matplotlib logs that it builds its font cache when it is imported.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    settings: dict[str, Any] = {}
    # With hydra.job.chdir, Hydra has gone to the output folder. Relative paths are nevertheless of
    # the folder in which the command was given.
    os.chdir(hydra.runtime.cwd)
    try:
        settings = resolved(config)
        with naming_disk_faults(hydra.runtime.output_dir):
            return _run_task(task, settings, hydra)
    except CaptioningError as error:
        in_multirun = hydra.mode is RunMode.MULTIRUN
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (in_multirun and task == "caption"):
            raise
        if in_multirun:
            from captioning.sweeps import jobs

            jobs.record_failure(Path(hydra.runtime.output_dir), str(error), swept_overrides(hydra))
            return {}
        print(f"error: {error}", file=sys.stderr)
        discard(Path(hydra.runtime.output_dir))
        sys.exit(1)
    except BrokenPipeError:
        if task != "caption":
            raise
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt as error:
        hint = ""
        if task == "train":
            last = last_checkpoint(Path(hydra.runtime.output_dir), settings.get("resume"))
            given = [each for each in sys.argv[1:] if not each.startswith("resume=")]
            if last is None:
                hint = " before the end of the first epoch; the same command starts again"
            else:
                command = shlex.join([*started_as(sys.argv[0]), *given, f"resume={last}"])
                hint = f"; this continues after the last complete epoch: {command}"
        print(f"{ended_by(error)}{hint}", file=sys.stderr)
        sys.exit(128 + signal_of(error))


def _run_task(
    task: Task, settings: dict[str, Any], hydra: HydraConf | DictConfig
) -> dict[str, dict[str, float]]:
    # Imported here, so that --help and wrong keys need not wait for torch.
    if task == "caption":
        with importing():
            from captioning.apps.caption import caption
            from captioning.support.build import only_groups

        only_groups(settings, ("decoding",))
        caption(settings)
        return {}
    folder = Path(hydra.runtime.output_dir)
    command = command_of(hydra)
    if task == "evaluate":
        if hydra.mode is not RunMode.MULTIRUN:
            check_unused(folder)
        # Scoring a file of captions needs no model and does not import torch.
        from captioning.evaluation.captions_file import EvalSettings, score_file
        from captioning.support.build import only_groups

        only_groups(settings, ("data", "decoding", "trainer"))
        asked = EvalSettings.of(settings)
        if asked.are_humans:
            from captioning.evaluation.humans import score_humans

            return score_humans(settings, folder, command)
        if asked.captions:
            return score_file(settings, folder, command)
        with importing():
            from captioning.evaluation.evaluate import evaluate

        return evaluate(settings, folder, command)
    with importing():
        from captioning.training import fit

    return fit.train(settings, folder, command, only_new=True)


def in_sweep() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def train_in_sweep(config: DictConfig) -> float | None:
    """Run a job of a multirun of ``train.py`` in its own process.

    Returns:
        The score that a search maximises. None if the job failed; the other jobs still run.
    """
    from captioning.sweeps import jobs  # imported late, to keep --help fast

    hydra = HydraConfig.get()
    os.chdir(hydra.runtime.cwd)  # as in `run_job`
    folder = Path(hydra.runtime.output_dir)
    overrides = swept_overrides(hydra)
    runs_sequentially = hydra.runtime.choices["hydra/launcher"] == "basic"
    logs = OmegaConf.to_container(hydra.job_logging, resolve=True)
    assert isinstance(logs, dict)
    try:
        with naming_disk_faults(folder):
            return jobs.run_job(
                folder,
                resolved(config),
                overrides=overrides,
                command=command_of(hydra),
                logging={str(key): value for key, value in logs.items()},
                cwd=Path(hydra.runtime.cwd),
                output=None if runs_sequentially else folder / "output.log",
            )
    except (CaptioningError, OSError) as error:
        jobs.record_failure(folder, str(error), overrides)
        return None


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data, with all interpolations resolved.

    Raises:
        CaptioningError: a value is missing, or a value that another one refers to.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise CaptioningError(
            f"{error.full_key}= is missing: --help says what it takes."
        ) from error
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        raise CaptioningError(f"{key}: {str(error).partition(chr(10))[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def command_of(hydra: HydraConf | DictConfig) -> str:  # Hydra returns a DictConfig
    """The command line that runs this job alone, without the multirun of a ``sweep=NAME``."""
    overrides = list(hydra.overrides.task)
    if any(each.startswith("sweep=") for each in overrides):
        # A named sweep may also set what all its jobs share, so it is kept, for one run.
        overrides.append("hydra.mode=RUN")
    name = hydra.job.name
    in_checkout = (Path(__file__).parents[2] / f"{name}.py").is_file()
    program = ["python", f"{name}.py"] if in_checkout else ["captioning", name]
    return shlex.join([*program, *overrides])


def last_checkpoint(folder: Path, resume: str | None) -> Path | None:
    """The checkpoint from which a run can be continued; None if there is none yet.

    Args:
        folder: the folder of the run.
        resume: the checkpoint from which the run was itself continued.
    """
    folders = [folder / "checkpoints", *([Path(resume).absolute().parent] if resume else [])]
    return next((f / "last.ckpt" for f in folders if (f / "last.ckpt").is_file()), None)


def started_as(script: str) -> list[str]:
    """How the user has started a script: ``python train.py``, or ``captioning train``.

    Args:
        script: ``sys.argv[0]``.
    """
    path = Path(script)
    if path.parent.name == "scripts" and path.parent.parent.name == "captioning":
        return ["captioning", path.stem]
    return ["python", script]
