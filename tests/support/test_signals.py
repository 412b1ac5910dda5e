"""Signals that ask a process to end."""

import os
import signal
import sys

import pytest

from captioning.support.signals import (
    STOPPING,
    Stopped,
    ended_by,
    keeping_sigterm,
    signal_of,
    stopping_by_signals,
    stopping_later,
)


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_ends_the_work_as_ctrl_c_does(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt) as ended, stopping_by_signals():
        os.kill(os.getpid(), number)
    assert signal_of(ended.value) == number
    assert signal.getsignal(number) == before
    assert signal_of(KeyboardInterrupt()) == signal.SIGINT
    assert ended_by(ended.value) == f"stopped by {number.name}"
    assert ended_by(KeyboardInterrupt()) == "interrupted"


def test_a_signal_waits_for_a_place_to_stop_and_a_second_one_does_not() -> None:
    with stopping_later() as request:
        request.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        with pytest.raises(Stopped) as ended:
            request.check()
        assert ended.value.signal == signal.SIGUSR1
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)


def exits(number: int, frame: object) -> None:
    """The handler that Ray sets."""
    sys.exit(number)


def test_a_library_that_handles_sigterm_for_itself_does_not_keep_it() -> None:
    with stopping_by_signals():
        ours = signal.getsignal(signal.SIGTERM)
        with keeping_sigterm():
            signal.signal(signal.SIGTERM, exits)
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(Stopped), keeping_sigterm():  # noqa: PT012 - it comes within the block
            signal.signal(signal.SIGTERM, exits)
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == ours
        with pytest.raises(SystemExit, match="error"), keeping_sigterm():
            sys.exit("error: another reason")


def test_a_signal_that_is_to_be_ignored_is_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with stopping_by_signals():
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
