"""Doing something in this process, with an end in any case."""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from captioning.support.errors import CaptioningError
from faults.outcome import Outcome

Result = TypeVar("Result")

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


def is_sentence(message: str) -> bool:
    """Whether a message is one line that fits onto a screen."""
    return 0 < len(message) <= MAX_MESSAGE and message.isprintable()
