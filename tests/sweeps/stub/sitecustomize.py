"""A stub for training that takes no time; this folder comes first on PYTHONPATH.

``model.dropout`` selects the outcome: a value below 1 finishes with a tenth of it as the dev CIDEr;
2 fails; 3 is killed and 4 waits to be killed, unless they are resumed; 5 scores NaN.
``STUB_SECONDS`` is how long a job takes, and ``STUB_JOBS`` how many jobs must have started before
one ends. With ``STUB_LATE_SUBMISSION``, submitit's local jobs run for so many seconds before the
process that starts them goes on.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

SHARED = (
    "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "CAPTIONING_GPU_SHARE", "OMP_NUM_THREADS",
)  # fmt: skip


class LatePopen(subprocess.Popen[Any]):
    def __init__(self, command: Any, *arguments: Any, **named: Any) -> None:
        super().__init__(command, *arguments, **named)
        if "submitit.local._local" in command:
            with suppress(subprocess.TimeoutExpired):
                self.wait(float(os.environ["STUB_LATE_SUBMISSION"]))


if "STUB_LATE_SUBMISSION" in os.environ:
    subprocess.Popen = LatePopen  # type: ignore[misc]


def wait_for_jobs(folder: Path, count: int) -> None:
    """Wait until ``count`` jobs of the sweep have started, so that they do run side by side."""
    (folder / "started").touch()
    until = time.time() + 60
    while len(list(folder.parent.glob("*/started"))) < count and time.time() < until:
        time.sleep(0.05)
    time.sleep(0.2 if count > 1 else 0)


def train(config: dict[str, Any], folder: Path, command: str, logger: Any) -> None:
    from captioning.reporting.provenance import versions
    from captioning.reporting.results import Data, Results, write_results

    start, dropout = time.time(), config["model"]["dropout"]
    (folder / "checkpoints").mkdir(exist_ok=True)
    if dropout == 2:
        raise MemoryError("no more\nmemory")
    if dropout == 3 and not config["resume"]:
        (folder / "checkpoints" / "last.ckpt").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if dropout == 4 and not config["resume"]:
        (folder / "checkpoints" / "last.ckpt").touch()
        (folder / "pid").write_text(str(os.getpid()))
        time.sleep(60)
    time.sleep(float(os.environ.get("STUB_SECONDS", "0")))
    wait_for_jobs(folder, int(os.environ.get("STUB_JOBS", "1")))
    scores = {"CIDEr": dropout / 10 if dropout < 1 else math.nan if dropout == 5 else 0.5}
    write_results(
        folder / "results.json",
        Results(
            name=config["name"],
            command=command,
            config=config,
            data=Data(name="scenes", fingerprint="0", images={"dev": 1, "test": 1}),
            versions=versions(),
            commit=None,
            seconds={},
            # No sweep compares these; a search would find another best by them.
            scores={"dev": scores, "test": {"CIDEr": 0.9 - scores["CIDEr"]}},
        ),
    )
    (folder / "report.html").touch()
    ran = {
        "pid": os.getpid(), "start": start, "end": time.time(), "resume": config["resume"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "group": os.environ["WANDB_RUN_GROUP"],
        "node": os.environ.get("STUB_NODE"),
        "shared": {name: os.environ.get(name) for name in SHARED},
    }  # fmt: skip
    with (folder / "ran.jsonl").open("a") as file:
        file.write(json.dumps(ran) + "\n")


fit = ModuleType("captioning.training.fit")
fit.train = train  # type: ignore[attr-defined]
sys.modules["captioning.training.fit"] = fit


def checkpoint_to_resume(folder: Path) -> Path | None:
    last = folder / "checkpoints" / "last.ckpt"
    return last if last.is_file() else None


resume = ModuleType("captioning.training.resume")
resume.checkpoint_to_resume = checkpoint_to_resume  # type: ignore[attr-defined]
sys.modules["captioning.training.resume"] = resume
