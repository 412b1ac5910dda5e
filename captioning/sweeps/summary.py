"""The end of a multirun: what became of its jobs, their leaderboard, and a picture of the scores.

leaderboard.md, .csv, .html   the runs, best first
sweep.png, sweep.html         the dev score over the values that vary
"""

import os
from pathlib import Path

from captioning import leaderboard
from captioning.errors import CaptioningError
from captioning.reporting.sweep_figure import SweptRun, write_sweep
from captioning.sweeps.jobs import OBJECTIVE, objective, read_failure, read_job


def summarise(folder: Path) -> None:
    """Print and write the summary of the jobs in a sweep's folder, of this and earlier multiruns.

    Raises:
        CaptioningError: a job's files cannot be read, or the summary cannot be written.
    """
    folder = Path(os.path.relpath(folder))  # no path of this machine in what is written
    runs = [swept_run(path.parent) for path in sorted(folder.rglob("job.json"))]
    runs += [
        SweptRun(path.parent, {}, None, read_failure(path.parent))
        for path in sorted(folder.rglob("failed.json"))
        if not (path.parent / "job.json").exists()
    ]
    scored = any(run.score is not None for run in runs)
    if scored:
        leaderboard.main([str(folder)])
        try:
            for path in write_sweep(folder, runs, " ".join(OBJECTIVE)):
                print(f"Wrote {path}")
        except OSError as error:
            raise CaptioningError(f"{folder}: cannot be written: {error.strerror}") from None
    failed = [run for run in runs if run.reason]
    finished = sum(run.score is not None for run in runs)
    print(f"{finished} finished, {len(failed)} failed in {folder}")
    for run in failed * (not scored):  # the leaderboard has said it
        print(f"failed: {run.folder.name}: {run.reason}")
    if failed:
        print("The same command runs what is not finished again.")


def swept_run(folder: Path) -> SweptRun:
    """What a job's folder says of it."""
    job = read_job(folder)
    assert job is not None
    values = dict(override.lstrip("+").split("=", 1) for override in job.overrides)
    finished = (folder / "results.json").is_file()
    return SweptRun(folder, values, objective(folder) if finished else None, read_failure(folder))
