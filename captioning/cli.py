"""The interface between Hydra and the package.

No other module of the package imports Hydra, except for :mod:`captioning.cli_errors`, which has the
messages for wrong keys and choices, and the commands themselves in :mod:`captioning.scripts`.
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
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from captioning.cli_errors import one_sentence, options_first
from captioning.support.claims import (
    check_unused,
    claim,
    claim_new,
    discard,
    make_for_sweep,
    release_claims,
)
from captioning.support.errors import CaptioningError
from captioning.support.files import atomic_write_text, naming_disk_faults
from captioning.support.output import lasting_output
from captioning.support.ranks import is_first_process
from captioning.support.signals import signal_of, stopping_by_signals

Task = Literal["train", "evaluate", "caption"]

CONF = str(Path(__file__).parent / "conf")
"""The folder of the configurations. In a checkout it is a link to ``conf/`` beside the package."""

# Hydra deep-copies all registered configurations whenever it lists a group, which takes half of the
# time of --help. They are only read, so the copy is not needed.
setattr(ConfigStore.instance(), "__deepcopy__", lambda memo: ConfigStore.instance())  # noqa: B010


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


def ended_by(error: KeyboardInterrupt) -> str:
    """How a command was ended: ``interrupted``, by Ctrl-C, or ``stopped by SIGTERM``."""
    number = signal_of(error)
    return "interrupted" if number == signal.SIGINT else f"stopped by {number.name}"


def _run_task(
    task: Task, settings: dict[str, Any], hydra: HydraConf | DictConfig
) -> dict[str, dict[str, float]]:
    # Imported here, so that --help and wrong keys need not wait for torch.
    from captioning.support.optional import import_lightning

    if task == "caption":
        import_lightning(settings)
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
        from captioning.evaluation.evaluate import evaluate

        return evaluate(settings, folder, command)
    import_lightning(settings)
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


def swept_overrides(hydra: HydraConf | DictConfig) -> list[str]:
    """The overrides that distinguish a job from others of its sweep, as unquoted ``key=value``."""
    return _swept_overrides(hydra.overrides.task, hydra.job.config.override_dirname.exclude_keys)


def _swept_overrides(overrides: Sequence[str], common: Sequence[str]) -> list[str]:
    given = OverridesParser.create().parse_overrides(list(overrides))
    return [f"{key_of(each)}={_value_of(each)}" for each in given if key_of(each) not in common]


def key_of(override: Override) -> str:
    """The key that an override sets, with its package, for example ``decoding@validation``."""
    return override.get_key_element().lstrip("+~")


def _value_of(override: Override) -> str:
    value = override.value()
    return value if isinstance(value, str) else str(override.input_line).partition("=")[2]


def job_folder(overrides: Sequence[str], common: Sequence[str]) -> str:
    """The name of a job's folder: its swept overrides, turned into a valid file name."""
    return file_name(",".join(sorted(_swept_overrides(overrides, common))) or "job")


def file_name(text: str) -> str:
    """Turn a text into a valid file name. If that changes it, a digest of the text is appended."""
    name = re.sub(r"[^\w ,.=+@:()\[\]{}-]", "_", text).encode()[:150].decode(errors="ignore")
    if name == text:
        return name
    return f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


# In a configuration: ${job_folder:OVERRIDES,KEYS_THAT_ALL_JOBS_SHARE}
OmegaConf.register_new_resolver("job_folder", job_folder)


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
    in_checkout = (Path(__file__).parent.parent / f"{name}.py").is_file()
    program = ["python", f"{name}.py"] if in_checkout else ["captioning", name]
    return shlex.join([*program, *overrides])


@contextmanager
def command_line(config_name: str, *literal: str, lists: Sequence[str] = ()) -> Iterator[None]:
    """Handle mistakes, Ctrl-C, signals and closed pipes around the main function of a script.

    A mistake on the command line exits with one sentence and status 1. Ctrl-C in a multirun exits
    with one line and status 130, and a signal likewise. A run goes on when what it prints is not
    read any more.

    Args:
        config_name: the name of the script's configuration, for example ``train``.
        literal: the keys whose values are taken literally; see :func:`take_literally`.
        lists: those among them that also take a list.
    """
    take_literally(*literal, lists=lists)
    sys.argv[1:] = options_first(sys.argv[1:])
    # Otherwise logging prints a traceback for every line that a full disk cannot take.
    logging.raiseExceptions = False
    with lasting_output():
        try:
            with stopping_by_signals(), one_sentence(config_name):
                yield
        except KeyboardInterrupt as error:
            print(f"{ended_by(error)}; the same command continues", file=sys.stderr)
            sys.exit(128 + signal_of(error))
        finally:
            release_claims()


