"""Kills: SIGKILL at random and aimed moments of every kind of work, which is then continued.

Each try starts a kind of work in a process of its own, kills it, gives the same command again, and
compares the end with that of work which was not killed. A random kill comes after a random share of
the time that the work takes. An aimed kill comes before one of the work's changes of a file: before
it opens one for writing, syncs, renames or removes it.

The processes are forked after the imports, since a start of Python would take longer than the
work, which trains a tiny model on a few drawn pictures. METEOR's program and the tokeniser are
replaced by functions, since they write nothing.
"""

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from captioning.apps import leaderboard, prepare
from captioning.data import scenes
from captioning.data.datamodule import CaptionDataModule
from captioning.evaluation.evaluate import evaluate
from captioning.metrics import meteor, tokenizer
from captioning.models.encoders.torchvision import TorchvisionEncoder
from captioning.support.errors import CaptioningError
from captioning.sweeps import job_process, jobs
from captioning.sweeps.summary import summarise
from captioning.training.fit import train
from captioning.training.metrics_file import read_rows
from faults.outcome import Outcome, Try

DEFAULT_TRIES: Final = 160

_CONF: Final = Path(__file__).parents[1] / "conf"
_SECONDS: Final = 60.0
"""The time that a continued work may take."""

_ENCODER: Final = ("squeezenet1_1", "features.4")
_SMALL: Final = (
    *("name=tiny", "data.min_count=1", "data.batch_size=3", "data.workers=0", "backend=torch"),
    *("encoder=torchvision", f"encoder.name={_ENCODER[0]}", f"encoder.layer={_ENCODER[1]}"),
    *("encoder.weights=random", "encoder.image_size=32", "model.hidden_dim=12"),
    *("model.embed_dim=8", "model.attention_dim=6", "decoding=greedy", "optimizer.lr=0.02"),
    *("trainer.accelerator=cpu", "trainer.precision=32-true", "trainer.log_every_n_steps=1"),
)
_OF_EVALUATION: Final = (
    *("data.workers", "decoding=", "trainer.accelerator", "trainer.precision", "backend"),
)


class Work(NamedTuple):
    """A kind of work.

    Attributes:
        kind: its name.
        do: does it in a folder, or continues it, and returns what is compared as plain data.
        prepared: whether it begins in a copy of the folder of a run that has trained two epochs.
    """

    kind: str
    do: Callable[[Path], Any]
    prepared: bool = False


def run(tries: int, folder: Path, seed: int) -> Iterator[Try]:
    """Kill each kind of work in turn, every second time at an aimed moment."""
    rng = random.Random(seed)
    replace_java()
    logging.disable(logging.INFO)
    data = _draw_data(folder / "data")
    setup = partial(_train, data=data, epochs=2)
    ready = folder / "ready"
    outcome, detail, _ = _whole(setup, ready)
    if outcome != "right":
        yield Try("kill: preparation", "", outcome, detail)
        return
    works = [
        Work("feature extraction", partial(_extract, data=data)),
        Work("training", partial(_train, data=data, epochs=3)),
        Work("training, resumed", partial(_train, data=data, epochs=4), prepared=True),
        Work("sweep", partial(_sweep, data=data)),
        Work("evaluation", partial(_evaluate, data=data), prepared=True),
        Work("leaderboard", _leaderboard, prepared=True),
        Work("prepare", partial(_prepare, data=data)),
        Work("drawing of scenes", _draw_scenes),
    ]
    ends = {}
    for work in works:
        place = _start(folder, "whole", ready if work.prepared else None)
        began = time.monotonic()
        outcome, detail, end = _whole(work.do, place)
        if outcome != "right":
            yield Try(f"kill: {work.kind}", "not killed", outcome, detail)
            continue
        changes = int((place / "changes").read_text())
        ends[work.kind] = (end, time.monotonic() - began, changes)
        shutil.rmtree(place)
    works = [work for work in works if work.kind in ends]
    for number, work in zip(range(tries), cycle(works), strict=False):
        end, seconds, changes = ends[work.kind]
        place = _start(folder, str(number), ready if work.prepared else None)
        if number // len(works) % 2:
            moment = rng.randrange(1, changes + 1)
            case = f"before change {moment} of {changes} of a file"
            _kill_at_change(work.do, place, moment)
        else:
            after = rng.random() * seconds
            case = f"after {after:.3f} of {seconds:.3f} s"
            _kill_after(work.do, place, after)
        outcome, detail, continued = _whole(work.do, place)
        if outcome == "right" and continued != end:
            outcome, detail = "lost", f"another end: {_difference(end, continued)}"
        elif outcome == "refused":
            outcome = "lost"  # nothing but the kill has happened
        yield Try(f"kill: {work.kind}", f"try {number}, {case}", outcome, detail)
        shutil.rmtree(place)


def _start(folder: Path, name: str, ready: Path | None) -> Path:
    place = folder / name
    if ready is None:
        place.mkdir()
    else:
        shutil.copytree(ready, place)
    return place


# Processes


