import os
import signal
import sys
import threading

import pytest

from captioning.metrics import meteor
from captioning.metrics.meteor import meteor_scores, start_meteor
from captioning.support.errors import CaptioningError

HYPOTHESES = ["a big dog runs quickly across the field", "two men sit", ""]
REFERENCES = [["a large dog is running fast through the field"], ["two men sitting", "men"], ["x"]]


def warm_pid() -> int:
    return meteor._warm[os.getpid()][0].pid


def test_one_program_serves_every_call() -> None:
    first = meteor_scores(HYPOTHESES, REFERENCES)
    pid = warm_pid()
    assert meteor_scores(HYPOTHESES, REFERENCES) == first
    assert warm_pid() == pid


def test_thousands_of_captions_do_not_fill_a_pipe() -> None:
    many = 3000
    corpus, segments, _ = meteor_scores(["a dog"] * many, [["a dog runs", "x " * 300]] * many)
    assert len(segments) == many
    assert segments == [segments[0]] * many
    assert corpus == pytest.approx(segments[0], abs=1e-12)


@pytest.mark.usefixtures("small_meteor")
def test_killed_in_mid_run_it_is_started_again_and_the_scores_are_right() -> None:
    hypotheses, references = HYPOTHESES * 300, REFERENCES * 300
    whole = meteor_scores(hypotheses, references)
    pid = warm_pid()
    (process,) = meteor._warm[os.getpid()]
    receive, answers = process.receive, []

    def killed_at_the_hundredth() -> str:
        answers.append(receive())
        if len(answers) == 100:
            os.kill(pid, signal.SIGKILL)
        return answers[-1]

    process.receive = killed_at_the_hundredth  # type: ignore[method-assign]
    assert meteor_scores(hypotheses, references) == whole
    assert warm_pid() != pid
    assert 100 <= len(answers) < len(hypotheses)
    with pytest.raises(ChildProcessError):  # no zombie is left of the first
        os.waitpid(pid, 0)


@pytest.mark.usefixtures("small_meteor")
def test_a_large_corpus_is_spread_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    hypotheses, references = HYPOTHESES * 11, REFERENCES * 11
    hypotheses[20] = "another dog"
    alone = meteor_scores(hypotheses, references)
    with monkeypatch.context() as many:
        many.setattr(meteor, "_SHARE", 10)
        many.setattr(os, "cpu_count", lambda: 2)
        assert meteor_scores(hypotheses, references) == alone
    first, second = meteor._warm[os.getpid()]
    os.kill(second.pid, signal.SIGKILL)
    assert meteor_scores(hypotheses, references) == alone
    assert not first.alive  # it may have had requests of its own under way
    assert len(meteor._warm[os.getpid()]) == 1


@pytest.fixture
def no_warm_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the warm program aside, as if this process had not started one."""
    monkeypatch.setattr(meteor, "_warm", {})


@pytest.mark.usefixtures("no_warm_program")
def test_dying_twice_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []

    def dies(*_: str, heap: str) -> list[str]:
        starts.append(heap)
        return [sys.executable, "-c", "import sys; sys.exit('OutOfMemoryError: heap')"]

    monkeypatch.setattr(meteor, "java_command", dies)
    with pytest.raises(CaptioningError, match=r"died twice on these 3 .*OutOfMemoryError: heap"):
        meteor_scores(HYPOTHESES, REFERENCES)
    assert len(starts) == 2
    assert meteor._warm == {}


@pytest.mark.usefixtures("no_warm_program")
def test_an_interrupt_ends_the_program_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleeps(*_: str, heap: str) -> list[str]:
        return [sys.executable, "-c", "import time; time.sleep(600)"]

    monkeypatch.setattr(meteor, "java_command", sleeps)
    start_meteor()
    pid = warm_pid()
    main = threading.main_thread().ident
    # A job in a shell's background is started with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            meteor_scores(HYPOTHESES, REFERENCES)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert meteor._warm == {}


def test_separators_and_line_ends_stay_within_their_caption() -> None:
    hypotheses = ["a ||| dog", "a\ndog", "a\r\ndog"]
    references = [["a dog ||| cat", "x"], ["a dog\ncat"], ["a dog\rcat"]]
    _, segments, _ = meteor_scores(hypotheses, references)
    plain = meteor_scores(["a dog"] * 3, [["a dog cat", "x"], ["a dog cat"], ["a dog cat"]])[1]
    assert segments == plain
