"""What stands between Hydra and the package, which knows nothing else of Hydra.

What a wrong key or choice is answered with is in :mod:`captioning.cli_errors`.
"""

import hashlib
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from captioning.cli_errors import one_sentence
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text

Task = Literal["train", "evaluate", "caption"]

# Hydra copies all configurations that plugins have registered each time it looks at a group, which
# is half of what --help takes. They are only read.
setattr(ConfigStore.instance(), "__deepcopy__", lambda memo: ConfigStore.instance())  # noqa: B010


def run_job(task: Task, config: DictConfig) -> dict[str, dict[str, float]]:
    """Run a task with its configuration; returns ``{split: {metric: score}}`` of what it scored.

    Training and evaluation write into the folder that Hydra made for them.

    A user's mistake ends a single run with one sentence and status 1, and an evaluation in a
    multirun with a ``failed.json``. Under HYDRA_FULL_ERROR=1 it is raised.
    """
    hydra = HydraConfig.get()
    # On a new machine matplotlib would speak first, of its fonts, as soon as it is imported.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        settings = resolved(config)
        # Imported here, so that --help and wrong keys need not wait for torch.
        if task == "caption":
            from captioning.apps.caption import caption
            from captioning.support.build import only_groups

            only_groups(settings, ("decoding",))
            caption(settings)
            return {}
        folder = Path(hydra.runtime.output_dir)
        command = command_of(hydra)
        if task == "evaluate":
            # Without torch where no model is needed.
            from captioning.evaluation.captions_file import EvalSettings, score_file
            from captioning.support.build import only_groups

            only_groups(settings, ("data", "decoding", "trainer"))
            if EvalSettings.of(settings).captions:
                return score_file(settings, folder, command)
            from captioning.evaluation.evaluate import evaluate

            return evaluate(settings, folder, command)
        from captioning.training import fit

        return fit.train(settings, folder, command)
    except CaptioningError as error:
        in_multirun = hydra.mode is RunMode.MULTIRUN
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or (in_multirun and task == "caption"):
            raise
        if in_multirun:
            from captioning.sweeps import jobs

            jobs.fail(Path(hydra.runtime.output_dir), str(error), varied(hydra))
            return {}
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        if task != "caption":
            raise
        # A reader such as `head` has seen enough. Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        last = Path(hydra.runtime.output_dir) / "checkpoints" / "last.ckpt"
        resumable = task == "train" and last.exists()
        hint = f"; resume={last} goes on after its last whole epoch" if resumable else ""
        print(f"interrupted{hint}", file=sys.stderr)
        sys.exit(130)


def in_sweep() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.get().mode is RunMode.MULTIRUN


def train_in_sweep(config: DictConfig) -> float | None:
    """Run a job of a multirun of ``train.py`` in a process of its own.

    Returns:
        The score that is searched for; None if the job failed, which then costs nothing but itself.
    """
    from captioning.sweeps import jobs  # not for --help

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    overrides = varied(hydra)
    alone = hydra.runtime.choices["hydra/launcher"] == "basic"
    logs = OmegaConf.to_container(hydra.job_logging, resolve=True)
    assert isinstance(logs, dict)
    try:
        return jobs.run_job(
            folder,
            resolved(config),
            overrides=overrides,
            command=command_of(hydra),
            logging={str(key): value for key, value in logs.items()},
            cwd=Path(hydra.runtime.cwd),
            output=None if alone else folder / "output.log",
        )
    except (CaptioningError, OSError) as error:
        jobs.fail(folder, str(error), overrides)
        return None


def varied(hydra: HydraConf | DictConfig) -> list[str]:
    """What distinguishes a job in its sweep: ``key=value``, without quotes."""
    return _varied(hydra.overrides.task, hydra.job.config.override_dirname.exclude_keys)


def _varied(overrides: Sequence[str], common: Sequence[str]) -> list[str]:
    given = OverridesParser.create().parse_overrides(list(overrides))
    return [f"{key_of(each)}={_value_of(each)}" for each in given if key_of(each) not in common]


def key_of(override: Override) -> str:
    """The key that an override sets, with its package, as in ``decoding@validation``."""
    return override.get_key_element().lstrip("+~")


def _value_of(override: Override) -> str:
    value = override.value()
    return value if isinstance(value, str) else str(override.input_line).partition("=")[2]


def job_folder(overrides: Sequence[str], common: Sequence[str]) -> str:
    """What the folder of a job is called: by what varies, as far as a file system takes it."""
    return file_name(",".join(sorted(_varied(overrides, common))) or "job")


