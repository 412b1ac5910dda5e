"""Signals and closed pipes at random moments of a run, an evaluation and a leaderboard.

Each command runs in a child that is forked from this process, where torch is imported already.
"""

import json
import os
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
from PIL import Image

import captioning.training.fit  # noqa: F401 (imported for the children)
from faults.attempt import end_as_command
from faults.outcome import Outcome, Try

DEFAULT_TRIES: Final = 40
LIMIT: Final = 120
"""Seconds after which a command hangs."""

SIGNALS: Final = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
TINY: Final = (
    "data.root=data", "data.cache=cache", "data.workers=0", "data.min_count=1", "data.batch_size=2",
    "encoder.weights=random", "encoder.image_size=32", "model.hidden_dim=16", "model.embed_dim=8",
    "model.attention_dim=8", "decoding=greedy", "trainer.accelerator=cpu", "trainer.max_epochs=3",
    "backend=torch", "trainer.precision=32-true",
)  # fmt: skip
TRAIN: Final = ("train.py", *TINY)
EVALUATE: Final = ("eval.py", "captions=captions.json", "references=references.json")
LEADERBOARD: Final = ("-m", "leaderboard", "ranked")


class Ended(NamedTuple):
    """How a command ended: its status, which is ``-signal`` if a signal killed it, and its output.

    The status is None if it had to be killed because it did not end.
    """

    status: int | None
    text: str
    seconds: float


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Try each kind in turn: signals to each command, readers that leave, and runs at once."""
    draw_data(folder)
    torch.set_num_threads(1)
    rng = random.Random(seed)
    whole: dict[Sequence[str], Ended] = {
        command: finish(start(command, folder), folder) for command in (TRAIN, EVALUATE)
    }
    for ended in whole.values():
        assert ended.status == 0, ended.text
    source = next((folder / "runs" / "eval").iterdir())
    (folder / "ranked").mkdir()
    source.rename(folder / "ranked" / "one")
    whole[LEADERBOARD] = finish(start(LEADERBOARD, folder), folder)
    kinds: list[Callable[[random.Random, Path, dict[Sequence[str], Ended]], Try]] = [
        signal_to_training, signal_to_evaluation, signal_to_leaderboard, reader_leaves, same_second,
    ]  # fmt: skip
    for number in range(tries):
        yield kinds[number % len(kinds)](rng, folder, dict(whole))


def signal_to_training(rng: random.Random, folder: Path, whole: dict[Sequence[str], Ended]) -> Try:
    """Signal a training run, and then continue it by the command that it names."""
    before = set((folder / "runs" / "attn_lstm").iterdir())
    kind, case, ended = signalled(rng, folder, TRAIN, whole)
    made = set((folder / "runs" / "attn_lstm").iterdir()) - before
    done = any((each / "results.json").exists() for each in made)
    last = [path for each in made for path in each.glob("checkpoints/last.ckpt")]
    if (problem := wrong_end(ended, done or not made)) is not None:
        return Try(kind, case, *problem)
    if done:
        return Try(kind, case, "right")
    if not last:
        starts_again = not made or "the same command starts again" in ended.text
        return Try(kind, case, "right" if starts_again else "silent", ended.text[-300:])
    named = ended.text.strip().splitlines()[-1].partition("complete epoch: python ")[2]
    if f"resume={last[0]}" not in named:
        return Try(kind, case, "silent", ended.text[-300:])
    again = finish(start(shlex.split(named), folder), folder)
    if again.status != 0:
        return Try(kind, case, "lost", again.text[-300:])
    return Try(kind, case, "right")


def signal_to_evaluation(
    rng: random.Random, folder: Path, whole: dict[Sequence[str], Ended]
) -> Try:
    """Signal an evaluation: it has no results, or all of them."""
    runs = folder / "runs" / "eval"
    before = set(runs.iterdir())
    kind, case, ended = signalled(rng, folder, EVALUATE, whole)
    made = set(runs.iterdir()) - before
    done = any((each / "results.json").exists() for each in made)
    if (problem := wrong_end(ended, done or not made)) is not None:
        return Try(kind, case, *problem)
    for each in made:
        for path in each.rglob("*.json"):
            json.loads(path.read_text())
    return Try(kind, case, "right")


def signal_to_leaderboard(
    rng: random.Random, folder: Path, whole: dict[Sequence[str], Ended]
) -> Try:
    """Signal a leaderboard: its files are the old ones or the new ones."""
    files = [folder / "ranked" / f"leaderboard.{ending}" for ending in ("md", "csv", "html")]
    before = [path.read_bytes() for path in files]
    kind, case, ended = signalled(rng, folder, LEADERBOARD, whole)
    if (problem := wrong_end(ended, done=True)) is not None:
        return Try(kind, case, *problem)
    same = [path.read_bytes() for path in files] == before  # its input has not changed
    return Try(kind, case, "right" if same else "lost")


def reader_leaves(rng: random.Random, folder: Path, whole: dict[Sequence[str], Ended]) -> Try:
    """Close the pipe of a command after some of its output."""
    command = rng.choice((TRAIN, EVALUATE, LEADERBOARD))
    size = rng.randrange(len(whole[command].text) + 1)
    case = f"{name_of(command)}, {size} bytes"
    before = set((folder / "runs").glob("*/*"))
    reader, writer = os.pipe()
    child = start(command, folder, output=writer)
    os.close(writer)
    while size > 0 and (piece := os.read(reader, size)):
        size -= len(piece)
    os.close(reader)
    ended = finish(child, folder, printed=False)
    if (problem := wrong_end(ended, done=False)) is not None:
        return Try("reader leaves", case, *problem)
    if ended.status != 0:
        return Try("reader leaves", case, "lost", f"status {ended.status}")
    made = set((folder / "runs").glob("*/*")) - before
    complete = all((each / "results.json").exists() for each in made)
    return Try("reader leaves", case, "right" if complete else "lost")


def same_second(rng: random.Random, folder: Path, whole: dict[Sequence[str], Ended]) -> Try:
    """Start several evaluations at once."""
    runs = folder / "runs" / "eval"
    before = set(runs.iterdir())
    count = rng.randint(2, 4)
    children = [start((*EVALUATE, f"name=n{n}"), folder, output=None) for n in range(count)]
    for child in children:
        ended = finish(child, folder, printed=False)
        if ended.status != 0:
            return Try("same second", f"{count} evaluations", "lost", f"status {ended.status}")
    results = [each / "results.json" for each in set(runs.iterdir()) - before]
    names = {json.loads(path.read_text())["name"] for path in results if path.exists()}
    outcome: Outcome = "right" if names == {f"n{n}" for n in range(count)} else "lost"
    return Try("same second", f"{count} evaluations", outcome, str(sorted(names)))


def signalled(
    rng: random.Random, folder: Path, command: Sequence[str], whole: dict[Sequence[str], Ended]
) -> tuple[str, str, Ended]:
    """Start a command and signal it at a random moment; returns kind, case and end."""
    number, after = rng.choice(SIGNALS), rng.uniform(0.0, whole[command].seconds)
    child = start(command, folder)
    time.sleep(after)
    os.kill(child, number)  # not waited for yet, so that its number is not another's
    ended = finish(child, folder)
    return f"{number.name} to {name_of(command)}", f"after {after:.2f} s", ended


def wrong_end(ended: Ended, done: bool) -> tuple[Outcome, str] | None:
    """What is wrong with the end of a command that got a signal, or whose reader has left.

    Args:
        ended: its end.
        done: whether it had not begun, or had finished, so that a signal may kill it.
    """
    if ended.status is None:
        return "hang", f"no end within {LIMIT} s"
    if "Traceback" in ended.text:
        return "traceback", ended.text[-600:]
    stopped = ended.status in (0, *(128 + number for number in SIGNALS))
    killed = ended.status in (-number for number in SIGNALS) and done
    return None if stopped or killed else ("crash", f"status {ended.status}: {ended.text[-300:]}")


def name_of(command: Sequence[str]) -> str:
    """The name of a command in the table."""
    return {TRAIN: "training", EVALUATE: "evaluation", LEADERBOARD: "leaderboard"}[tuple(command)]


def start(command: Sequence[str], folder: Path, output: int | None = None) -> int:
    """Fork a child that runs ``python COMMAND`` in a folder; returns its process number.

    Args:
        command: a script, or ``-m`` and the name of a command of the package; and its arguments.
        folder: where it runs.
        output: where it prints; None stands for the file ``output-PID``.
    """
    sys.stdout.flush()
    child = os.fork()

    def prepare() -> None:
        os.chdir(folder)
        file = os.open(f"output-{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file if output is None else output, 1)
        os.dup2(file, 2)
        if output is not None:
            os.close(output)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if child == 0:
        end_as_command(command, prepare)
    return child


def finish(child: int, folder: Path, *, printed: bool = True) -> Ended:
    """Wait for a child, and kill it if it does not end.

    Args:
        child: its process number.
        folder: where it ran.
        printed: whether its standard output is in its file, too, and not only its errors.
    """
    begin = time.monotonic()
    status: int | None = None
    while time.monotonic() < begin + LIMIT:
        ended, code = os.waitpid(child, os.WNOHANG)
        if ended:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.005)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    text = (folder / f"output-{child}").read_text(errors="replace")
    return Ended(status, text, time.monotonic() - begin)


def draw_data(folder: Path) -> None:
    """Twelve pictures of one colour with captions, and captions and references to score."""
    (folder / "data" / "images").mkdir(parents=True)
    images = []
    for number in range(12):
        colour = ("red", "green", "blue")[number % 3]
        Image.new("RGB", (40, 32), colour).save(folder / "data" / "images" / f"{number}.png")
        split = {9: "val", 10: "test", 11: "val"}.get(number, "train")
        sentences = [{"raw": f"a {colour} picture"}, {"raw": f"{colour} all over"}]
        images.append({"filename": f"{number}.png", "split": split, "sentences": sentences})
    content = {"dataset": "flickr8k", "images": images}
    (folder / "data" / "dataset_flickr8k.json").write_text(json.dumps(content))
    captions = [{"image_id": "a", "caption": "a dog runs"}]
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "references.json").write_text(json.dumps({"a": ["a dog runs fast", "the dog"]}))
