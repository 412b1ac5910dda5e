"""What stands around the main function of a command that Hydra composes."""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.config_store import ConfigStore

from captioning.cli.errors import one_sentence, options_first
from captioning.cli.literal_values import take_literally
from captioning.support.claims import release_claims
from captioning.support.output import lasting_output
from captioning.support.signals import ended_by, signal_of, stopping_by_signals

CONF = str(Path(__file__).parents[1] / "conf")
"""The folder of the configurations. In a checkout it is a link to ``conf/`` beside the package."""

# Hydra deep-copies all registered configurations whenever it lists a group, which takes half of the
# time of --help. They are only read, so the copy is not needed.
setattr(ConfigStore.instance(), "__deepcopy__", lambda memo: ConfigStore.instance())  # noqa: B010


@contextmanager
def command_line(config_name: str, *literal: str, lists: Sequence[str] = ()) -> Iterator[None]:
    """Handle mistakes, Ctrl-C, signals and closed pipes around the main function of a script.

    A mistake on the command line exits with one sentence and status 1. Ctrl-C in a multirun exits
    with one line and status 130, and a signal likewise. A run goes on when what it prints is not
    read any more.

    Args:
        config_name: the name of the script's configuration, for example ``train``.
        literal: the keys whose values are taken literally; see `take_literally`.
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
