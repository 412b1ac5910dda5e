"""Progress of long tasks, as a bar in a terminal or a few lines in a log, and their duration."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

_MIN_SECONDS = 5  # between two lines of a log


class Clock:
    """Measures the wall-clock seconds of each part of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure the time of the block and store it in ``seconds[part]``, rounded to 0.1 s."""
        start = time.perf_counter()
        yield
        self.seconds[part] = round(time.perf_counter() - start, 1)


@contextmanager
def track_progress(
    what: str, total: int, *, visible: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show the progress of ``total`` steps, with an estimate of the time left.

    Args:
        what: the name of the task.
        total: number of steps. With 0, nothing is shown.
        visible: False shows nothing.

    Yields:
        A function to call with the number of steps that have just been completed.
    """
    console = Console(stderr=True)
    if not visible or not total:
        yield lambda steps: None
    elif console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # If stdout is a terminal, rich prints other output above the bar. A pipe gets it unchanged.
        terminal = sys.stdout.isatty()
        title = TextColumn(what)
        with Progress(title, *columns, console=console, redirect_stdout=terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda steps: bar.advance(task, steps)
    else:
        yield _log_lines(what, total)


def _log_lines(what: str, total: int) -> Callable[[int], None]:
    """Log a line after every tenth of the steps, but not more often than ``_MIN_SECONDS``."""
    start = last = time.monotonic()
    done = shown = 0

    def advance(steps: int) -> None:
        nonlocal done, shown, last
        done += steps
        tenth = 10 * done // max(total, 1)
        now = time.monotonic()
        if tenth > shown and now - last >= _MIN_SECONDS:
            shown, last = tenth, now
            left = timedelta(seconds=round((now - start) / done * (total - done)))
            log.info("%s: %d of %d, %s left", what, done, total, left)

    return advance
