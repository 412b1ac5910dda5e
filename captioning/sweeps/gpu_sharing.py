"""How many jobs of a sweep share a GPU, and what each of them may take of it."""

import math
import os
import subprocess
from collections.abc import Mapping, Sequence

from captioning.support.memory import GPU_SHARE

MAX_JOBS = 8
"""The most jobs that share a GPU by default. By the estimate in docs/sweeps.md, five fill it."""

JOB_CPUS = 2
"""CPU cores that a job needs, so that launching its kernels does not wait for other jobs."""

JOB_BYTES = 8_000_000_000
"""GPU memory that a job needs: an estimate for the default sizes with a margin, of which the grids
of Flickr8k take 1.6 GB."""


def default_jobs(jobs: int, machine: Mapping[str, float], free: Sequence[int]) -> int:
    """The number of jobs that share each GPU of a machine, so that all have room.

    If the jobs cannot run at once, they are divided equally: nine jobs on one GPU with room for
    eight run as five and four, because the last job would not be faster alone.

    Args:
        jobs: the number of jobs of the sweep.
        machine: the resources of the machine, as Ray reports them: ``{"CPU": ..., "GPU": ...}``.
        free: the bytes of free memory of each GPU.
    """
    gpus = machine["GPU"]
    cpus = machine.get("CPU", 0) // gpus
    room = max(1, min(MAX_JOBS, int(cpus // JOB_CPUS), min(free, default=0) // JOB_BYTES))
    for_each = math.ceil(jobs / gpus)
    return math.ceil(for_each / math.ceil(for_each / room))


def share_of(jobs: int) -> float:
    """The share of a GPU of each of several jobs, rounded down.

    Ray counts in ten-thousandths, and rounds up: six sixths would be more than one GPU.
    """
    return math.floor(10_000 / jobs) / 10_000


def memory_limit(share: float) -> dict[str, str]:
    """The environment variable that tells a job its share of the GPU."""
    return {GPU_SHARE: f"{share:g}"} if 0 < share < 1 else {}


def free_memory() -> list[int]:
    """The bytes of free memory of each visible GPU; empty if ``nvidia-smi`` does not say.

    A GPU that is divided by MIG is left out, since its parts have less.
    """
    query = "--query-gpu=index,uuid,memory.free,mig.mode.current"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            check=True, timeout=60, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else [each.strip() for each in visible.split(",") if each]
    found = []
    for line in done.stdout.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4:  # such as "No devices were found"
            return []
        index, uuid, mebibytes, mig = cells
        if wanted is not None and not any(index == w or uuid.startswith(w) for w in wanted):
            continue
        if mig == "Enabled" or not mebibytes.isdecimal():
            return []
        found.append(int(mebibytes) << 20)
    return found