def fixed_and_swept(hydra: DictConfig) -> tuple[list[str], list[str]]:
    """The keys that a multirun sets to the same value in all jobs, and the keys that vary."""
    given = OverridesParser.create().parse_overrides(list(hydra.overrides.task))
    fixed = [key_of(each) for each in given if not each.is_sweep_override()]
    swept = [key_of(each) for each in given if each.is_sweep_override()]
    swept += sorted(set(hydra.sweeper.get("params") or []) - {*fixed, *swept})
    return fixed, swept


def set_for_all_jobs(config: DictConfig, fixed: Sequence[str], **settings: str) -> None:
    """Add Hydra settings to all jobs of a multirun, and leave fixed keys out of folder names."""
    hidden = f"[{','.join(map(quoted, fixed))}]"
    settings = {"job.config.override_dirname.exclude_keys": hidden, **settings}
    with read_write(config), open_dict(config):
        config.hydra.overrides.hydra += [f"hydra.{key}={value}" for key, value in settings.items()]


class Claim(Callback):
    """Hydra callback for single runs: claims the output folder, before anything is written there.

    Hydra names the folder by the time, so that runs of the same second get the same name; all but
    the first of them take another one. A folder that the user names is used, unless another run is
    using it. A run that is resumed also claims the folder in which it continues its checkpoints.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not is_first_process():  # which claims the folder for all
            return
        # Hydra does this after its callbacks, but the name of the folder refers to ${hydra:...}.
        HydraConfig.instance().set_config(config)
        hydra = config.hydra
        folder = Path(hydra.run.dir)
        resumed = config.get("resume")
        try:
            if any(each.startswith("hydra.run.dir=") for each in hydra.overrides.hydra):
                claim(folder)
            else:
                folder = claim_new(folder)
                with read_write(hydra):
                    hydra.run.dir = str(folder)
            if resumed and Path(resumed).is_file():
                earlier = Path(resumed).parent
                earlier = earlier.parent if earlier.name == "checkpoints" else earlier
                if earlier.resolve() != folder.resolve():
                    claim(earlier)
        except CaptioningError as error:  # Hydra would only warn
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)


class Evaluations(Callback):
    """Hydra callback for multiruns of ``eval.py``: names the folders and writes a leaderboard."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        set_for_all_jobs(config, fixed_and_swept(config.hydra)[0])
        self.failures = failures(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.apps import leaderboard

        folder = Path(config.hydra.sweep.dir)
        split = ["--split", "dev"] if config.split == "dev" else []
        if leaderboard.main([os.path.relpath(folder), *split]) or failures(folder) - self.failures:
            sys.exit(1)


class Sweep(Callback):
    """Hydra callback for multiruns of ``train.py``: chooses folders and writes the summary.

    Each sweep gets its own folder, and each job a subfolder that is named by its swept overrides.
    The sweep's folder name ends in a digest of the settings that all jobs share, so that the same
    command finds its folder again and different sweeps never share one. After the last job the
    callback writes the summary and exits with status 1 if a job failed.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        hydra = config.hydra
        fixed, swept = fixed_and_swept(hydra)
        if config.get("resume") or "resume" in swept:
            sys.exit(
                "error: resume is for a single run, as all jobs would write into that run's "
                "folder: leave it out. The jobs of a sweep resume by themselves."
            )
        folder = Path(hydra.sweep.dir).absolute()  # Ray workers have another working directory
        if not any(each.startswith("hydra.sweep.dir=") for each in hydra.overrides.hydra):
            folder /= sweep_name(config, swept)
        try:
            make_for_sweep(folder)
            atomic_write_text(folder / "multirun.yaml", OmegaConf.to_yaml(config))
        except CaptioningError as error:  # Hydra would only warn
            sys.exit(f"error: {error}")
        self.failures = failures(folder)
        # The configuration of each job is in its job.json.
        settings = {"sweep.dir": quoted(str(folder)), "output_subdir": "null"}
        set_for_all_jobs(config, fixed, **settings)
        with read_write(config):
            hydra.sweep.dir = str(folder)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from captioning.sweeps.summary import summarise

        folder = Path(config.hydra.sweep.dir)
        try:
            summarise(folder)
        except CaptioningError as error:  # Hydra would only warn and exit with status 0
            sys.exit(f"error: {error}")
        except Exception:  # likewise, but this is a bug, so the traceback is shown
            traceback.print_exc()
            sys.exit(1)
        if failures(folder) - self.failures:
            sys.exit(1)


def failures(folder: Path) -> set[tuple[Path, int]]:
    """The ``failed.json`` files below a folder, each with its modification time in nanoseconds."""
    return {(path, path.stat().st_mtime_ns) for path in folder.rglob("failed.json")}


def sweep_name(config: DictConfig, swept: Sequence[str]) -> str:
    """The name of a sweep's folder: the swept keys, and a digest of all other settings."""
    from captioning.sweeps.jobs import relevant_settings

    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    common = relevant_settings({str(key): value for key, value in plain.items() if key != "hydra"})
    digest = hashlib.sha256(json.dumps([common, sorted(swept)]).encode()).hexdigest()[:6]
    name = config.hydra.runtime.choices.get("sweep") or ",".join(swept).replace("/", ".")
    return f"{name[:100]}-{digest}" if name else digest


def take_literally(*keys: str, lists: Sequence[str] = ()) -> None:
    """Quote the values of these keys in ``sys.argv``, so that Hydra reads them as plain strings.

    Hydra's grammar rejects file names with a comma, a bracket, ``=`` or an umlaut, and reads a
    folder called 2024 as a number. ``~`` is expanded to the user's home, since shells do not expand
    it after ``key=``. ``null`` and values that are already quoted stay unchanged. A multirun is not
    changed at all, because there a comma separates values to sweep over. Call this function before
    Hydra reads ``sys.argv``.

    Args:
        keys: the keys.
        lists: those among them whose value may also be a list, ``[A,B,C]``, unless there is a file
            of that name. Its items are taken literally in the same way; see :func:`items_of`.
    """
    if {"-m", "--multirun"} & set(sys.argv):
        return
    # Hydra reads such a path, and a word that is none of its constants, as a string in any case.
    path, constant = r"[\w.-]*/[\w./-]*", "null|true|false|nan|inf"
    understood = re.compile(rf"{path}|(?!(?i:{constant})\Z)[A-Za-z_][\w.-]*", re.ASCII)
    in_quotes = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL)
    for position, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key not in keys or value == "null":
            continue
        is_list = key in lists and value[:1] == "[" and value[-1:] == "]"
        if is_list and not os.path.exists(value):  # noqa: PTH110  Path.exists raises for a long name
            given = items_of(value[1:-1])
            items = [each if in_quotes.fullmatch(each) else _literal(each) for each in given]
            sys.argv[position] = f"{key}=[{','.join(items)}]"
        elif not (in_quotes.fullmatch(value) or understood.fullmatch(value)):
            sys.argv[position] = f"{key}={_literal(value)}"


