"""Fixtures that start multiruns of ``train.py`` as a user does, with a stub for training."""

import json
import logging
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import tiny
from PIL import Image

from captioning import training
from captioning.sweeps import job_process, jobs

ROOT = Path(__file__).parents[2]
STANDINS = Path(__file__).parent / "standins"
STUB = Path(__file__).parent / "stub"

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200), "grey": (99, 99, 99)}


class Multirun(NamedTuple):
    """The outcome of a multirun: exit status, output and folder."""

    status: int
    out: str
    folder: Path

    def ran(self) -> dict[str, list[dict[str, Any]]]:
        """The records that the stub wrote for each completed run, by job folder."""
        return {
            path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
            for path in self.folder.rglob("ran.jsonl")
        }


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of single-colour images; its dev split has an odd number of images, for DDP."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    images = []
    for number, (split, name) in enumerate(
        (split, name)
        for split, count in (("train", 10), ("val", 3), ("test", 2))
        for _ in range(count)
        for name in COLOURS
    ):
        file = f"{split}_{number}.png"
        if split == "val" and name == "grey":
            continue
        shade = number % 50
        colour = tuple(value + shade for value in COLOURS[name])
        Image.new("RGB", (40, 32), colour).save(root / "images" / file)
        sentences = [{"raw": f"the picture is {name} ."}, {"raw": f"a {name} area"}]
        images.append({"filename": file, "split": split, "sentences": sentences})
    content = {"dataset": "flickr8k", "images": images}
    (root / "dataset_flickr8k.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def environment(cache: Path) -> dict[str, str]:
    paths = (STUB, ROOT)
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "CAPTIONING_CACHE": str(cache),
        "COLUMNS": "200",
    }


@pytest.fixture
def start(
    environment: dict[str, str], data: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``python train.py OVERRIDES`` in an empty folder; it is killed after the test."""
    # A shell starts background jobs with SIGINT ignored, which their children would inherit.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with ExitStack() as running:

        def process(*overrides: str, **env: str) -> subprocess.Popen[str]:
            started = subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"),
                 *overrides[:1], f"data.root={data}", *overrides[1:]],
                cwd=tmp_path, env=environment | env, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            running.enter_context(started)
            running.callback(started.kill)
            return started

        yield process
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def multirun(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> Callable[..., Multirun]:
    """Run ``python train.py OVERRIDES`` to its end; its folder is the newest below ``runs``."""

    def run(*overrides: str, **env: str) -> Multirun:
        process = start(*overrides, **env)
        out, _ = process.communicate(timeout=120)
        return Multirun(process.returncode, out, newest_sweep(tmp_path))

    return run


@pytest.fixture
def multirun_here(
    environment: dict[str, str],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Multirun]:
    """As ``multirun``, but in this process, which saves a start of Python for each command.

    Each job of the multirun is a process of its own all the same.
    """
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*overrides: str) -> Multirun:
        argv = ["train.py", *overrides[:1], f"data.root={data}", *overrides[1:]]
        monkeypatch.setattr(sys, "argv", argv)
        jobs._fingerprint.cache_clear()  # a test changes its data
        status = tiny.status_of_script("train.py")
        printed = "".join(capfd.readouterr())
        if isinstance(status, str):  # Python prints it when it ends
            status, printed = 1, f"{printed}{status}\n"
        return Multirun(int(str(status or 0)), printed, newest_sweep(tmp_path))

    return run


@pytest.fixture
def jobs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the jobs of ``multirun_here`` run in this process, too, with the same stub.

    For tests of which jobs a sweep has, and what it does with their results.
    """
    for name in ("fit", "resume"):
        monkeypatch.setitem(sys.modules, f"captioning.training.{name}", ModuleType(name))
    runpy.run_path(str(STUB / "sitecustomize.py"))
    for name in ("fit", "resume"):
        stub = sys.modules[f"captioning.training.{name}"]
        monkeypatch.setattr(training, name, stub, raising=False)
    monkeypatch.setattr(job_process, "die_with_parent", lambda: None)
    monkeypatch.setattr(job_process, "is_first_process", lambda: False)  # which begins a log
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setenv("WANDB_RUN_GROUP", "a sweep of this process")
    monkeypatch.setattr(jobs, "_run_process", lambda folder, cwd, output: job_process.main(folder))


def newest_sweep(folder: Path) -> Path:
    """The newest folder below ``runs/sweep``; ``folder`` itself if there is none."""
    sweeps = sorted((folder / "runs" / "sweep").glob("*"), key=lambda path: path.stat().st_mtime)
    return sweeps[-1] if sweeps else folder


@pytest.fixture(scope="session")
def stand_in_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a library that stands in for the CUDA driver."""
    folder = tmp_path_factory.mktemp("driver")
    source = STANDINS / "driver.c"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(folder / "libcuda.so.1"), str(source)], check=True
    )
    return folder


@pytest.fixture
def fake_mps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiling: None, stand_in_driver: Path
) -> Path:
    """Put stand-ins for NVIDIA's programs on the PATH; returns the folder that they write to."""
    folder = tmp_path / "standins"
    folder.mkdir()
    (folder / "gpus").write_text("0, GPU-4ad1, 80000, Disabled\n")
    monkeypatch.setenv("STANDINS", str(folder))
    monkeypatch.setenv("PATH", f"{STANDINS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(stand_in_driver))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for variable in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    return folder
