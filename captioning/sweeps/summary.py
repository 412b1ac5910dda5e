"""The end of a multirun: what became of its jobs, their leaderboard, and a picture of the scores.

leaderboard.md, .csv, .html   the runs, best first
sweep.png, sweep.html         the dev score over the values that vary
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from captioning.apps import leaderboard
from captioning.reporting.sweep_figure import SweptRun, write_sweep
from captioning.support.errors import CaptioningError
from captioning.sweeps.jobs import OBJECTIVE, objective, read_failure, read_job


def summarise(folder: Path) -> None:
    """Print and write the summary of the jobs in a sweep's folder, of this and earlier multiruns.

    Raises:
        CaptioningError: a job's files cannot be read, or the summary cannot be written.
    """
    folder = Path(os.path.relpath(folder))  # no path of this machine in what is written
    runs = swept_runs(folder)
    if runs:
        leaderboard.main([str(folder)])
        try:
            for path in write_sweep(folder, runs, " ".join(OBJECTIVE)):
                print(f"Wrote {path}")
        except OSError as error:
            raise CaptioningError(f"{folder}: cannot be written: {error.strerror}") from None
    failed = [run for run in runs if run.reason]
    finished = sum(run.score is not None for run in runs)
    print(f"{finished} finished, {len(failed)} failed in {folder}")
    if failed:
        print("The same command runs what is not finished again.")


def swept_runs(folder: Path) -> list[SweptRun]:
    """What the jobs' folders say of them, each with a value for whatever varies in any of them."""
    files = {path.parent for name in ("job.json", "failed.json") for path in folder.rglob(name)}
    runs, configs = [], []
    for path in sorted(files):
        job, failure = read_job(path), read_failure(path)
        overrides = job.overrides if job else failure.overrides if failure else []
        score = objective(path) if job and (path / "results.json").is_file() else None
        reason = failure.reason if failure else None
        runs.append(SweptRun(path, values_of(overrides), score, reason))
        configs.append(job.config if job else {})
    keys = list(dict.fromkeys(key for run in runs for key in run.values))
    return [
        replace(run, values={key: run.values.get(key) or setting(config, key) for key in keys})
        for run, config in zip(runs, configs, strict=True)
    ]


def values_of(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides by their keys."""
    return {key.lstrip("+"): value for key, _, value in (each.partition("=") for each in overrides)}


def setting(config: Mapping[str, Any], key: str) -> str:
    """What a configuration holds for a key that another run of the sweep has set."""
    found: Any = config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return "-" if found is None or isinstance(found, Mapping) else str(found)
