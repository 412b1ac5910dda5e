"""What stands between Hydra and the package: the one module that knows Hydra."""

import os
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from captioning.errors import CaptioningError

Task = Literal["train", "evaluate", "caption"]


def run_job(task: Task, config: DictConfig) -> dict[str, dict[str, float]]:
    """Run a task with its configuration; returns ``{split: {metric: score}}`` of what it scored.

    Training and evaluation write into the folder that Hydra made for them.

    A user's mistake ends a single run with one sentence and status 1. In a sweep it is raised, so
    that the launcher notes the failed job and goes on; so is anything under HYDRA_FULL_ERROR=1.
    """
    hydra = HydraConfig.get()
    try:
        try:
            plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            key = error.full_key or "the configuration"
            raise CaptioningError(f"{key}: {str(error).partition(chr(10))[0]}") from error
        assert isinstance(plain, dict)
        settings = {str(key): value for key, value in plain.items()}
        # Imported here, so that --help and wrong keys need not wait for torch.
        if task == "caption":
            from captioning.caption import caption

            caption(settings)
            return {}
        command = shlex.join(["python", Path(sys.argv[0]).name, *hydra.overrides.task])
        folder = Path(hydra.runtime.output_dir)
        if task == "evaluate":
            # Without torch where no model is needed.
            from captioning.score import EvalSettings, score_file

            if EvalSettings.of(settings).captions:
                return score_file(settings, folder, command)
        from captioning import run

        job = run.train if task == "train" else run.evaluate
        return job(settings, folder, command)
    except CaptioningError as error:
        if hydra.mode is RunMode.MULTIRUN or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
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
    quoted = re.compile(r"""(["'])(?:\\.|(?!\1).)*\1""", re.DOTALL)
    for position, argument in enumerate(sys.argv):
        key, _, value = argument.partition("=")
        if key not in keys or value == "null":
            continue
        if not (quoted.fullmatch(value) or understood.fullmatch(value)):
            value = os.path.expanduser(value)  # noqa: PTH111  pathlib's fails at an unknown user
            # Backslashes count before a quote alone; `${` would stand for the value of a key.
            doubled = re.sub(r"(\\+)(?='|\Z)", r"\1\1", value)
            escaped = doubled.replace("'", r"\'").replace("${", r"\${")
            sys.argv[position] = f"{key}='{escaped}'"
