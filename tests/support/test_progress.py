"""Progress in a log file: a line for each tenth of the steps, with the estimated time left."""

import logging
import re

import pytest

from captioning.support import progress
from captioning.support.progress import track_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose time is its only element."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def run(clock: list[float], seconds: float, visible: bool = True) -> None:
    with track_progress("Counting", 200, visible=visible) as advance:
        for _ in range(50):
            clock[0] += seconds
            advance(4)


def test_slow_work_logs_ten_lines_with_an_estimate(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(clock, seconds=60)
    assert len(caplog.messages) == 10
    assert caplog.messages[0] == "Counting: 20 of 200, 0:45:00 left"
    assert re.fullmatch(r"Counting: 200 of 200, 0:00:00 left", caplog.messages[-1])


def test_quick_or_invisible_work_logs_nothing(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run(clock, seconds=0.01)
    run(clock, seconds=60, visible=False)
    assert caplog.messages == []


def test_a_bar_in_the_terminal_leaves_what_is_printed_to_the_pipe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # stderr is a terminal, and stdout is not
    with track_progress("Counting", 2) as advance:
        print("one", "a caption", sep="\t")
        advance(2)
    printed = capsys.readouterr()
    assert printed.out == "one\ta caption\n"
    assert "Counting" in printed.err


def test_no_bar_for_nothing_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with track_progress("Reading images", 0):
        pass
    assert capsys.readouterr().err == ""
