"""Doing something in this process, with an end in any case."""

import os
import runpy
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn, TypeVar

from captioning.support.errors import CaptioningError
from faults.outcome import Outcome

Result = TypeVar("Result")

ROOT: Final = Path(__file__).parents[1]

MAX_MESSAGE: Final = 1500
"""Characters; a longer message does not fit onto a screen."""


class Hang(BaseException):
    """The time is over. No ``except Exception`` catches it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`Hang` in the main thread if the block takes longer."""

    def stop(number: int, frame: object) -> None:
        raise Hang(f"no end within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(work: Callable[[], Result], seconds: float) -> tuple[Outcome, str, Result | None]:
    """Call a function.

    Returns:
        ``right`` with its result; ``refused`` with the message of a :class:`CaptioningError`;
        ``traceback`` with the end of it for another exception, or for a message that is no
        sentence; or ``hang``.
    """
    try:
        with time_limit(seconds):
            return "right", "", work()
    except CaptioningError as error:
        message = str(error)
        return ("refused" if is_sentence(message) else "traceback"), message, None
    except Hang as hang:
        return "hang", str(hang), None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename}:{place.lineno}"
        return "traceback", f"{type(error).__name__}: {error} ({where})", None


def end_as_command(command: Sequence[str], prepare: Callable[[], object]) -> NoReturn:
    """Run ``python COMMAND`` in this process, a forked child, and end it as Python would.

    Args:
        command: a script, or ``-m`` and the name of a command of the package; and its arguments.
        prepare: what is called before it, where an error is printed as well.
    """
    status = 70
    try:
        prepare()
        script, *arguments = command
        if script == "-m":
            sys.argv = ["captioning", *arguments]
            runpy.run_module("captioning", run_name="__main__")
        else:
            sys.argv = [script, *arguments]
            runpy.run_path(str(ROOT / script), run_name="__main__")
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def is_sentence(message: str) -> bool:
    """Whether a message is one line that fits onto a screen."""
    return 0 < len(message) <= MAX_MESSAGE and message.isprintable()