def file_name(text: str) -> str:
    """A text as the name of one file; where it had to be changed, with a digest of the text."""
    name = re.sub(r"[^\w ,.=+@:()\[\]{}-]", "_", text).encode()[:150].decode(errors="ignore")
    if name == text:
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# For the configurations: ${job_folder:OVERRIDES,THOSE IN COMMON}
OmegaConf.register_new_resolver("job_folder", job_folder)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain data.

    Raises:
        CaptioningError: a value is missing, or one that others are made of.
    """
    try:
        plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = error.full_key or "the configuration"
        raise CaptioningError(f"{key}: {str(error).partition(chr(10))[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def command_of(hydra: HydraConf | DictConfig) -> str:  # the latter, posing as the former
    """The command line that repeats a job alone."""
    overrides = [each for each in hydra.overrides.task if not each.startswith("sweep=")]
    return shlex.join(["python", f"{hydra.job.name}.py", *overrides])


@contextmanager
def command_line(config_name: str, *literal: str) -> Iterator[None]:
    """What surrounds the main function of a script.

    Mistakes on the command line end it with one sentence and status 1, and Ctrl-C in a multirun
    with one line and status 130.

    Args:
        config_name: the name of its configuration, such as ``train``.
        literal: the keys whose values are taken literally; see :func:`take_literally`.
    """
    take_literally(*literal)
    try:
        with one_sentence(config_name):
            yield
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def fixed_and_swept(hydra: DictConfig) -> tuple[list[str], list[str]]:
    """The keys that a multirun sets for all its jobs, and those that vary."""
    given = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    fixed = [key_of(each) for each in given if not each.is_sweep_override()]
    swept = [key_of(each) for each in given if each.is_sweep_override()]
    swept += sorted(set(hydra.sweeper.get("params") or []) - {*fixed, *swept})
    return fixed, swept


def for_all_jobs(config: DictConfig, fixed: Sequence[str], **settings: str) -> None:
    """Have the jobs of a multirun composed with settings of Hydra's, and named by what varies."""
    hidden = f"[{','.join(map(quoted, fixed))}]"
    settings = {"job.config.override_dirname.exclude_keys": hidden, **settings}
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra += [f"hydra.{key}={value}" for key, value in settings.items()]


class Evaluations(Callback):
    """What surrounds a multirun of ``eval.py``: folders named by what varies, and a leaderboard."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        for_all_jobs(config, fixed_and_swept(config.hydra)[0])
        self.failures = failures(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.apps import leaderboard

        folder = Path(config.hydra.sweep.dir)
        split = ["--split", "dev"] if config.split == "dev" else []
        if leaderboard.main([os.path.relpath(folder), *split]) or failures(folder) - self.failures:
            sys.exit(1)


class Sweep(Callback):
    """What surrounds a multirun of ``train.py``, as a callback of Hydra's.

    Before it, jobs get folders that are named by what varies, in a folder of the sweep's own, whose
    name holds a digest of what its jobs have in common: the same command finds its folders again,
    and no two sweeps share one. After it come the summary, and exit status 1 where a job failed.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        fixed, swept = fixed_and_swept(hydra)
        if config.get("resume") or "resume" in swept:
            sys.exit(
                "error: resume is for a single run, as all jobs would write into that run's "
                "folder: leave it out. The jobs of a sweep go on by themselves."
            )
        folder = Path(hydra.sweep.dir).absolute()  # Ray's workers are elsewhere
        if not any(each.startswith("hydra.sweep.dir=") for each in hydra.overrides.hydra):
            folder /= sweep_name(config, swept)
        try:
            atomic_write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
        except OSError as error:
            sys.exit(f"error: {folder} cannot be written ({error.strerror}).")
        self.failures = failures(folder)
        # The configuration of each job is in its job.json.
        settings = {"sweep.dir": quoted(str(folder)), "output_subdir": "null"}
        for_all_jobs(config, fixed, **settings)
        with read_write(config):
            hydra.sweep.dir = str(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.sweeps.summary import summarise

        folder = Path(config.hydra.sweep.dir)
        try:
            summarise(folder)
        except CaptioningError as error:  # of which Hydra would make a warning, and status 0
            sys.exit(f"error: {error}")
        except Exception:  # likewise; it is a fault of this code, and not of the user's
            traceback.print_exc()
            sys.exit(1)
        if failures(folder) - self.failures:
            sys.exit(1)


def failures(folder: Path) -> set[tuple[Path, int]]:
    """The failures of the jobs below a folder, each with the time at which it was written."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("failed.json")}


def sweep_name(config: DictConfig, swept: Sequence[str]) -> str:
    """What the folder of a sweep is called: by what is swept, and a digest of all the rest."""
    from captioning.sweeps.jobs import essence

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    common = essence({str(key): value for key, value in plain.items() if key != "hydra"})
    digest = hashlib.sha256(json.dumps([common, sorted(swept)]).encode()).hexdigest()[:6]
    name = config.hydra.runtime.choices.get("sweep") or ",".join(swept).replace("/", ".")
    return f"{name[:100]}-{digest}" if name else digest


def take_literally(*keys: str) -> None:
    """Let Hydra read the values of these keys on the command line as the strings that they are.

    Its grammar takes no name with a comma, a bracket, ``=`` or an umlaut, and makes a number of a
    folder called 2024. ``~`` is the user's home, as shells do not always see to. A value in quotes,
    as that grammar has them, is left alone, and so is null. In a multirun the grammar holds, where
    a comma stands between values to sweep over. To be called before Hydra reads ``sys.argv``.
    """
    if {"-m", "--multirun"} & set(sys.argv):
        return
    understood = re.compile(r"[\w.-]*/[\w./-]*", re.ASCII)  # a path can be nothing else to Hydra
    in_quotes = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL)
    for position, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key not in keys or value == "null":
            continue
        if not (in_quotes.fullmatch(value) or understood.fullmatch(value)):
            value = os.path.expanduser(value)  # noqa: PTH111  pathlib's fails at an unknown user
            sys.argv[position] = f"{key}={quoted(value)}"


def quoted(value: str) -> str:
    """A string as Hydra's grammar takes it literally."""
    # Backslashes count before a quote alone; `${` would stand for the value of a key.
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
    escaped = doubled.replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"