def _literal(value: str) -> str:
    return quoted(os.path.expanduser(value))  # noqa: PTH111  Path.expanduser raises for an unknown user


def items_of(text: str) -> list[str]:
    """The items of a list of files, whose names may have commas, as those of a sweep's jobs have.

    An item in quotes ends with its quote. Any other item ends at the first comma at which it is the
    name of a file, or, if there is none, at the next comma.
    """
    # Pieces in quotes stay whole.
    pieces = re.findall(r"""\s*(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')\s*(?=,|\Z)|[^,]+""", text)
    items = []
    while pieces:
        joined = [",".join(pieces[:count]).strip() for count in range(1, len(pieces) + 1)]
        count = next((n for n, name in enumerate(joined, start=1) if _is_file(name)), 1)
        items.append(joined[count - 1])
        del pieces[:count]
    return [item for item in items if item]


def _is_file(name: str) -> bool:
    return os.path.isfile(os.path.expanduser(name))  # noqa: PTH111, PTH113  Path raises for some names


def quoted(value: str) -> str:
    """Quote a string so that Hydra's grammar reads it literally."""
    # Backslashes are special only before a quote. An unescaped `${` would start an interpolation.
    doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
    escaped = doubled.replace("'", r"\'").replace("${", r"\${")
    return f"'{escaped}'"