def _fork(do: Callable[[Path], Any], place: Path, kill_at: int = 0) -> int:
    """Do a work in a new process.

    Its end is written to ``end.json``, the number of its changes of files to ``changes``, and what
    it prints to ``output``.

    Args:
        do: the work.
        place: its folder.
        kill_at: the change of a file before which the process kills itself; 0: none.

    Returns:
        The number of the process. Its status is 0, or 2 after a :class:`CaptioningError`, or 1.
    """
    place.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        output = os.open(place / "output", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ["CAPTIONING_CACHE"] = str(place / "cache")
        counted = _count_changes(place, kill_at)
        end = do(place)
        changes = counted.number
        (place / "changes").write_text(str(changes))
        (place / "end.json").write_text(json.dumps(end))
        status = 0
    except CaptioningError as error:
        print(error, file=sys.stderr)
        status = 2
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _count_changes(place: Path, kill_at: int) -> SimpleNamespace:
    """Count this process's changes of files in a folder; kill it before one of them."""
    counted = SimpleNamespace(number=0)
    inside, fsync = str(place), os.fsync

    def change() -> None:
        counted.number += 1
        if counted.number == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = (mode and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
            if not writes:
                return
        elif event in ("os.rename", "os.remove", "os.mkdir"):
            path = arguments[0]
        else:
            return
        if str(path).startswith(inside):
            change()

    def synced(file: int) -> None:
        change()
        fsync(file)

    os.fsync = synced  # type: ignore[assignment]
    sys.addaudithook(hook)
    return counted


def _kill_after(do: Callable[[Path], Any], place: Path, seconds: float) -> None:
    pid = _fork(do, place)
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _forget(place)


def _kill_at_change(do: Callable[[Path], Any], place: Path, change: int) -> None:
    pid = _fork(do, place, change)
    _wait(pid)
    _forget(place)


def _forget(place: Path) -> None:
    """Remove what the process may have written for this module."""
    for name in ("end.json", "changes"):
        (place / name).unlink(missing_ok=True)


def _whole(do: Callable[[Path], Any], place: Path) -> tuple[Outcome, str, Any]:
    """Do a work to its end: the outcome, the last of what it printed, and the end."""
    status = _wait(_fork(do, place))
    if status == 0:
        return "right", "", json.loads((place / "end.json").read_text())
    said = (place / "output").read_text(errors="replace").strip()[-600:]
    if status is None:
        return "hang", f"no end within {_SECONDS:g} s; {said}", None
    outcomes: dict[int, Outcome] = {1: "traceback", 2: "refused"}
    return outcomes.get(status, "crash"), said or f"status {status}", None


def _wait(pid: int) -> int | None:
    """The exit status of a process; None if it had to be killed because it took too long."""
    until = time.monotonic() + _SECONDS
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


class _ForkedJob:
    """Stands in for the :class:`subprocess.Popen` of a sweep's job, without a start of Python."""

    def __init__(self, command: Sequence[str], **_: Any) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            os.close(writing)
            os.dup2(reading, 0)
            sys.stdin = os.fdopen(0)
            try:
                status = job_process.main(Path(command[-1]))
            except BaseException:
                traceback.print_exc()
                status = 1
            os._exit(status)
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


# The kinds of work, and what is compared at their ends


def _draw_data(root: Path) -> Path:
    """Fifteen pictures in Karpathy's layout."""
    colours = ("red", "green", "blue", "white", "black", "yellow")
    (root / "images").mkdir(parents=True)
    entries = []
    for number in range(15):
        colour = colours[number % len(colours)]
        picture = Image.new("RGB", (60, 40), colour)
        picture.paste("grey", (number, number, number + 20, number + 15))
        picture.save(root / "images" / f"{number:02}.png")
        captions = (f"a {colour} picture", f"a grey box on {colour}", f"{colour} and a box")
        split = {1: "val", 2: "test"}.get(number % 5, "train")
        sentences = [{"raw": caption} for caption in captions]
        entries.append({"filename": f"{number:02}.png", "split": split, "sentences": sentences})
    content = {"dataset": "flickr8k", "images": entries}
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    return root


def _config(name: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(_CONF), version_base="1.3"):
        config = compose(name, list(overrides))
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _train(folder: Path, data: Path, epochs: int) -> Any:
    last = folder / "run" / "checkpoints" / "last.ckpt"
    resume = [f"resume={last}"] if last.exists() else []
    config = _config("train", *_SMALL, f"data.root={data}", f"trainer.max_epochs={epochs}", *resume)
    train(config, folder / "run", "python train.py")
    return _of_run(folder / "run")


def _of_run(run: Path) -> Any:
    states = {}
    for name in ("best", "last"):
        saved = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
        tensors = [tensor.numpy().tobytes() for _, tensor in sorted(saved["state_dict"].items())]
        states[name] = [saved["epoch"], saved["global_step"], _digest(*tensors)]
    rows = read_rows(run / "logs" / "metrics.csv")
    return {
        "scores": json.loads((run / "results.json").read_text())["scores"],
        "captions": (run / "captions_test.json").read_text(),
        "report": (run / "report.html").stat().st_size > 0,
        "weights": states,
        "metrics": [{key: value for key, value in row.items() if value} for row in rows],
    }


def _sweep(folder: Path, data: Path) -> Any:
    jobs.subprocess = SimpleNamespace(Popen=_ForkedJob, PIPE=-1)  # type: ignore[assignment,attr-defined]
    for dropout in ("0.1", "0.3"):
        overrides = [f"model.dropout={dropout}"]
        config = _config("train", *_SMALL, *overrides, f"data.root={data}", "trainer.max_epochs=2")
        quiet = {"version": 1, "disable_existing_loggers": False}
        jobs.run_job(
            folder / "sweep" / overrides[0], config, overrides=overrides,
            command="python train.py", logging=quiet, cwd=folder, output=None,
        )  # fmt: skip
    summarise(folder / "sweep")
    reasons = [path.read_text() for path in folder.rglob("failed.json")]
    if reasons:
        raise RuntimeError(f"failed jobs: {reasons}")
    assert (folder / "sweep" / "leaderboard.md").stat().st_size > 0
    return {path.name: _of_run(path) for path in sorted((folder / "sweep").glob("model.*"))}


def _evaluate(folder: Path, data: Path) -> Any:
    checkpoint = folder / "run" / "checkpoints" / "best.ckpt"
    shared = [each for each in _SMALL if each.startswith(_OF_EVALUATION)]
    config = _config("eval", *shared, f"data.root={data}", f"ckpt={checkpoint}", "split=dev")
    evaluate(config, folder / "evaluation", "python eval.py")
    written = folder / "evaluation"
    return {
        "scores": json.loads((written / "results.json").read_text())["scores"],
        "captions": (written / "captions_dev.json").read_text(),
        "report": (written / "report.html").stat().st_size > 0,
    }


def _leaderboard(folder: Path) -> Any:
    status = leaderboard.main([str(folder / "run"), "--out", str(folder / "table")])
    written = sorted(path.name for path in folder.glob("table*"))
    return {"status": status, "files": written, **_texts(folder, "table*.md", "table*.csv")}


def _prepare(folder: Path, data: Path) -> Any:
    out = folder / "prepared"
    status = prepare.main(["--root", str(data), "--out", str(out), "--min-count", "1"])
    return {"status": status, **_texts(out, "*")}


def _draw_scenes(folder: Path) -> Any:
    scenes.IMAGES = {"train": 6, "dev": 2, "test": 2}
    root = scenes.make_scenes(folder / "scenes", progress=False)
    files = sorted(path for path in root.rglob("*") if _is_result(path))
    return {str(path.relative_to(root)): _digest(path.read_bytes()) for path in files}


def _extract(folder: Path, data: Path) -> Any:
    module = CaptionDataModule(str(data), min_count=1, workers=0, cache=str(folder / "cache"))
    module.read_text()
    module.open_features(TorchvisionEncoder(*_ENCODER, weights="random", image_size=32))
    assert module.store is not None
    return {image: _digest(module.store.grid(image).tobytes()) for image in module.store.ids}


def _texts(folder: Path, *patterns: str) -> Mapping[str, str]:
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    return {path.name: path.read_text() for path in found if _is_result(path)}


def _is_result(path: Path) -> bool:
    """Whether this is a file that the work has finished; a killed process may leave others."""
    return path.is_file() and not path.name.startswith(".")


def _digest(*parts: bytes) -> str:
    return sha256(b"".join(parts)).hexdigest()[:16]


def _difference(one: Any, other: Any, path: str = "") -> str:
    """The first place at which two ends differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        key = next(key for key in one if one[key] != other[key])
        return _difference(one[key], other[key], f"{path}/{key}")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        place = next(place for place in range(len(one)) if one[place] != other[place])
        return _difference(one[place], other[place], f"{path}/{place}")
    if isinstance(one, list | dict) and isinstance(other, list | dict):
        lost = [each for each in one if each not in other]
        added = [each for each in other if each not in one]
        return f"{path}: without {str(lost)[:200]}, and with {str(added)[:200]}"
    return f"{path}: {str(one)[:200]} became {str(other)[:200]}"


# What takes the place of Java


class _Meteor:
    """Answers every request of METEOR's with the same numbers."""

    alive = True

    def __init__(self) -> None:
        self.waiting = 0

    def send(self, lines: str) -> None:
        self.waiting += len(lines.splitlines())

    def receive(self) -> str:
        self.waiting -= 1
        return " ".join(["1.0"] * 23)

    def evaluate(self, statistics: Sequence[str]) -> tuple[float, list[float]]:
        return 0.5, [0.5 for _ in statistics]

    def close(self) -> None:
        pass


def replace_java() -> None:
    """Replace METEOR's program and the tokeniser by functions, in this process and its children."""
    meteor.MeteorProcess = _Meteor  # type: ignore[misc,assignment]
    tokenizer._tokenized = lambda captions: tuple(text.lower() for text in captions)  # type: ignore[assignment]
