"""Runs that share a GPU: how many are done in the time of one, with and without NVIDIA's MPS.

Each run is a process of its own, as a job of a sweep is. It trains on data of Flickr8k's size in
Lightning's loop, as ``train.py`` does. All runs have the same seed, so that their weights show
whether sharing changes results.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch

from benchmarks.gpu import EPOCH, fitted
from benchmarks.measure import Figure
from captioning.support.memory import GPU_SHARE
from captioning.sweeps.mps import PIPE_DIRECTORY, MPSUnavailableError, mps_daemon

RUNS = 8  # that share the GPU
EPOCHS = 12  # of each run


class Settings(NamedTuple):
    """What a run trains with; tests take less."""

    accelerator: str = "gpu"
    precision: str = "bf16-mixed"
    images: int = EPOCH
    epochs: int = EPOCHS


class Trained(NamedTuple):
    """What a run prints: when its epochs ended, in seconds, and a digest of its weights."""

    ends: list[float]
    weights: str


def run(rounds: int) -> list[Figure]:
    """Compare runs that share a GPU with one alone; without a GPU, nothing is measured."""
    if not torch.cuda.is_available():
        print("sweeps: there is no CUDA device here; nothing is measured.")
        return []
    return compare(RUNS, Settings())


def compare(runs: int, settings: Settings) -> list[Figure]:
    """Train alone, then several at once without MPS, then several with it."""
    with tempfile.TemporaryDirectory() as folder:  # where no daemon is
        without = {PIPE_DIRECTORY: folder}
        (alone,) = train_at_once(1, without, settings)
        taking_turns = train_at_once(runs, without, settings)
    rate = epochs_per_second([alone])
    figures = [
        Figure("an epoch of a run alone", 1 / rate, "s"),
        sharing(f"{runs} at once, without MPS", taking_turns, alone),
    ]
    try:
        with mps_daemon() as environment:
            together = train_at_once(runs, environment, settings)
    except MPSUnavailableError as error:
        print(f"sweeps: NVIDIA's MPS is not available: {error}.")
    else:
        figures.append(sharing(f"{runs} at once, with MPS", together, alone))
    return figures


def sharing(name: str, runs: Sequence[Trained], alone: Trained) -> Figure:
    """How many runs are done in the time that one takes alone."""
    rate = epochs_per_second(runs)
    same = sum(run.weights == alone.weights for run in runs)
    return Figure(
        name, rate / epochs_per_second([alone]), "runs in the time of one",
        note=f"an epoch of each takes {len(runs) / rate:.2f} s; "
        f"{same} of {len(runs)} have the same weights as the run alone",
    )  # fmt: skip


def epochs_per_second(runs: Sequence[Trained]) -> float:
    """The rate of all runs together, from when all have ended their first epoch.

    In the first one, kernels are compiled and graphs recorded. The rate is taken until the first
    run ends.
    """
    start, stop = max(run.ends[0] for run in runs), min(run.ends[-1] for run in runs)
    if stop <= start:
        raise RuntimeError("The runs did not train at the same time: give them more epochs.")
    done = [
        np.interp(stop, run.ends, range(len(run.ends)))
        - np.interp(start, run.ends, range(len(run.ends)))
        for run in runs
    ]
    return float(sum(done) / (stop - start))


def train_at_once(runs: int, environment: Mapping[str, str], settings: Settings) -> list[Trained]:
    """Train several runs at the same time, each with its share of the CPU cores and the GPU.

    Raises:
        RuntimeError: a run failed.
    """
    shares = {
        "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // runs)),
        GPU_SHARE: f"{1 / runs:g}",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.sweeps", json.dumps(settings)],
            env=os.environ | shares | environment, text=True, stdout=subprocess.PIPE,
        )
        for _ in range(runs)
    ]  # fmt: skip
    try:
        printed = [process.communicate()[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(process.returncode for process in processes):
        raise RuntimeError("A run failed; it has printed why.")
    return [Trained(*json.loads(each.splitlines()[-1])) for each in printed]


class Ends(pl.Callback):
    """Records when each epoch ends."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_end(self, *_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.time())


def train(settings: Settings) -> Trained:
    """Train a model in this process."""
    ends = Ends()
    captioner = fitted(
        settings.accelerator, settings.precision, settings.images, settings.epochs, ends
    )
    digest = hashlib.sha256()
    for weight in captioner.decoder.state_dict().values():
        digest.update(weight.detach().cpu().numpy().tobytes())
    return Trained(ends.seconds, digest.hexdigest())


if __name__ == "__main__":
    print(json.dumps(train(Settings(*json.loads(sys.argv[1])))))
