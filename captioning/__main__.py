"""``captioning COMMAND``, or ``python -m captioning COMMAND``."""

import runpy
import sys
from importlib import import_module
from pathlib import Path

from captioning.support.extras import EXTRAS, missing
from captioning.support.imports import importing
from captioning.support.nearest import did_you_mean
from captioning.support.output import lasting_output
from captioning.support.signals import ended_by, signal_of, stopping_by_signals

SCRIPTS = {
    "train": "train and score a model, as train.py does; takes Hydra's KEY=VALUE",
    "eval": "score a checkpoint or a file of captions, as eval.py does",
    "caption": "caption photographs, as caption.py does",
}
COMMANDS = {
    "leaderboard": "rank the runs below some folders, and compare them with the best",
    "average": "average the weights of several checkpoints of one model",
    "demo": "serve a page on this computer that captions photographs",
    "export": "write the folder of a model, to give away or to deploy",
    "prepare": "write a data set's clean captions and its vocabulary",
}
"""The commands that need no Hydra."""


def main() -> None:
    """Run the command line, and exit with its status."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in SCRIPTS:
        with lasting_output():
            status = run_command(name)
        sys.exit(status)
    # As with `python -m`, one's own classes are imported from the folder of the command.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    del sys.argv[1]
    runpy.run_module(f"captioning.scripts.{name}", run_name="__main__", alter_sys=True)


def run_command(name: str) -> int:
    """Hand the rest of the command line to a command; give its exit status.

    Without a name, as after ``--help``, the commands are listed, but that is a mistake (status 2).
    """
    if name not in COMMANDS:
        commands = SCRIPTS | COMMANDS
        if name and name not in ("-h", "--help"):
            offer = did_you_mean(name, commands) or f"there are {', '.join(commands)}."
            print(f"error: {name}: no such command; {offer}", file=sys.stderr)
            return 2
        listed = "\n".join(f"  {key:12} {about}" for key, about in commands.items())
        usage = f"usage: captioning COMMAND ...\n\n{listed}"
        print(usage, file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    del sys.argv[1]
    try:
        with stopping_by_signals():
            with importing():
                command = import_module(f"captioning.apps.{name}")
            status: int = command.main()
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        print(f"error: {missing(f'captioning {name}', error.name)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(ended_by(error), file=sys.stderr)
        return 128 + signal_of(error)
    return status


if __name__ == "__main__":
    main()
