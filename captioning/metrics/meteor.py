"""METEOR 1.5 (Denkowski and Lavie 2014), by its authors' own program.

The program takes seconds and over a gigabyte to load its paraphrase table. One process is therefore
kept running until this process ends, and whole batches go through it at once. A large corpus is
shared by as many processes as there are cores. A thousand captions take one process a second, so
that starting another one would cost more than it saves.

The corpus score is computed from the sums of all counts and is not the mean of the images' scores.
NLTK's ``meteor_score`` is another, older metric with higher figures.
"""

import atexit
import contextlib
import os
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.meteor import meteor as original

from captioning.metrics.java import java_command, java_environment
from captioning.metrics.metric import Computed, Metric, Samples, Sums
from captioning.support.errors import CaptioningError

_JAR = Path(original.__file__).parent / original.METEOR_JAR

# Requests without an answer at a time. Their answers, of some 150 bytes each, fit into the smallest
# pipe of any system. The program therefore never waits for this process to read while this process
# waits for it to read: there is no deadlock for any number and length of captions.
_IN_FLIGHT = 16

# The number of captions for which one more process saves time.
_SHARE = 2500


class _MeteorDiedError(Exception):
    """The program ended before it answered; the message is its last output."""


class MeteorProcess:
    """One running METEOR, which starts loading at once and in the background.

    Not safe for use by several threads at a time; `meteor_scores` is.
    """

    def __init__(self) -> None:
        # A file, because nobody reads it: a pipe would fill up and block the program.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        command = java_command(
            *("-jar", _JAR.name, "-", "-", "-stdio", "-l", "en", "-norm"),
            # By default the program looks for this file beside the jar, and fails if the path has a
            # space in it.
            *("-a", "data/paraphrase-en.gz"),
            heap="2G",
        )
        self._process = subprocess.Popen(
            command,
            cwd=_JAR.parent,
            env=java_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends it
        )

    @property
    def pid(self) -> int:
        """The program's process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the program is running."""
        return self._process.poll() is None

    def evaluate(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        """The corpus score, from the summed counts of the segments, and each segment's score."""
        self.send(" ||| ".join(["EVAL", *statistics]))
        segments = [float(self.receive()) for _ in statistics]
        return float(self.receive()), segments

    def close(self) -> None:
        """End the program and wait until it is gone."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):  # the program ended before it read a request
                stream.close()

    def send(self, lines: str) -> None:
        """Send requests, one on each line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(lines.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise _MeteorDiedError(self._last_words()) from None

    def receive(self) -> str:
        """The answer to the first request that has not been answered yet."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode()
        if not line.endswith("\n"):
            raise _MeteorDiedError(self._last_words())
        if line.startswith("Error"):
            raise CaptioningError(f"METEOR refused a caption: {line.strip()}")
        return line.strip()

    def _last_words(self) -> str:
        status = self._process.wait()
        self._complaints.seek(0)
        first = self._complaints.readline().decode(errors="replace").strip()
        return f"exit status {status}" + (f", {first}" if first else "")


def _one_field(tokens: str) -> str:
    # The replacements of pycocoevalcap, which makes them in hypotheses only. In a reference, "|||"
    # would split it into two. The tokeniser never returns line ends.
    return tokens.replace("|||", "").replace("  ", " ").replace("\n", " ").replace("\r", " ")


def _summable(line: str) -> list[float]:
    counts = [float(count) for count in line.split()]
    length, reference_length, *_ = counts
    matches, reference_matches = sum(counts[4:20:2]), sum(counts[5:20:2])
    # If a whole hypothesis matches a whole reference, the program does not count the single chunk,
    # because the match is not fragmented.
    if (matches, reference_matches, counts[20]) == (length, reference_length, 1):
        counts[20] = 0.0
    return counts


def _statistics(
    processes: Sequence[MeteorProcess],
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
) -> list[str]:
    """METEOR's statistics of each hypothesis, a line of numbers each, for `evaluate`."""
    requests = [
        " ||| ".join(["SCORE", *map(_one_field, segment), _one_field(hypothesis)])
        for hypothesis, segment in zip(hypotheses, references, strict=True)
    ]
    blocks = [requests[start : start + _IN_FLIGHT] for start in range(0, len(requests), _IN_FLIGHT)]
    answers: list[str] = []
    for first in range(0, len(blocks), len(processes)):
        # In the last turn some processes may have no block.
        turn = list(zip(processes, blocks[first : first + len(processes)], strict=False))
        for process, block in turn:
            process.send("\n".join(block))
        answers += [process.receive() for process, block in turn for _ in block]
    return answers


# By process id, so that a forked child starts its own METEOR instead of writing to the pipe of its
# parent.
_warm: dict[int, list[MeteorProcess]] = {}
_lock = threading.Lock()


def start_meteor(captions: int = 0) -> None:
    """Start METEOR in the background, so that `meteor_scores` need not wait for it."""
    with _lock:
        _warm_processes(captions)


def meteor_scores(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float], list[list[float]]]:
    """METEOR of a corpus and of each of its segments, from 0 to 1.

    Safe for several threads, which take turns. If the program dies it is started again, once.

    Args:
        hypotheses: tokenised captions, one for each segment.
        references: tokenised captions, one or more for each segment.

    Returns:
        The corpus score, computed from the sums of all counts (not the segments' mean), each
        segment's score, and each segment's 23 counts as the program sums them.

    Raises:
        CaptioningError: METEOR died twice, or Java is missing.
    """
    with _lock:
        for attempt in (1, 2):
            processes = _warm_processes(len(hypotheses))
            try:
                statistics = _statistics(processes, hypotheses, references)
                scores = processes[0].evaluate(statistics)
                return *scores, [_summable(line) for line in statistics]
            except _MeteorDiedError as death:
                _close()
                if attempt == 2:
                    raise CaptioningError(
                        f"METEOR died twice on these {len(hypotheses)} captions ({death}): free "
                        "some memory, shorten captions of thousands of words, or leave METEOR out"
                    ) from None
            except BaseException:  # also Ctrl-C: an unread answer may remain in the pipe
                _close()
                raise
    raise AssertionError("unreachable")


def _warm_processes(captions: int) -> list[MeteorProcess]:
    wanted = max(1, min(os.cpu_count() or 1, captions // _SHARE))
    processes = _warm.setdefault(os.getpid(), [])
    if not all(process.alive for process in processes):
        _close()
        processes = _warm[os.getpid()] = []
    processes += [MeteorProcess() for _ in range(wanted - len(processes))]
    return processes


@atexit.register
def _close() -> None:
    for process in _warm.pop(os.getpid(), []):
        process.close()


def _compute(references: list[Any], captions: list[str]) -> Computed:
    corpus, per_image, statistics = meteor_scores(captions, references)
    return Computed({"METEOR": corpus}, {"METEOR": per_image}, np.array(statistics))


# The parameters that the METEOR 1.5 program uses for English by default (task "rank").
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
_WORDS = np.array([_DELTA, 1 - _DELTA])  # content, function


def _from_sums(sums: Sums) -> Samples:
    """METEOR 1.5 of summed statistics (Denkowski and Lavie 2014, sec. 2).

    Args:
        sums: of the 23 numbers that the program prints for each image, in its order.
    """
    # The last axis of each of these: hypothesis, reference.
    lengths, function_words, matched = sums[:, 0:2], sums[:, 2:4], sums[:, 21:23]
    matches = sums[:, 4:20].reshape(-1, len(_MATCHERS), len(_WORDS), 2)
    chunks = sums[:, 20]

    weighted_lengths = _DELTA * (lengths - function_words) + (1 - _DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.einsum("rmwh,m,w->rh", matches, _MATCHERS, _WORDS) / weighted_lengths
        precision, recall = shares.T
        mean = 1 / ((1 - _ALPHA) / precision + _ALPHA / recall)
        fragmentation = chunks / matched.mean(axis=1)
    penalty = _GAMMA * fragmentation**_BETA
    # If nothing matches, 0 / 0 gives NaN, and the score is 0.
    return {"METEOR": np.nan_to_num((mean * (1 - penalty)).clip(min=0), nan=0.0)}


METEOR = Metric("METEOR", ("METEOR",), statistics=23, from_sums=_from_sums, compute=_compute)
