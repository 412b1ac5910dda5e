"""Signals that ask a command to end: from a shell, a container, or SLURM before a time limit."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals
from typing import Any, Final

STOPPING: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""SLURM sends SIGTERM at a time limit, and before it a signal of choice; submitit's is SIGUSR2."""


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; what handles Ctrl-C handles it, too."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = Signals(number)


class Request:
    """A request to stop that waits until the work can stop: ``signal`` is the signal, or None."""

    signal: Signals | None = None

    def check(self) -> None:
        """Stop here if a signal has come.

        Raises:
            Stopped: one has come.
        """
        if self.signal is not None:
            raise Stopped(self.signal)


def signal_of(error: KeyboardInterrupt) -> Signals:
    """The signal behind a :class:`KeyboardInterrupt`, which is SIGINT after Ctrl-C."""
    return error.signal if isinstance(error, Stopped) else Signals.SIGINT


def ended_by(error: KeyboardInterrupt) -> str:
    """How a command was ended: ``interrupted``, by Ctrl-C, or ``stopped by SIGTERM``."""
    number = signal_of(error)
    return "interrupted" if number is Signals.SIGINT else f"stopped by {number.name}"


@contextmanager
def stopping_by_signals() -> Iterator[None]:
    """Within the block, each of :data:`STOPPING` raises :class:`Stopped`, as Ctrl-C would."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    with _handled_by(stop):
        yield


@contextmanager
def stopping_later() -> Iterator[Request]:
    """Within the block, a signal waits for ``check`` of the request; a second one stops at once."""
    request = Request()

    def stop(number: int, frame: Any) -> None:
        request.check()
        request.signal = Signals(number)

    with _handled_by(stop):
        yield request


@contextmanager
def keeping_sigterm() -> Iterator[None]:
    """Within the block, a library may take over SIGTERM; afterwards, it is handled as before.

    Raises:
        Stopped: the signal came within the block, and the library's handler called ``sys.exit``
            with its number, as Ray's does.
    """
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise Stopped(signal.SIGTERM) from error
        raise
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    """Handle :data:`STOPPING` by a function, except those that this process was told to ignore."""
    before = {}
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
        for number in STOPPING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
