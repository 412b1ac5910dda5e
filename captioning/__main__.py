"""``python -m captioning COMMAND``: the commands that need no Hydra."""

import sys
from importlib import import_module

from captioning.support.output import lasting_output
from captioning.support.signals import signal_of, stopping_by_signals

COMMANDS = {
    "leaderboard": "rank the runs below some folders, and compare them with the best",
    "average": "average the weights of several checkpoints of one model",
    "demo": "serve a page on this computer that captions photographs",
    "export": "write the folder of a model, to give away or to deploy",
    "prepare": "write a data set's clean captions and its vocabulary",
}


def main() -> int:
    """Hand the rest of the command line to a command; give its exit status."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        listed = "\n".join(f"  {command:12} {about}" for command, about in COMMANDS.items())
        print(f"usage: python -m captioning COMMAND ...\n\n{listed}")
        asked = name in ("-h", "--help")
        if not asked:
            print(f"\nerror: {name} is not a command.", file=sys.stderr)
        return 0 if asked else 2
    del sys.argv[1]
    try:
        with stopping_by_signals():
            status: int = import_module(f"captioning.apps.{name}").main()
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return 128 + signal_of(error)
    return status


if __name__ == "__main__":
    with lasting_output():
        status = main()
    sys.exit(status)
